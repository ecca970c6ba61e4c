"""What a check proposes in place of entries that match nothing, and that Axolotl itself makes of it what was meant."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from spectrum.checkpoint.reader import describe_model
from spectrum.records import ModelInfo, Parameter
from spectrum.trainers import matching
from spectrum.trainers.checking import remedies
from spectrum.trainers.checking.check import check_list
from spectrum.trainers.checking.names import ModelNames
from spectrum.trainers.lists import EntryList, read_list
from spectrum.trainers.matching import AXOLOTL, matched, selects_rows
from tests.helpers.architectures import built
from tests.helpers.axolotl import AXOLOTL as WHEELS
from tests.helpers.axolotl import Task, install, trainable

Described = tuple[ModelInfo, Callable[[str], str]]


def unchanged(name: str) -> str:
    return name


def model_of(*names: str, tied: Mapping[str, str] | None = None, types: Sequence[str] = ()) -> ModelInfo:
    parts = [name.split(".") for name in names]
    return ModelInfo(
        model_class="SomeForCausalLM",
        layer_types=tuple(types),
        parameters={name: Parameter((8, 8), "bfloat16", (tied or {}).get(name)) for name in names},
        modules=frozenset(".".join(part[:i]) for part in parts for i in range(1, len(part))),
        head=None,
        embedding="model.embed_tokens.weight",
    )


# Twelve layers, so that the tenth's name begins as the first's does. Every third is a mixture of experts.
OWN = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.q_norm", "mlp.gate", "mlp.gate_proj", "norm")
DENSE = model_of(
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.{own}.weight" for i in range(12) for own in OWN),
    *(f"model.layers.{i}.mlp.router.weight" for i in range(0, 12, 3)),
    "model.final_norm.weight",
    types=[*OWN, "mlp.router"],
)


def told(entries: Sequence[str], model: ModelInfo = DENSE, renamed: Callable[[str], str] = unchanged) -> list[str]:
    names = ModelNames.of(model, renamed)
    return list(remedies.problems(entries, names, len(entries)))


def proposed(problem: str, model: ModelInfo = DENSE) -> list[str]:
    """The entries that a problem says to write, or asks about. The check has nothing against them."""
    found = re.search(r"; (?:write|did you mean) (.+?)( \((all )?\d+ layers\)| in place of |\?$|$)", problem)
    assert found is not None, problem
    entries = found[1].split(" and ")
    # Rows are only Axolotl's, which alone reads a file with other settings.
    settings = {"base_model": "org/model"} if any(map(selects_rows, entries)) else {}
    assert check_list(EntryList(tuple(entries), tuple(entries), settings, {}), model).problems == ()
    return entries


def selected(entries: Sequence[str], model: ModelInfo = DENSE) -> set[str]:
    return set().union(*matched(AXOLOTL, entries, list(model.parameters)).values())


EVERY = range(12)


@pytest.mark.parametrize(
    ("entry", "expected", "layers"),
    [
        # A type, or a part of one.
        ("norm", "model.layers.[0-9]+.norm", EVERY),
        ("self_attn.k_proj", "model.layers.[0-9]+.self_attn.k_proj", EVERY),
        ("k_proj", "model.layers.[0-9]+.self_attn.k_proj", EVERY),
        ("attn.k_proj", "model.layers.[0-9]+.self_attn.k_proj", EVERY),
        ("k_proj.weight", "model.layers.[0-9]+.self_attn.k_proj.weight", EVERY),
        ("mlp.router", "model.layers.[0-9]+.mlp.router", range(0, 12, 3)),
        # One that begins the name of another.
        ("mlp.gate", "model.layers.[0-9]+.mlp.gate.weight", EVERY),
        # Wildcards.
        (".*k_proj", "model.layers.[0-9]+.self_attn.k_proj", EVERY),
        ("model.layers.*.self_attn.k_proj", "model.layers.[0-9]+.self_attn.k_proj", EVERY),
        ("model.layers.*k_proj", "model.layers.[0-9]+.self_attn.k_proj", EVERY),
        (".*k_proj.*", "model.layers.[0-9]+.self_attn.k_proj", EVERY),
        (".*k_proj.weight$", "model.layers.[0-9]+.self_attn.k_proj.weight", EVERY),
        (r".*\.self_attn\.k_proj", "model.layers.[0-9]+.self_attn.k_proj", EVERY),
        (r".*layers.(1|4)\..*k_proj", "model.layers.(1|4).self_attn.k_proj", [1, 4]),
        ("layers.[2-4].self_attn.k_proj", "model.layers.[2-4].self_attn.k_proj", [2, 3, 4]),
        # Spelling.
        (r"model\.layers\.1\.self_attn\.k_proj", "model.layers.1.self_attn.k_proj", [1]),
        (r"^model\.layers\.1\.self_attn\.k_proj\.weight$", "^model.layers.1.self_attn.k_proj.weight$", [1]),
        (r"model\.layers\.[0-9]+\.self_attn\.k_proj", "model.layers.[0-9]+.self_attn.k_proj", EVERY),
        ("model.layers[7].self_attn.k_proj", "model.layers.7.self_attn.k_proj", [7]),
        ("model.layers.{7}.self_attn.k_proj", "model.layers.7.self_attn.k_proj", [7]),
        ("model.layers.{3,11}.self_attn.k_proj", "model.layers.(3|11).self_attn.k_proj", [3, 11]),
        ("layers.{3..5}.self_attn.k_proj", "model.layers.(3|4|5).self_attn.k_proj", [3, 4, 5]),
        ("layers[3:5].self_attn.k_proj", "model.layers.(3|4).self_attn.k_proj", [3, 4]),
        ("layers.[:2].self_attn.k_proj", "model.layers.(0|1).self_attn.k_proj", [0, 1]),
        ("layers.[3,5].mlp.gate", "model.layers.(3|5).mlp.gate.weight", [3, 5]),
        ("layers.[8-10].self_attn.k_proj", "model.layers.(8|9|10).self_attn.k_proj", [8, 9, 10]),
        ("'model.layers.2.self_attn.k_proj '"[1:-1], "model.layers.2.self_attn.k_proj", [2]),
        # A module is no parameter.
        ("^model.layers.2.norm$", "model.layers.2.norm", [2]),
        ("model.layers.[2-4].mlp.gate$", "model.layers.[2-4].mlp.gate.weight", [2, 3, 4]),
        # Without their beginning, and with one that a wrapper or another class gives.
        ("layers.1.self_attn.k_proj", "model.layers.1.self_attn.k_proj", [1]),
        ("base_model.model.model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.k_proj", [1]),
        ("module._orig_mod.model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.k_proj", [1]),
        ("model.language_model.layers.1.self_attn.k_proj", "model.layers.1.self_attn.k_proj", [1]),
    ],
)
def test_the_proposal_selects_what_was_meant(entry: str, expected: str, layers: Sequence[int]) -> None:
    (problem,) = told([entry])
    assert problem.startswith(f"{entry} matches nothing: ")
    assert proposed(problem) == [expected]
    (own,) = {re.sub(r"model\.layers\.\d+\.", "", name) for name in selected([expected])}
    assert selected([expected]) == {f"model.layers.{i}.{own}" for i in layers}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("norm", "(all 12 layers)"),
        ("mlp.router", "(all 4 layers)"),
        (r".*layers.(1|4)\..*k_proj", "(2 layers)"),
        ("self_attn", "(all 12 layers)"),
    ],
)
def test_a_pattern_says_how_many_layers_it_trains(entry: str, words: str) -> None:
    (problem,) = told([entry])
    assert problem.endswith(words)


def test_a_part_of_several_types_has_an_entry_for_each_or_one_for_all() -> None:
    assert told(["q_"]) == ["q_ matches nothing"]  # two letters may be anything
    (problem,) = told(["self_attn.q_"])
    several = [f"model.layers.[0-9]+.self_attn.{own}" for own in ("q_norm", "q_proj")]
    assert proposed(problem) == several
    (problem,) = told([".*l.*t[eo]"])
    assert selected(proposed(problem)) == {name for name in DENSE.parameters if re.search("l.*t[eo]", name)}


# A module whose weight and bias another one's name begins like.
BIASED = model_of(
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.attn.{own}" for i in range(12) for own in ("q.weight", "q.bias", "q_norm.weight")),
    types=["attn.q", "attn.q_norm"],
)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("layers.1.attn.q", ["model.layers.1.attn.q.weight", "model.layers.1.attn.q.bias"]),
        ("layers.(1|4).attn.q", ["model.layers.(1|4).attn.q.weight", "model.layers.(1|4).attn.q.bias"]),
        ("attn.q", ["model.layers.[0-9]+.attn.q.weight", "model.layers.[0-9]+.attn.q.bias"]),
        ("attn.q[:4]", ["model.layers.[0-9]+.attn.q.weight[:4]", "model.layers.[0-9]+.attn.q.bias[:4]"]),
        # Layer 1, and not layers 10 and 11.
        ("layers.1", ["model.layers.1[.]"]),
        ("^layers.1$", ["model.layers.1[.]"]),
        ("layers.(0|1)", ["model.layers.(0|1)[.]"]),
        ("layers.7", ["model.layers.7"]),
    ],
)
def test_a_module_is_proposed_with_its_bias_and_without_what_only_begins_like_it(
    entry: str, expected: list[str]
) -> None:
    (problem,) = told([entry], BIASED)
    assert proposed(problem, BIASED) == expected


@pytest.mark.parametrize(
    "entry",
    [
        "model.vision_tower.encoder.layers.0.self_attn.q_proj",
        "mtp.layers.0.self_attn.q_proj",
        "visual.layers.0.norm",
        "text_model.encoder.layers.0.norm",
        "encoder.layers.[0-9]+.norm",
        "audio_tower.layers.0.norm.weight",
    ],
)
def test_a_layer_of_a_tower_is_not_replaced_by_one_of_the_text_model(entry: str) -> None:
    (problem,) = told([entry])
    (word,) = re.findall(
        "vision_tower|mtp|visual|encoder(?=.layers)|audio_tower", entry.replace("tower.encoder", "tower")
    )
    assert problem == f"{entry} matches nothing: this model has no {word}; leave it out"


@pytest.mark.parametrize(
    ("entry", "meant"),
    [
        ("model.layers.1.self_attn.K_proj", "model.layers.1.self_attn.k_proj"),
        ("Model.Layers.1.self_attn.k_proj", "model.layers.1.self_attn.k_proj"),
        ("model.layers.1.self_attn.q_nrom", "model.layers.1.self_attn.q_norm"),
        ("model.layers.1.self_attn.q_project", "model.layers.1.self_attn.q_proj"),
        ("model.layers.1.q_proj", "model.layers.1.self_attn.q_proj"),
        ("model.layers.1.attention.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"),
        ("model.layers.[0-9]+.q_proj", "model.layers.[0-9]+.self_attn.q_proj"),
        ("model.layers.(1|2).mlp.Gate[:4]", "model.layers.(1|2).mlp.gate.weight[:4]"),
        # Matrices that this model lacks are not misspelt.
        ("model.layers.1.self_attn.o_proj", None),
        ("self_attn.o_proj", None),
        ("model.layers.1.self_attn.v_norm", None),
        ("model.layers.1.mlp.fc1", None),
        ("model.layers.1.norm2", None),
    ],
)
def test_a_misspelt_name_is_asked_about_and_another_matrix_is_not(entry: str, meant: str | None) -> None:
    (problem,) = told([entry])
    if meant is None:
        assert problem == f"{entry} matches nothing"
    else:
        assert problem == f"{entry} matches nothing; did you mean {meant}?"
        assert proposed(problem) == [meant]


def test_rows_are_kept() -> None:
    assert proposed(told(["k_proj[:4]"])[0]) == ["model.layers.[0-9]+.self_attn.k_proj[:4]"]
    assert proposed(told(["layers.1.norm[2]"])[0]) == ["model.layers.1.norm[2]"]


def test_a_misspelt_type_is_told_with_its_pattern() -> None:
    (problem,) = told(["self_attn.k_prj"])
    assert problem.endswith("; did you mean model.layers.[0-9]+.self_attn.k_proj (all 12 layers)?")
    (problem,) = told(["model.layers.[0-9]+.self_attn.k_prj"])
    assert problem.endswith("; did you mean model.layers.[0-9]+.self_attn.k_proj?")
    (problem,) = told(["\u201cmodel.final_norm\u201d"])
    assert problem.endswith("; did you mean model.final_norm?")


def test_the_nearest_name_is_of_the_same_layer() -> None:
    (problem,) = told(["model.layers.11.self_attn.k_prj"])
    assert problem.endswith("; did you mean model.layers.11.self_attn.k_proj?")


def test_what_only_other_layers_have_is_not_found_in_this_one() -> None:
    # Only every third layer has one. Neither another layer's router nor another matrix of this layer is meant.
    assert told(["model.layers.1.mlp.router"]) == ["model.layers.1.mlp.router matches nothing"]


def test_of_two_towers_that_of_the_input_embedding_is_meant() -> None:
    info = model_of(
        *(f"{tower}.layers.0.self_attn.q_proj.weight" for tower in ("model.eye", "model.language")),
        "model.language.embed_tokens.weight",
    )
    info = replace(info, embedding="model.language.embed_tokens.weight")
    assert proposed(told(["model.layers.0.self_attn.q_proj"], info)[0], info) == [
        "model.language.layers.0.self_attn.q_proj"
    ]


def test_a_module_without_parameters_is_to_be_left_out() -> None:
    info = model_of("model.layers.0.norm.weight", "model.layers.1.norm.weight")
    modules = info.modules | {f"model.layers.{i}.act" for i in range(2)}
    info = ModelInfo(info.model_class, info.parameters, (), None, None, modules)
    (problem,) = told(["model.layers.0.act"], info)
    assert problem == "model.layers.0.act matches nothing: there are no parameters in it; leave it out"
    (problem,) = told(["model.layers.0.act", "model.layers.1.act"], info)
    assert problem.startswith("2 entries match nothing, for example model.layers.0.act: ")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        (["model.layers.12.norm"], "model.layers.12.norm matches nothing: "),
        (
            [f"model.layers.{i}.norm" for i in range(12, 40)],
            "28 entries match nothing, for example model.layers.12.norm",
        ),
        (["model.layers.2[0-9]+.norm"], "model.layers.2[0-9]+.norm matches nothing: "),
        # All of a layer: the whole model is not meant.
        (["model.layers.12"], "model.layers.12 matches nothing: "),
        (["layers.1[2-9]"], "layers.1[2-9] matches nothing: "),
        # And under another class's name; the router is in every third layer.
        (["layers.30.mlp.router", "layers.31.mlp.router"], "2 entries match nothing, for example layers.30.mlp.router"),
    ],
)
def test_a_list_for_a_deeper_model_says_so(entries: list[str], words: str) -> None:
    (problem,) = told(entries)
    assert problem.startswith(words)
    assert problem.endswith("the model has only model.layers.0 to 11; the list is for a deeper model")


def test_a_list_for_more_experts_says_so() -> None:
    info = model_of(*(f"model.layers.{i}.mlp.experts.{j}.up_proj.weight" for i in range(2) for j in range(4)))
    (problem,) = told(["model.layers.1.mlp.experts.4.up_proj"], info)
    assert problem.endswith("the model has only model.layers.1.mlp.experts.0 to 3; the list is for a larger model")


def test_layers_are_counted_and_not_matrices() -> None:
    info = model_of(*(f"model.layers.{i}.mlp.experts.{j}.up_proj.weight" for i in range(3) for j in range(4)))
    (problem,) = told(["up_proj"], info)
    assert problem.endswith("write model.layers.[0-9]+.mlp.experts.[0-9]+.up_proj (all 3 layers)")


def test_the_same_mistake_is_told_once() -> None:
    (problem,) = told([f"layers.{i}.norm" for i in EVERY])
    assert problem == (
        "12 entries match nothing: Axolotl matches from the beginning of a name; "
        "write model.layers.0.norm in place of layers.0.norm, and the others likewise"
    )
    (problem,) = told([rf"model\.layers\.{i}\.{own}" for i in EVERY for own in ("norm", "self_attn")])
    assert problem.startswith(
        "24 entries match nothing: Axolotl escapes dots itself; write model.layers.0.norm in place"
    )


def test_of_several_modules_named_as_parameters_one_problem_is_told() -> None:
    (problem,) = told(["^model.layers.1.norm$", "^model.layers.1.mlp$"])
    assert problem == (
        "2 entries match nothing: no parameter has one of these names alone: they are modules; "
        "write model.layers.1.norm in place of ^model.layers.1.norm$, and the others likewise"
    )


def test_each_problem_tells_its_reason_in_the_order_of_the_entries() -> None:
    first, second, third, fourth = told(["norm", "layers.1.norm", "k_proj", ".*q_proj", "layers.2.norm"])
    assert first.startswith("norm matches nothing: Axolotl matches from the beginning")
    assert second.startswith("2 entries match nothing: Axolotl matches from the beginning")
    assert third.startswith("k_proj matches nothing: Axolotl matches from the beginning")
    assert fourth.startswith(".*q_proj matches nothing: a dot is a dot to Axolotl, unless + follows; write ")


def test_lines_that_yaml_joins_are_told(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("x: 1\nunfrozen_parameters:\n- model.layers.0.norm\n  - model.layers.1.norm\n- model.final_norm\n")
    (problem,) = check_list(read_list(path), DENSE).problems
    assert problem.endswith("YAML joins lines of unequal indentation; indent every entry alike")


def test_of_many_types_all_are_told_up_to_a_limit() -> None:
    types = [f"t{i:02}" for i in range(30)]
    info = model_of(*(f"model.layers.{i}.{t}.weight" for i in range(2) for t in types))
    assert len([text for text in told(types[:10], info) if "; write model.layers.[0-9]+.t0" in text]) == 10
    *_, rest = told(types, info)
    assert rest == "20 more entries match nothing, perhaps for the same reasons"


def test_a_tied_name_is_replaced_by_its_owner() -> None:
    names = ("model.embed_tokens.weight", "lm_head.weight")
    info = model_of(*names, tied={"lm_head.weight": "model.embed_tokens.weight"})
    (problem,) = told(["head.old"], info, lambda name: name.replace("head.old", "lm_head"))
    assert proposed(problem, info) == ["^model.embed_tokens.weight$"]


def test_many_unlike_entries_take_no_longer_than_few(tmp_path: Path) -> None:
    calls = []

    def counted(name: str) -> str:
        calls.append(name)
        return name

    begin = time.monotonic()
    told([f"a{i}.layers.{i}.b{i}.c" for i in range(5000)], DENSE, counted)
    assert len(calls) < 20_000
    assert time.monotonic() - begin < 30


def counted(monkeypatch: pytest.MonkeyPatch, where: object, name: str) -> list[None]:
    """A list that grows by one with every call of this function."""
    calls: list[None] = []
    function = getattr(where, name)

    def counting(*args: object) -> object:
        calls.append(None)
        return function(*args)

    monkeypatch.setattr(where, name, counting)
    return calls


def test_of_entries_with_the_same_mistake_only_the_first_is_matched(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, matching, "matched")
    (problem,) = told([f"layers.(0|{i}).norm" for i in range(1, 12)])
    assert problem.startswith("11 entries match nothing")
    assert len(calls) < 10


def test_of_an_entry_with_hundreds_of_indexes_none_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, ModelNames, "stack_of")
    told([".".join(["0"] * 900)])
    assert calls == []
    told(["a.0.1"])
    assert calls


# The model's own mapping.


@pytest.fixture(scope="module")
def described(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Described]]:
    found: dict[str, tuple[Path, Described]] = {}

    def of(architecture: str) -> tuple[Path, Described]:
        if architecture not in found:
            directory = tmp_path_factory.mktemp("models") / architecture
            built(architecture).save_pretrained(directory)
            info, _, renamed = describe_model(str(directory), revision=None, model_class=None, trust_remote_code=False)
            found[architecture] = directory, (info, renamed)
        return found[architecture]

    return of


FILES = "names? of the weight files or of an older transformers"
CLASS = "names? of another class or a wrapper"
EXPERTS = "transformers 5 keeps all experts of a layer in one parameter"
FROM_THE_START = "Axolotl matches from the beginning of a name"

# Of an architecture: entries with the same mistake, the reason, and what is proposed for the first.
FORMER = [
    ("llava", ["language_model.model.layers.{}.mlp.up_proj"], FILES, "model.language_model.layers.0.mlp.up_proj"),
    ("gemma3", ["language_model.model.layers.{}.mlp.up_proj"], FILES, "model.language_model.layers.0.mlp.up_proj"),
    ("qwen2.5-vl", ["model.layers.{}.mlp.up_proj"], FILES, "model.language_model.layers.0.mlp.up_proj"),
    # The language model's own class; its layers are not those of the vision tower, whose names end the same way.
    ("llava", ["model.layers.{}.self_attn.q_proj"], CLASS, "model.language_model.layers.0.self_attn.q_proj"),
    ("gemma3", ["model.layers.{}.self_attn.q_proj"], CLASS, "model.language_model.layers.0.self_attn.q_proj"),
    ("gpt2", ["h.{}.attn.c_attn"], FROM_THE_START, "transformer.h.0.attn.c_attn"),
    ("mixtral", ["model.layers.{}.block_sparse_moe.gate"], FILES, "model.layers.0.mlp.gate"),
    (
        "mixtral",
        [f"model.layers.{{}}.block_sparse_moe.experts.{i}.w3" for i in range(4)],
        EXPERTS,
        "model.layers.0.mlp.experts.gate_up_proj",
    ),
    (
        "mixtral",
        [f"model.layers.{{}}.block_sparse_moe.experts.{i}" for i in range(4)],
        EXPERTS,
        "model.layers.0.mlp.experts",
    ),
    (
        "mixtral",  # with the experts' names of other classes
        [f"model.layers.{{}}.mlp.experts.{i}.gate_proj" for i in range(4)],
        EXPERTS,
        "model.layers.0.mlp.experts.gate_up_proj",
    ),
    ("mixtral", ["model.layers.{}.mlp.experts.2.down_proj.weight"], EXPERTS, "model.layers.0.mlp.experts.down_proj"),
    ("mixtral", ["layers.{}.mlp.experts.2.up_proj"], EXPERTS, "model.layers.0.mlp.experts.gate_up_proj"),
    (
        "qwen3-moe",
        [f"model.layers.{{}}.mlp.experts.{i}.down_proj.weight" for i in range(4)],
        EXPERTS,
        "model.layers.0.mlp.experts.down_proj",
    ),
]


@pytest.mark.parametrize(("architecture", "forms", "reason", "expected"), FORMER, ids=lambda value: str(value)[:30])
def test_former_names_are_replaced_by_todays(
    architecture: str,
    forms: list[str],
    reason: str,
    expected: str,
    described: Callable[[str], tuple[Path, Described]],
) -> None:
    _, (info, renamed) = described(architecture)
    entries = [form.format(i) for i in range(2) for form in forms]
    (problem,) = told(entries, info, renamed)
    assert problem.startswith(f"{len(entries)} entries match nothing: ")
    assert re.search(reason, problem)
    assert f"; write {expected} in place of {entries[0]}, " in problem
    assert selected([expected], info)
    (single,) = told(entries[:1], info, renamed)
    assert proposed(single, info) == [expected]
    # And in a model that has not so many layers.
    (deeper,) = told([form.format(70) for form in forms], info, renamed)
    assert deeper.endswith("the list is for a deeper model")


@pytest.mark.parametrize(
    ("architecture", "entry", "expected"),
    [
        ("mixtral", "model.layers.[0-9]+.block_sparse_moe.gate", ["model.layers.[0-9]+.mlp.gate"]),
        (
            "mixtral",
            "model.layers.(0|1).block_sparse_moe.experts.[0-9]+.w2",
            ["model.layers.(0|1).mlp.experts.down_proj"],
        ),
        ("mixtral", "block_sparse_moe.gate", ["model.layers.[0-9]+.mlp.gate"]),
        ("llava", "language_model.model.layers.*.mlp.up_proj", ["model.language_model.layers.[0-9]+.mlp.up_proj"]),
        ("llava", "language_model.lm_head", ["lm_head"]),
        ("llava", "model.norm", ["model.language_model.norm"]),
        ("llava", "^model.embed_tokens.weight$", ["^model.language_model.embed_tokens.weight$"]),
        (
            "llava",
            "self_attn.q_proj",
            [
                "model.language_model.layers.[0-9]+.self_attn.q_proj",
                "model.vision_tower.encoder.layers.[0-9]+.self_attn.q_proj",
            ],
        ),
    ],
)
def test_former_patterns_are_replaced_by_todays(
    architecture: str, entry: str, expected: list[str], described: Callable[[str], tuple[Path, Described]]
) -> None:
    _, (info, renamed) = described(architecture)
    (problem,) = told([entry], info, renamed)
    assert proposed(problem, info) == expected
    assert all(selected([one], info) for one in expected)


@pytest.mark.parametrize(
    ("architecture", "entry", "words"),
    [
        ("mixtral", "model.layers.70", "; the list is for a deeper model"),
        ("gpt2", "transformer.h.70", "; the list is for a deeper model"),
        ("llava", "language_model.model.layers.70", "; the list is for a deeper model"),
        ("llava", "model.vision_tower.encoder.layers.70", "; the list is for a deeper model"),
        ("llava", "model.layers.0.mlp.fc1", "model.layers.0.mlp.fc1 matches nothing"),
        ("gpt2", "transformer.h.0.attn.q_proj", "transformer.h.0.attn.q_proj matches nothing"),
    ],
)
def test_what_a_model_does_not_have_is_not_replaced(
    architecture: str, entry: str, words: str, described: Callable[[str], tuple[Path, Described]]
) -> None:
    _, (info, renamed) = described(architecture)
    (problem,) = told([entry], info, renamed)
    assert problem.endswith(words)
    assert "write" not in problem


# Axolotl itself.


@pytest.mark.slow
def test_axolotl_trains_what_is_proposed_and_not_what_was_written(
    described: Callable[[str], tuple[Path, Described]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    written = {
        "llama": [
            "input_layernorm",
            "mlp.down_proj",
            ".*q_proj",
            "model.layers.*.mlp.up_proj",
            r"model\.layers\.1\.mlp",
        ],
        "mixtral": ["model.layers.[0-9]+.block_sparse_moe.gate", "model.layers.1.block_sparse_moe.experts.3.w2"],
        "llava": ["language_model.model.layers.1.mlp.up_proj", "model.layers.0.self_attn.k_proj", "down_proj"],
    }
    wheels = install(WHEELS, tmp_path_factory.mktemp("axolotl"))
    tasks, expected = [], []
    for architecture, entries in written.items():
        directory, (info, renamed) = described(architecture)
        for entry in entries:
            (problem,) = told([entry], info, renamed)
            tasks += [Task("freeze_layers_except", str(directory), form) for form in ([entry], proposed(problem, info))]
            expected += [set[str](), selected(proposed(problem, info), info)]
    assert all(expected[1::2])
    assert trainable(wheels, tasks, tmp_path_factory.mktemp("tasks")) == expected
