"""The top percent of each layer type, or of all parameters: how many, which ones, and what of them trains."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from math import inf, isnan, nan, prod
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from spectrum.errors import ResultsError, SelectionError
from spectrum.layer_types import layer_types
from spectrum.records import LayerSnr, Parameter, ScanResult, group_by_type
from spectrum.selection.selection import Selection, parse_percent, top_params, top_percent
from spectrum.text import aligned, html
from tests.helpers.records import PROVENANCE


def result(*snrs: float, kind: str = "t") -> ScanResult:
    """A scan of one type, whose layers are named by their place in the model."""
    return ScanResult("m", tuple(LayerSnr(str(i), kind, snr) for i, snr in enumerate(snrs)), (), (kind,), None)


def selected(scan: ScanResult, percent: str) -> list[str]:
    (kind,) = top_percent(scan, percent).types
    return [layer.name for layer in kind.selected]


@pytest.mark.parametrize(
    ("percent", "layers", "expected"),
    [
        ("50", 3, 1),
        ("25", 32, 8),
        ("100", 7, 7),
        ("1", 99, 0),
        ("1", 100, 1),
        (".5", 200, 1),
        ("33.333", 3, 0),
        # As a binary float this is 122.99999999999999 layers.
        ("12.3", 1000, 123),
        ("0.07", 10000, 7),
        # Just under a whole layer is no layer, however many digits say so.
        ("99." + "9" * 17, 1, 0),
    ],
)
def test_the_count_is_the_exact_floor_of_the_percentage(percent: str, layers: int, expected: int) -> None:
    assert len(selected(result(*[1.0] * layers), percent)) == expected


def test_a_list_of_nothing_is_not_written(tmp_path: Path) -> None:
    # Trainers take it as no list, and train everything.
    with pytest.raises(SelectionError, match=r"nothing to train: .* 4, so 25 percent is the least that selects"):
        top_percent(result(1, 2, 3, 4), "24", embeddings=False).to_yaml(tmp_path / "list.yaml")
    assert not (tmp_path / "list.yaml").exists()
    top_percent(result(1, 2, 3, 4), "25", embeddings=False).to_yaml(tmp_path / "list.yaml")
    assert (tmp_path / "list.yaml").exists()


def test_each_type_has_its_own_share_and_the_percent_stays_as_typed() -> None:
    layers = [
        LayerSnr(f"{kind}{i}", kind, float(i)) for kind, count in (("b", 5), ("a", 2), ("c", 1)) for i in range(count)
    ]
    selection = top_percent(ScanResult("m", tuple(layers), (), ("b", "a", "c"), None), "50.0")
    assert selection.percent == "50.0"
    assert [(kind.layer_type, [layer.name for layer in kind.selected]) for kind in selection.types] == [
        ("b", ["b4", "b3"]),
        ("a", ["a1"]),
        ("c", []),
    ]


def test_ties_go_in_model_order() -> None:
    assert selected(result(1.0, 2.0, 1.0, 2.0, 1.0, 2.0), "100") == ["1", "3", "5", "0", "2", "4"]
    assert selected(result(*[1.0] * 12), "25") == ["0", "1", "2"]


def test_infinity_comes_first() -> None:
    assert selected(result(5.0, inf, 7.0, inf), "75") == ["1", "3", "2"]


def test_nan_is_neither_counted_nor_selected() -> None:
    scan = result(nan, 1.0, nan, 2.0, nan, 3.0)
    assert selected(scan, "100") == ["5", "3", "1"]
    # Of three layers, not of six.
    assert selected(scan, "50") == ["5"]
    assert selected(result(nan, nan), "100") == []


@pytest.mark.parametrize("percent", ["0", "-1", "100.0000001", "101", "1e3", "inf", "nan"])
def test_a_percentage_outside_its_range_is_refused(percent: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(percent))):
        top_percent(result(1.0), percent)


@settings(deadline=None)
@given(
    st.lists(st.floats(min_value=0) | st.sampled_from([nan, inf, 0.0, 1.0])),
    st.decimals(0, 100, places=3).filter(lambda percent: percent > 0),
)
def test_no_selected_layer_has_a_lower_snr_than_one_left_behind(snrs: list[float], percent: object) -> None:
    scan = result(*snrs)
    for kind in top_percent(scan, str(percent)).types:
        behind = [layer for layer in scan.layers if layer not in kind.selected and not isnan(layer.snr)]
        assert not any(isnan(layer.snr) for layer in kind.selected)
        assert len(kind.selected) == (len(behind) + len(kind.selected)) * Fraction(str(percent)) // 100
        assert sorted(kind.selected, key=lambda layer: -layer.snr) == list(kind.selected)
        if kind.selected and behind:
            assert min(layer.snr for layer in kind.selected) >= max(layer.snr for layer in behind)


# Percentages as they are typed.


@pytest.mark.parametrize(
    "text", ["1", "100", "25", "12.5", "12.50", "025", ".5", "0.001", "100.000", "1" * 2, "0.000000000000000001"]
)
def test_a_percentage_stays_as_it_is_typed(text: str) -> None:
    assert parse_percent(text) == text


@pytest.mark.parametrize(("text", "number"), [("25%", "25"), ("12.50 %", "12.50"), (".5%", ".5")])
def test_a_percentage_may_have_its_sign(text: str, number: str) -> None:
    assert parse_percent(text) == number


REFUSED = [
    *("", " ", "0", "0.0", ".0", "-1", "+1", "100.1", "101", "1000", "1e1", "inf", "nan", "abc", "1_0", "1,5"),
    *("%", "50%%", "101%"),
    *("5.", ".", " 5", "5\n", "1/2", "0x10", "\N{ARABIC-INDIC DIGIT FIVE}", "\N{SUPERSCRIPT TWO}", "../5"),
    # Part of a file's name, whose length is limited.
    "1." + "0" * 23,
]


@pytest.mark.parametrize("text", REFUSED, ids=ascii)
def test_what_is_no_percentage_is_refused_as_it_was_typed(text: str) -> None:
    with pytest.raises(ValueError, match="over 0 and at most 100") as refused:
        parse_percent(text)
    assert repr(text) in str(refused.value)


def test_a_percentage_has_24_characters_at_most() -> None:
    assert len(parse_percent("1." + "0" * 22)) == 24
    with pytest.raises(ValueError, match="is expected"):
        parse_percent("1." + "0" * 23)


# What a selection trains.


def model(
    scores: Mapping[str, float],
    parameters: Mapping[str, Parameter],
    head: str | None = None,
    embedding: str | None = None,
) -> ScanResult:
    """A scan of a model that has these parameters."""
    info = replace(PROVENANCE.info, head=head, embedding=embedding, parameters=parameters)
    made = replace(PROVENANCE, info=info)
    types = layer_types(scores)
    layers = tuple(LayerSnr(name, types[name], snr) for name, snr in scores.items())
    return ScanResult("org/m", layers, (), tuple(group_by_type(layers)), made)


def sized(*shape: int, tied_to: str | None = None) -> Parameter:
    return Parameter(shape, "bfloat16", tied_to)


# Its head is tied to its embedding; a stack of experts is a parameter without a module of its own.
MODEL = model(
    {
        "h.0.up": 1.0,
        "h.1.up": 3.0,
        "h.2.up": 2.0,
        "h.3.up": 0.5,
        "h.0.experts.gate": 2.0,
        "h.1.experts.gate": 1.0,
        "lm_head": 0.1,
        "model.embed_tokens": 0.1,
    },
    {
        **{f"h.{i}.up.weight": sized(10, 20) for i in range(4)},
        "h.1.up.bias": sized(10),
        **{f"h.{i}.experts.gate": sized(3, 5, 7) for i in range(2)},
        "h.0.experts.gate_bias": sized(3, 5),
        **{f"h.{i}.norm.weight": sized(20) for i in range(2)},
        "lm_head.weight": sized(50, 20, tied_to="model.embed_tokens.weight"),
        "model.embed_tokens.weight": sized(50, 20),
    },
    "lm_head.weight",
    "model.embed_tokens.weight",
)


def test_layers_are_those_selected_by_descending_snr() -> None:
    assert top_percent(MODEL, "50").layers() == {
        "up": ["h.1.up", "h.2.up"],
        "experts.gate": ["h.0.experts.gate"],
        "lm_head": [],
        "model.embed_tokens": [],
    }


def test_only_the_types_asked_for_are_selected_from() -> None:
    assert top_percent(MODEL.only(["experts.gate", "up"]), "50").layers() == {
        "up": ["h.1.up", "h.2.up"],
        "experts.gate": ["h.0.experts.gate"],
    }
    assert top_percent(MODEL.only(["lm_head"]), "100").layers() == {"lm_head": ["lm_head"]}
    assert top_percent(MODEL.only([]), "100").layers() == {}


def test_each_layer_trains_its_own_parameters_and_no_others() -> None:
    assert top_percent(MODEL, "50").parameters() == {
        "h.1.up": ["h.1.up.weight", "h.1.up.bias"],
        "h.2.up": ["h.2.up.weight"],
        "h.0.experts.gate": ["h.0.experts.gate", "h.0.experts.gate_bias"],
    }


def test_of_a_layer_of_which_no_more_is_known_the_weight_trains() -> None:
    bare = replace(MODEL, provenance=None)
    assert top_percent(bare, "50").parameters() == {
        "h.1.up": ["h.1.up.weight"],
        "h.2.up": ["h.2.up.weight"],
        "h.0.experts.gate": ["h.0.experts.gate.weight"],
    }
    # Other versions of transformers may have given the module another name.
    assert MODEL.provenance is not None
    known = {name: own for name, own in MODEL.provenance.info.parameters.items() if not name.startswith("h.2.")}
    renamed = replace(
        MODEL, provenance=replace(MODEL.provenance, info=replace(MODEL.provenance.info, parameters=known))
    )
    assert top_percent(renamed, "50").parameters()["h.2.up"] == ["h.2.up.weight"]


def test_embeddings_train_first_and_once_or_never() -> None:
    both = ["lm_head.weight", "model.embed_tokens.weight"]
    layers = ["h.1.up.weight", "h.1.up.bias", "h.2.up.weight", "h.0.experts.gate", "h.0.experts.gate_bias"]
    assert top_percent(MODEL, "50").trained() == [*both, *layers]
    assert top_percent(MODEL, "50", embeddings=False).trained() == layers
    everything = top_percent(MODEL, "100")
    assert (everything.trained()[:2], everything.trained().count(both[0])) == (both, 1)
    assert everything.parameters().keys() >= {"lm_head", "model.embed_tokens"}
    never = top_percent(MODEL, "100", embeddings=False)
    assert not {*never.trained()} & {*both}
    assert never.layers()["lm_head"] == never.layers()["model.embed_tokens"] == []
    assert never.embedding_parameters() == ()


@pytest.mark.parametrize(
    ("head", "embedding", "expected"),
    [
        ("lm_head.weight", "model.embed_tokens.weight", ("lm_head.weight", "model.embed_tokens.weight")),
        (None, "model.embed_tokens.weight", ("model.embed_tokens.weight",)),
        # The head keeps its line, and the parameter that has its values gets one.
        ("lm_head.weight", None, ("lm_head.weight", "model.embed_tokens.weight")),
        (None, None, ()),
    ],
)
def test_a_model_may_lack_head_or_embedding(head: str | None, embedding: str | None, expected: tuple[str, ...]) -> None:
    assert MODEL.provenance is not None
    info = replace(MODEL.provenance.info, head=head, embedding=embedding)
    scan = replace(MODEL, provenance=replace(MODEL.provenance, info=info))
    assert top_percent(scan, "50").embedding_parameters() == expected
    assert top_percent(scan, "50").trained()[: len(expected)] == list(expected)


def test_embeddings_of_unknown_provenance_are_llamas() -> None:
    bare = replace(MODEL, provenance=None)
    assert top_percent(bare, "50").embedding_parameters() == ("lm_head.weight", "model.embed_tokens.weight")
    assert top_percent(bare, "100", embeddings=False).layers()["lm_head"] == []


SHARED = {
    "shared.weight": sized(50, 20),
    "encoder.embed_tokens.weight": sized(50, 20, tied_to="shared.weight"),
    "decoder.embed_tokens.weight": sized(50, 20, tied_to="shared.weight"),
    "lm_head.weight": sized(50, 20, tied_to="shared.weight"),
    "h.0.up.weight": sized(10, 20),
    "h.0.down.weight": sized(10, 20, tied_to="h.0.up.weight"),
}


@pytest.mark.parametrize(
    ("head", "embedding", "frozen"),
    [
        ("lm_head.weight", "shared.weight", ["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"]),
        (None, "shared.weight", ["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"]),
        # Whichever of the names the model calls its embedding.
        (None, "decoder.embed_tokens.weight", ["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"]),
        ("h.0.down.weight", None, ["h.0.up", "h.0.down"]),
        (None, None, []),
    ],
)
def test_a_layer_tied_to_the_embedding_is_one(head: str | None, embedding: str | None, frozen: list[str]) -> None:
    names = [name.removesuffix(".weight") for name in SHARED]
    scan = model(dict.fromkeys(names, 1.0), SHARED, head, embedding)
    without = top_percent(scan, "100", embeddings=False)
    assert [name for group in without.layers().values() for name in group] == [n for n in names if n not in frozen]
    assert not {f"{name}.weight" for name in frozen} & {*without.trained()}
    assert [name for group in top_percent(scan, "100").layers().values() for name in group] == names


@pytest.mark.parametrize("embeddings", [True, False])
def test_the_list_for_axolotl_is_written_where_it_is_wanted(embeddings: bool, tmp_path: Path) -> None:
    chosen = top_percent(MODEL, "50", embeddings=embeddings)
    for path in (tmp_path / "a" / "list.yaml", str(tmp_path / "list.yaml")):
        assert chosen.to_yaml(path) == Path(path)
        text = Path(path).read_text()
        patterns = [re.compile(entry) for entry in yaml.safe_load(text)["unfrozen_parameters"]]
        assert MODEL.provenance is not None
        names = MODEL.provenance.info.parameters
        assert {n for n in names if any(pattern.match(n) for pattern in patterns)} == {*chosen.trained()}
    assert text.splitlines()[1:3] == (
        ["- ^lm_head.weight$", "- ^model.embed_tokens.weight$"] if embeddings else ["# up layers", "- h.1.up"]
    )


def test_a_list_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match=r"cannot write .*list\.yaml"):
        top_percent(MODEL, "50").to_yaml(tmp_path / "file" / "list.yaml")


def test_a_row_for_each_type_says_how_many_and_from_where_to_where() -> None:
    head, *rows, total = top_percent(MODEL, "50").rows()
    assert head[:4] == ("layer type", "selected", "lowest SNR", "highest SNR")
    assert [row[:4] for row in rows] == [
        ("up", "2 of 4", "0.5", "3"),
        ("experts.gate", "1 of 2", "1", "2"),
        ("lm_head", "0 of 1", "0.1", "0.1"),
        ("model.embed_tokens", "0 of 1", "0.1", "0.1"),
    ]
    assert total[:4] == ("total", "3 of 8", "", "")
    assert {len(row) for row in (*rows, total)} == {len(head)}


def test_a_type_of_which_nothing_was_scored_has_no_range() -> None:
    (_, row, _) = top_percent(result(nan, nan), "100").rows()
    assert row[:4] == ("t", "0 of 0", "", "")


@pytest.mark.parametrize(("embeddings", "word"), [(True, "with"), (False, "without")])
def test_a_selection_is_shown_with_its_table(embeddings: bool, word: str) -> None:
    chosen = top_percent(replace(MODEL, model="org/<b>m</b>"), "50.0", embeddings=embeddings)
    title = f"Top 50.0 percent of org/<b>m</b>, {word} input embedding and output head"
    meaning = "margin: how far the best layer left out scores below the lowest one selected"
    assert repr(chosen) == f"{title}\n\n{aligned(chosen.rows())}\n\n{meaning}"
    shown = chosen._repr_html_()
    assert title.replace("<", "&lt;").replace(">", "&gt;") in shown
    assert f"{html(chosen.rows())}\n<p>{meaning}</p>" in shown
    assert "<b>" not in shown


# A share of all parameters.


def elements(names: set[str], parameters: Mapping[str, Parameter]) -> int:
    """How many elements parameters have; values that several share, once."""
    owners = {parameters[name].tied_to or name for name in names if name in parameters}
    return sum(prod(parameters[name].shape) for name in owners)


def every_selection(scan: ScanResult, embeddings: bool) -> list[tuple[Fraction, set[str], set[str]]]:
    """For each percentage at which some type gets one layer more: the layers, and the parameters that train."""
    made = scan.info
    assert made is not None
    ends = {name for name in (made.head, made.embedding) if name is not None}
    values = {made.parameters[name].tied_to or name for name in ends}
    groups = group_by_type(scan.layers)
    found = []
    for percent in sorted({Fraction(100 * i, len(g)) for g in groups.values() for i in range(1, len(g) + 1)}):
        layers = set()
        for group in groups.values():
            ranked = sorted(group, key=lambda layer: -layer.snr)
            layers |= {layer.name for layer in ranked[: int(len(ranked) * percent / 100)]}
        if not embeddings:
            own = {name: made.parameters.get(f"{name}.weight", sized()).tied_to or f"{name}.weight" for name in layers}
            layers = {name for name in layers if own[name] not in values}
        names = {f"{name}.{own}" for name in layers for own in ("weight", "bias")} & made.parameters.keys()
        found.append((percent, layers, names | (ends if embeddings else set())))
    return found


@st.composite
def models(draw: st.DrawFn) -> ScanResult:
    """A few types of a few layers of any size, with biases, ties, an embedding and a head or neither."""
    sizes = st.integers(1, 40)
    parameters: dict[str, Parameter] = {}
    scores: dict[str, float] = {}
    for kind in range(draw(st.integers(1, 3))):
        for i in range(draw(st.integers(1, 9))):
            name = f"h.{i}.kind{kind}"
            scores[name] = draw(st.sampled_from([0.0, 0.5, 1.0, inf]) | st.floats(0, 10))
            tied_to = f"h.0.kind{kind}.weight" if i and draw(st.integers(0, 4)) == 0 else None
            shape = parameters[tied_to].shape if tied_to else (draw(sizes), draw(sizes))
            parameters[f"{name}.weight"] = Parameter(shape, "bfloat16", tied_to)
            if draw(st.booleans()):
                parameters[f"{name}.bias"] = sized(draw(sizes))
    head = embedding = None
    if draw(st.booleans()):
        embedding = "model.embed_tokens.weight"
        parameters[embedding] = sized(draw(sizes), draw(sizes))
        scores["model.embed_tokens"] = 1.0
    if embedding and draw(st.booleans()):
        head = "lm_head.weight"
        shape = parameters[embedding].shape
        parameters[head] = draw(st.sampled_from([sized(*shape), sized(*shape, tied_to=embedding)]))
        scores["lm_head"] = 1.0
    parameters["norm.weight"] = sized(draw(sizes))  # which no selection trains
    return model(scores, parameters, head, embedding)


def trained_elements(chosen: Selection) -> int:
    assert chosen.result.provenance is not None
    return elements({*chosen.trained()}, chosen.result.provenance.info.parameters)


def layers_of(chosen: Selection) -> set[str]:
    return {name for names in chosen.layers().values() for name in names}


@settings(max_examples=300, deadline=None)
@given(models(), st.decimals("0.01", 100, places=2), st.booleans())
def test_the_largest_selection_not_over_a_share_of_the_parameters_is_found(
    scan: ScanResult, percent: object, embeddings: bool
) -> None:
    assert scan.provenance is not None
    parameters = scan.provenance.info.parameters
    most = elements({*parameters}, parameters) * Fraction(str(percent)) / 100
    fitting = [
        (elements(names, parameters), layers)
        for _, layers, names in every_selection(scan, embeddings)
        if elements(names, parameters) <= most
    ]
    if not fitting:
        with pytest.raises(SelectionError, match="the smallest selection trains"):
            top_params(scan, str(percent), embeddings=embeddings)
        return
    chosen = top_params(scan, str(percent), embeddings=embeddings)
    size = max(size for size, _ in fitting)
    assert trained_elements(chosen) == size
    assert layers_of(chosen) in [layers for of, layers in fitting if of == size]
    # What it says is its percentage, typed, is the same selection.
    assert chosen.embeddings is embeddings
    assert top_percent(scan, chosen.percent, embeddings=embeddings) == chosen
    assert not has_needless_digits(chosen)


def has_needless_digits(chosen: Selection) -> bool:
    """Whether a number of fewer decimal places is a percentage of the same counts; one place fewer is the nearest."""
    whole, _, places = chosen.percent.partition(".")
    if not places:
        return whole != str(int(whole))
    step = Fraction(1, 10 ** (len(places) - 1))
    around = Fraction(chosen.percent) // step * step
    counts = [kind.num_selected for kind in chosen.types]
    return any(
        [int(len(kind.layers) * percent / 100) for kind in chosen.types] == counts
        for percent in (around, around + step)
        if 0 < percent <= 100
    )


@pytest.mark.parametrize(
    ("counts", "share", "percent"),
    [
        # Every layer is 1 percent of the model; of each type so many, in equal shares.
        ([8], "8", "100"),
        ([8], "7.99", "88"),  # from 87.5 on
        ([8], "1", "13"),
        ([3], "1", "34"),
        ([40], "1", "3"),  # 2.5 to under 5
        ([2, 3], "1", "34"),
        ([2, 3], "2", "50"),
        ([2, 3], "3", "67"),
        ([99], "1", "2"),
        ([49, 50], "1", "2"),
        ([49, 50], "2", "3"),
        ([49, 50], "3", "4"),
        ([49, 50], "4", "5"),
        # 4 of 49 and 2 of 36 are from 8.163 on, 3 of 36 from 8.333: there is no whole number between.
        ([49, 36], "5", "7"),
        ([49, 36], "6", "8.2"),
        ([49, 36], "7", "9"),
    ],
    ids=str,
)
def test_the_percentage_is_the_shortest_that_gives_the_selection(counts: list[int], share: str, percent: str) -> None:
    names = [f"h.{i}.kind{kind}" for kind, count in enumerate(counts) for i in range(count)]
    parameters = {f"{name}.weight": sized(1, 2) for name in names} | {"rest": sized(200 - 2 * len(names))}
    chosen = top_params(model(dict.fromkeys(names, 1.0), parameters), share)
    assert chosen.percent == percent
    assert len(layers_of(chosen)) <= Fraction(share)


def test_values_that_parameters_share_are_counted_once() -> None:
    # 1000 of 2000 elements are those of the embedding, by either name, 250 of each layer; two share theirs.
    parameters = {
        "model.embed_tokens.weight": sized(1000),
        "lm_head.weight": sized(1000, tied_to="model.embed_tokens.weight"),
        "h.0.up.weight": sized(250),
        "h.1.up.weight": sized(250),
        "h.2.up.weight": sized(250),
        "h.3.up.weight": sized(250, tied_to="h.2.up.weight"),
        "rest": sized(250),
    }
    scores = {"h.0.up": 1.0, "h.1.up": 2.0, "h.2.up": 4.0, "h.3.up": 3.0}
    scan = model(scores, parameters, "lm_head.weight", "model.embed_tokens.weight")
    # With embeddings: half the parameters and the two that share are 62.5 percent, a third makes 75.
    assert top_params(scan, "62.5").percent == "50"
    assert top_params(scan, "74.99").percent == "50"
    assert top_params(scan, "75").percent == "75"
    assert top_params(scan, "87.5").percent == top_params(scan, "100").percent == "100"
    # Without: 12.5 percent for one or the two, 25 for three.
    assert top_params(scan, "12.5", embeddings=False).percent == "50"
    assert top_params(scan, "25", embeddings=False).percent == "75"


def test_layers_are_taken_from_the_wanted_types_alone() -> None:
    names = [f"h.{i}.{kind}" for kind in ("up", "down") for i in range(10)]
    parameters = {f"{name}.weight": sized(5, 1) for name in names}
    scan = model(dict.fromkeys(names, 1.0), parameters)
    chosen = top_params(scan.only(["up"]), "30")
    assert (chosen.percent, [kind.layer_type for kind in chosen.types]) == ("60", ["up"])
    assert top_params(scan, "30").percent == "30"


@pytest.mark.parametrize("embeddings", [True, False])
def test_a_share_that_the_smallest_selection_exceeds_is_refused(embeddings: bool) -> None:
    # One of four layers is 10 of 100 elements, the embedding 60.
    names = [f"h.{i}.up" for i in range(4)]
    parameters = {**{f"{name}.weight": sized(10) for name in names}, "wte.weight": sized(60)}
    scan = model(dict.fromkeys(names, 1.0), parameters, None, "wte.weight")
    least = "70" if embeddings else "10"
    assert top_params(scan, least, embeddings=embeddings).percent == "25"
    with pytest.raises(SelectionError, match=f"trains {least} percent of all parameters, not 9.99") as refused:
        top_params(scan, "9.99", embeddings=embeddings)
    assert ("--no-embeddings" in str(refused.value)) is embeddings


def test_a_share_of_parameters_whose_sizes_are_not_known_is_refused() -> None:
    with pytest.raises(SelectionError, match="does not say how large its parameters are; scan again with --rescan"):
        top_params(replace(MODEL, provenance=None), "50")


def test_of_no_layers_there_is_no_share() -> None:
    with pytest.raises(SelectionError, match="no layer to select"):
        top_params(replace(MODEL, layers=()), "50")
    with pytest.raises(SelectionError, match="no layer to select"):
        top_params(MODEL.only([]), "50")


@pytest.mark.parametrize("percent", ["0", "101", "abc"])
def test_a_share_outside_its_range_is_refused(percent: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(percent))):
        top_params(MODEL, percent)
