"""The page writes what the command writes for models whose names begin, end or hold others, or look like numbers."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest

from spectrum.records import LayerSnr, ModelInfo, Parameter, Provenance, ScanResult, layer_name
from tests.helpers.browser import needs_browser
from tests.helpers.page_engine import Asked, by_command, by_engine, data_of, differences

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.slow, needs_browser]

MODELS = 200

# Parts of names: those that begin or end others, that YAML reads as something else, that objects of JavaScript have,
# and words to which a format gives a meaning.
PARTS = (
    *("a", "ab", "a_b", "b", "a-b", "A", "_", "0", "1", "10", "1e5", "1_000", "0x1F", "2001-01-01", "1.5"),
    *("null", "y", "No", "on", "inf", "nan", "constructor", "__proto__", "toString", "model", "backbone", "a/b"),
    *("experts", "gate", "w1", "out_proj", "conv1d", "patch_embed", "visual", "in_proj_weight", "weight", "bias"),
)
MODULES = ("Linear", "Linear", "Linear", "Embedding", "LayerNorm", "grouped Conv2d", None)
CLASSES = ("ToyForCausalLM", "MambaForCausalLM", "Modèle")
DTYPES = ("bfloat16", "float32")
NAMES = ("org/model", "Größe/模型", "2001-01-01", "a\\nb 'c\" $d", "tab\there\u202e", "\U0001f600")


def toy(draw: random.Random) -> ScanResult:
    """A model of a few parameters with random names, some of them tied, and a scan of it."""
    paths = {".".join(draw.choices(PARTS, k=draw.choice((1, 1, 2, 2, 3)))) for _ in range(draw.randrange(1, 14))}
    paths |= {f"{draw.choice(PARTS)}.{path}" for path in sorted(paths) if draw.random() < 0.3}
    ends = (".weight", ".weight", ".weight", "", ".bias", "_bias", ".parametrizations.weight.original0")
    names = {path + end for path in sorted(paths) for end in draw.choices(ends, k=draw.choice((1, 1, 2, 3)))}
    shapes = ((), (7,), (8, 4), (64, 80), (2, 6, 4), (2, 3, 4, 5))
    parameters: dict[str, Parameter] = {}
    for name in draw.sample(sorted(names), len(names)):
        shape, dtype, module = draw.choice(shapes), draw.choice(DTYPES), draw.choice(MODULES)
        owners = [owner for owner in parameters if parameters[owner].tied_to is None]
        tied = draw.choice(owners) if owners and draw.random() < 0.12 else None
        parameters[name] = Parameter(parameters[tied].shape if tied else shape, dtype, tied, module)
    if draw.random() < 0.2:
        parameters["h.experts.up"] = Parameter((2, 6, 4), "bfloat16")
    some = list(parameters)
    head, embedding = (draw.choice(some) if draw.random() < 0.6 else None for _ in range(2))
    info = ModelInfo(draw.choice(CLASSES), parameters, (), head, embedding)
    layers = list(dict.fromkeys(layer_name(name) for name in some if draw.random() < 0.8)) or [layer_name(some[0])]
    types = draw.sample(PARTS, 3)
    scored = [
        LayerSnr(name, draw.choice(types), draw.choice((0.0, 1.0, 2.5, 1e-7, 1e17, float("inf")))) for name in layers
    ]
    scored.sort(key=lambda layer: types.index(layer.layer_type))
    provenance = Provenance(None, None, "f", None, {"spectrum": "1", "torch": "2"}, info)
    return ScanResult(draw.choice(NAMES), tuple(scored), (), tuple(types), provenance)


def of_other_tool(scan: ScanResult, draw: random.Random) -> ScanResult:
    """A scan that does not describe the model, with a layer that is left out."""
    return replace(scan, provenance=None, left_out=(draw.choice(PARTS),))


def with_names_twice(scan: ScanResult, draw: random.Random) -> ScanResult:
    """A scan by another tool that has some layers under two types."""
    twice = [replace(layer, layer_type="twice", snr=draw.random()) for layer in scan.layers if draw.random() < 0.5]
    return replace(scan, provenance=None, layers=(*scan.layers, *twice))


def of_older_version(scan: ScanResult, draw: random.Random) -> ScanResult:
    """A scan that does not know the classes of modules."""
    assert scan.provenance is not None
    info = scan.provenance.info
    parameters = {name: replace(parameter, module=None) for name, parameter in info.parameters.items()}
    return replace(scan, provenance=replace(scan.provenance, info=replace(info, parameters=parameters)))


def scans() -> Iterator[tuple[ScanResult, random.Random]]:
    for seed in range(MODELS):
        draw = random.Random(seed)
        scan = toy(draw)
        yield scan, draw
        if seed % 5 == 0:
            yield of_other_tool(scan, draw), draw
        if seed % 5 == 2:
            yield with_names_twice(scan, draw), draw
        if seed % 5 == 1:
            yield of_older_version(scan, draw), draw


def questions(data: Mapping[str, Any], draw: random.Random) -> list[Asked]:
    rows = range(len(data["scans"][0]["rows"]))
    percents = ("1", "20", "34", "50", "66.67", "99.999999", "100")
    off = [tuple(draw.sample(rows, draw.randrange(len(rows)))) for _ in range(2)]
    return [Asked(draw.choice(percents), draw.random() < 0.5, some) for some in ((), (), (), *off)]


def compared(driver: Chrome) -> list[tuple[Asked, dict[str, Any], dict[str, Any]]]:
    """What was asked, what the page says, and what the command says."""
    found = []
    for scan, draw in scans():
        data = data_of(scan, draw.choice(("highest", "highest", "lowest", "random:7")))
        asked = questions(data, draw)
        answers = by_engine(driver, data, asked)
        found += [(one, answer, by_command(scan, data, one)) for one, answer in zip(asked, answers, strict=True)]
    return found


@pytest.fixture(scope="module")
def answers(engine: Chrome) -> list[tuple[Asked, dict[str, Any], dict[str, Any]]]:
    return compared(engine)


def test_the_page_writes_what_the_command_writes(answers: list[tuple[Asked, dict[str, Any], dict[str, Any]]]) -> None:
    for asked, by_page, expected in answers:
        assert differences(by_page, expected) == [], asked


REFUSALS = {
    "peft": (
        *(
            "no selected layer takes an adapter",
            "is of an older version",
            "PEFT cannot adapt .* which ends with that name",
        ),
        *("in a model with fused experts", "does not say which layers take adapters"),
    ),
    "llamafactory": (
        *("adapts modules only", "no selected layer takes an adapter of LLaMA-Factory", "in which that name occurs"),
    ),
    "nemo": ("is in none", "choose other --layer-types", "use --no-embeddings", "which parameters each module holds"),
    "frozen": ("every parameter trains", "which parameters do not train"),
}
NOTES = ("LoRA has none", "get no adapter unless", "LLaMA-Factory adapts no such module", "nothing for H2O LLM Studio")
TEXTS = {
    "axolotl": (r"\^.*\$\n# ", "- '", "# control: lowest", r"\(seed 7\)"),
    "swift": ("_regex",),
    "nemo": (r"unfreeze_modules: \[\]", "path: '"),
    "frozen": ("  - '", "H2O"),
    "peft": (r"target_modules: \[\]", r"target_modules: \S*\\", "target_parameters", "- '"),
    "trl-lora": (r"\$\^", r"(\S+) \1\n"),
    "llamafactory": ("freeze_vision_tower", "lora_target: '", ","),
    "json": (r'"shape": \[\]', "null", r"\\u", r"e\+17", "e-07"),
}


@cache
def patterns() -> list[tuple[str, str, str]]:
    kinds = (("problem", REFUSALS), ("text", TEXTS))
    return [(form, key, found) for key, wanted in kinds for form, all_of in wanted.items() for found in all_of]


@pytest.mark.parametrize(("form", "key", "pattern"), patterns())
def test_these_models_bring_about_every_refusal_and_spelling(
    form: str, key: str, pattern: str, answers: list[tuple[Asked, dict[str, Any], dict[str, Any]]]
) -> None:
    assert any(re.search(pattern, expected["lists"][form][key] or "") for _, _, expected in answers)


@pytest.mark.parametrize("words", NOTES)
def test_these_models_bring_about_every_note(
    words: str, answers: list[tuple[Asked, dict[str, Any], dict[str, Any]]]
) -> None:
    assert any(words in note for _, _, said in answers for form in said["lists"].values() for note in form["notes"])
