"""The YAML list: its text, its head and embedding lines, and that it unfreezes what was selected and nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrum.layer_types import layer_types
from spectrum.records import LayerSnr, Parameter, Provenance, ScanResult, group_by_type
from spectrum.selection.entries import ParameterIndex, render_axolotl, unfrozen_entries
from spectrum.selection.selection import Selection, top_percent
from tests.helpers.records import PROVENANCE

LLAMA = ("lm_head.weight", "model.embed_tokens.weight")


def provenance(parameters: Iterable[str], head: str | None = LLAMA[0], embedding: str | None = LLAMA[1]) -> Provenance:
    shapes = {name: Parameter((4, 4), "float32") for name in parameters}
    return replace(PROVENANCE, info=replace(PROVENANCE.info, head=head, embedding=embedding, parameters=shapes))


def scan(scores: dict[str, float], made: Provenance | None = None, left_out: Iterable[str] = ()) -> ScanResult:
    layers = tuple(LayerSnr(name, layer_types([name])[name], snr) for name, snr in scores.items())
    return ScanResult("m", layers, tuple(left_out), tuple(group_by_type(layers)), made)


def text(chosen: Selection) -> str:
    """The file as the command writes it."""
    return render_axolotl(chosen.entries(), chosen.embedding_parameters())


def entries_of(result: ScanResult, percent: str, *, embeddings: bool = True) -> list[str]:
    """All names but those of head and embedding."""
    by_type = top_percent(result, percent, embeddings=embeddings).entries()
    return [entry for names in by_type.values() for entry in names]


def test_the_file_byte_for_byte() -> None:
    result = scan(
        {
            "model.embed_tokens": 0.5,
            "model.layers.0.mlp.down_proj": 1.0,
            "model.layers.1.mlp.down_proj": 3.0,
            "model.layers.2.mlp.down_proj": 2.0,
            "model.layers.10.mlp.down_proj": 2.0,
            "model.layers.0.mlp.up_proj": 0.2,
            "model.layers.1.mlp.up_proj": 0.1,
        }
    )
    assert text(top_percent(result, "75")) == (
        "unfrozen_parameters:\n"
        "- ^lm_head.weight$\n"
        "- ^model.embed_tokens.weight$\n"
        "# model.embed_tokens layers\n"
        "# mlp.down_proj layers\n"
        "- model.layers.1.mlp.down_proj\n"
        "- model.layers.2.mlp.down_proj\n"
        "- model.layers.10.mlp.down_proj\n"
        "# mlp.up_proj layers\n"
        "- model.layers.0.mlp.up_proj\n"
    )


@pytest.mark.parametrize(
    ("made", "lines"),
    [
        pytest.param(provenance(LLAMA), ["- ^lm_head.weight$", "- ^model.embed_tokens.weight$"], id="llama"),
        pytest.param(None, ["- ^lm_head.weight$", "- ^model.embed_tokens.weight$"], id="unknown provenance"),
        pytest.param(
            provenance([], "lm_head.weight", "transformer.wte.weight"),
            ["- ^lm_head.weight$", "- ^transformer.wte.weight$"],
            id="gpt-2",
        ),
        pytest.param(provenance([], None, "embeddings.weight"), ["- ^embeddings.weight$"], id="no head"),
        pytest.param(provenance([], "classifier.weight", None), ["- ^classifier.weight$"], id="no embedding"),
        pytest.param(provenance([], None, None), [], id="neither"),
    ],
)
def test_the_first_lines_name_the_models_own_head_and_embedding(made: Provenance | None, lines: list[str]) -> None:
    result = scan({"h.0.mlp": 1.0}, made)
    expected = ["unfrozen_parameters:", *lines, "# mlp layers", "- h.0.mlp"]
    assert text(top_percent(result, "100")) == "\n".join(expected) + "\n"


@pytest.mark.parametrize("made", [None, provenance([*LLAMA, "h.0.mlp.weight", "lm_head.bias"])], ids=["bare", "known"])
def test_without_embeddings_neither_is_named_even_if_selected(made: Provenance | None) -> None:
    result = scan({"lm_head": 3.0, "model.embed_tokens": 2.0, "h.0.mlp": 1.0}, made)
    assert text(top_percent(result, "100", embeddings=False)) == (
        "unfrozen_parameters:\n# lm_head layers\n# model.embed_tokens layers\n# mlp layers\n- h.0.mlp\n"
    )
    # A head that is wanted, and selected, has both lines, as the reference writes them.
    assert text(top_percent(result, "100")).splitlines()[1:5] == [
        "- ^lm_head.weight$",
        "- ^model.embed_tokens.weight$",
        "# lm_head layers",
        "- lm_head",
    ]


EXPERT = "model.layers.0.moe_block.experts.0"


@pytest.mark.parametrize(
    ("scores", "parameters", "expected"),
    [
        pytest.param(
            {f"{EXPERT}.linear": 2.0, f"{EXPERT}.linear_1": 1.0},
            [f"{EXPERT}.linear.weight", f"{EXPERT}.linear_1.weight"],
            [f"{EXPERT}.linear.weight"],
            id="a sibling's name goes on",
        ),
        pytest.param(
            {"h.0.mlp.gate": 2.0, "h.0.mlp.gate_proj": 1.0},
            ["h.0.mlp.gate.bias", "h.0.mlp.gate.weight", "h.0.mlp.gate_proj.weight"],
            ["h.0.mlp.gate.weight", "h.0.mlp.gate.bias"],
            id="with a bias of its own",
        ),
        pytest.param(
            {"h.0.mlp.gate": 2.0, "h.0.mlp.gate_proj": 1.0},
            None,
            ["h.0.mlp.gate.weight"],
            id="parameters unknown",
        ),
        pytest.param(
            # The reference's scan may name modules that this version of transformers does not have.
            {"h.0.mlp.gate": 2.0, "h.0.mlp.gate_proj": 1.0},
            ["h.0.mlp.gate_proj.weight"],
            ["h.0.mlp.gate.weight"],
            id="its own parameters unknown",
        ),
        pytest.param(
            {"h.0.mlp.gate_proj": 2.0, "h.0.mlp.gate": 1.0},
            ["h.0.mlp.gate.weight", "h.0.mlp.gate_proj.weight"],
            ["h.0.mlp.gate_proj"],
            id="the longer name is unambiguous",
        ),
        pytest.param(
            {"heads.1": 2.0, "heads.10": 1.0},
            ["heads.1.weight", "heads.10.weight"],
            ["heads.1.weight"],
            id="1 and 10",
        ),
        pytest.param(
            {"h.0.attn": 2.0, "h.1.attn": 1.0},
            ["h.0.attn.weight", "h.0.attn.q.weight", "h.1.attn.weight"],
            ["h.0.attn.weight"],
            id="a module within the module",
        ),
        pytest.param(
            {"h.0.experts.gate_up_proj": 2.0, "h.1.experts.gate_up_proj": 1.0},
            ["h.0.experts.gate_up_proj", "h.1.experts.gate_up_proj"],
            ["h.0.experts.gate_up_proj"],
            id="a parameter of that very name",
        ),
        pytest.param(
            {"h.0.mlp.gate": 2.0, "h.1.mlp.gate": 1.0},
            ["h.0.mlp.gate.weight", "h.0.mlp.gate.bias", "h.1.mlp.gate.weight", "h.1.mlp.gate.bias"],
            ["h.0.mlp.gate"],
            id="a bias is no reason",
        ),
    ],
)
def test_a_prefix_of_unselected_parameters_is_spelt_out(
    scores: dict[str, float], parameters: list[str] | None, expected: list[str]
) -> None:
    made = None if parameters is None else provenance(parameters)
    best = max(scores, key=lambda name: scores[name])
    result = scan(scores, made)
    # Only the best layer is selected, of whichever type it is.
    entries = unfrozen_entries({layer_types([best])[best]: [best]}, ParameterIndex.of(result), ())
    assert entries == {layer_types([best])[best]: expected}


@pytest.mark.parametrize(
    ("layers", "embeddings", "expected"),
    [
        # Trainers see the values of both under the one name that owns them.
        pytest.param(["h.1.up"], (), ["h.1.up", "h.0.up.weight"], id="the owner is not selected"),
        pytest.param(["h.1.up", "h.0.up"], (), ["h.1.up", "h.0.up"], id="the owner is selected too"),
        pytest.param(["h.0.up"], (), ["h.0.up"], id="the owner alone"),
        pytest.param(["h.1.up"], ["h.0.up.weight"], ["h.1.up"], id="the owner has a line of its own"),
    ],
)
def test_a_tied_layer_is_followed_by_the_parameter_that_has_its_values(
    layers: list[str], embeddings: Iterable[str], expected: list[str]
) -> None:
    parameters = ["h.0.up.weight", "h.1.up.bias", "h.1.up.weight"]
    tied = {"h.1.up.weight": "h.0.up.weight"}
    assert unfrozen_entries({"up": layers}, ParameterIndex(parameters, tied), embeddings) == {"up": expected}


@pytest.mark.parametrize("parameters", [None, ["h.0.gate.weight", "h.0.gate_proj.weight"]], ids=["bare", "known"])
def test_a_prefix_of_selected_parameters_stays_short(parameters: list[str] | None) -> None:
    result = scan({"h.0.gate": 2.0, "h.0.gate_proj": 1.0}, None if parameters is None else provenance(parameters))
    assert entries_of(result, "100") == ["h.0.gate", "h.0.gate_proj"]


@pytest.mark.parametrize("known", [True, False])
def test_a_layer_left_out_for_nan_is_not_unfrozen_by_a_prefix(known: bool) -> None:
    made = provenance(["h.0.gate.weight", "h.0.gate_proj.weight"]) if known else None
    result = scan({"h.0.gate": 2.0}, made, left_out=["h.0.gate_proj"])
    assert entries_of(result, "100") == ["h.0.gate.weight"]


def test_a_head_left_frozen_is_not_unfrozen_by_a_prefix() -> None:
    result = scan({"lm": 2.0, "lm_head": 1.0}, provenance([*LLAMA, "lm.weight"]))
    assert entries_of(result, "100", embeddings=False) == ["lm.weight"]
    assert entries_of(result, "100", embeddings=True) == ["lm", "lm_head"]


# Names that begin one another, and numbers that do. No suffix is itself a name, and there is no number of three
# digits: a dot that a consumer does not escape matches any character, and then `gate.proj` would match `gate_proj`.
NAMES = ["0", "1", "10", "gate", "gate_proj", "gate_up_proj", "linear", "linear_v", "q", "q_norm", "in-proj"]
PATHS = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(lambda parts: ".".join(["h", *parts]))
TOP_LEVEL = st.sampled_from(["lm", "lm_head", "model.embed_tokens", "model.embed_tokens_extra"])


@st.composite
def trees(draw: st.DrawFn) -> dict[str, list[str]]:
    """Modules that own a weight, each with its own parameters; any may lie within another."""
    paths = draw(st.lists(PATHS | TOP_LEVEL, min_size=1, max_size=12, unique=True))
    tree = {path: [f"{path}.weight", *[f"{path}.bias"] * draw(st.booleans())] for path in paths}
    # A stack of experts is a parameter without a module of its own.
    stacks = draw(st.lists(PATHS.map(lambda path: f"{path}.stack"), max_size=2, unique=True))
    return tree | {path: [path] for path in stacks}


def axolotl(pattern: str) -> str:
    return re.sub(r"\.(?!\+)", r"\\.", pattern)


@given(trees(), st.data())
@settings(max_examples=200, deadline=None)
def test_consumers_unfreeze_exactly_what_was_selected(tree: dict[str, list[str]], data: st.DataObject) -> None:
    known, embeddings = data.draw(st.booleans(), "sidecar"), data.draw(st.booleans(), "embeddings")
    unscored = data.draw(st.lists(PATHS.map(lambda path: f"{path}.A_log"), max_size=2), "unscored parameters")
    if not known:
        # Only the names of layers are there to go by, and only their weights can be told apart.
        tree, unscored = {path: [f"{path}.weight"] for path in tree if not path.endswith(".stack")}, []
    parameters = [own for names in tree.values() for own in names] + unscored
    head, embedding = (name if name in parameters or not known else None for name in LLAMA)
    made = provenance(parameters, head, embedding) if known else None
    result = scan({path: data.draw(st.floats(0, 1), path) for path in tree}, made)
    percent = data.draw(st.sampled_from(["1", "50", "70", "100"]), "percent")
    chosen = top_percent(result, percent, embeddings=embeddings)

    written = text(chosen)

    intended = {own for kind in chosen.types for layer in kind.selected for own in tree[layer.name]}
    for name in LLAMA:
        path = name.removesuffix(".weight")
        if embeddings:
            intended |= {name} & set(parameters)
        else:
            intended -= set(tree.get(path, ()))
    at_column_0 = [line.removeprefix("- ") for line in written.splitlines() if line.startswith("- ")]
    assert (yaml.safe_load(written)["unfrozen_parameters"] or []) == at_column_0
    for matcher in (axolotl, str):
        patterns = [re.compile(matcher(entry)) for entry in at_column_0]
        assert {p for p in parameters if any(pattern.match(p) for pattern in patterns)} == intended
