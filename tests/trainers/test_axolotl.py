"""Axolotl, its plugin and ms-swift, their own code: of our files they make what was selected, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from spectrum.checkpoint.reader import of_model
from spectrum.cli.entry import main
from spectrum.trainers.checking.any_list import check_any
from spectrum.trainers.readers.files import read_any, trained_by
from tests.helpers.architectures import built, longformer, with_signal
from tests.helpers.axolotl import AXOLOTL, MS_SWIFT, Task, install, loaded, trainable
from tests.helpers.intended import Scores, intended, selected

pytestmark = pytest.mark.slow

# Plain and tied ones, other names than Llama's, names that begin others, fused experts, with a bias beside them too,
# state spaces, two towers, an encoder beside a decoder.
FROM_THE_TABLE = ["llama", "qwen3-tied", "gpt2", "gpt-neox", "bloom", "qwen3-moe", "gpt-oss", "jamba", "gemma3", "t5"]
ARCHITECTURES: Mapping[str, Callable[[], Any]] = {
    **{name: partial(built, name) for name in FROM_THE_TABLE},
    "longformer": longformer,
}

# Those whose embeddings have Llama's names; the head of one of them is tied.
LLAMAS_NAMES = {"llama", "qwen3-tied", "qwen3-moe", "gpt-oss", "jamba"}

PLUGIN = "axolotl.integrations.spectrum.SpectrumPlugin"

Options = tuple[str, ...]

HALF: Options = ("--top-percent", "50")
HALF_OF_LAYERS: Options = ("--top-percent", "50", "--no-embeddings")
ALL: Options = ("--top-percent", "100")
ALL_BUT_EMBEDDINGS: Options = ("--top-percent", "100", "--no-embeddings")
OPTIONS = [HALF, HALF_OF_LAYERS, ALL, ALL_BUT_EMBEDDINGS]


@dataclass(frozen=True)
class Scanned:
    """A working directory with one checkpoint and what the command has written beside it."""

    directory: Path
    architecture: str

    @property
    def checkpoint(self) -> Path:
        return self.directory / self.architecture

    def entries(self, options: Options) -> list[str]:
        (file,) = (self.directory / "lists" / self.architecture / "".join(options)).glob("*.yaml")
        entries: list[str] = yaml.safe_load(file.read_text())["unfrozen_parameters"]
        return entries

    def scores(self) -> Scores:
        # `_` and `/` in a model's name are `-` in its files' names; there are none here.
        file = self.directory / "model_snr_results" / f"snr_results_{self.architecture}.json"
        scores: Scores = json.loads(file.read_text())
        return scores


def scan(directory: Path, architecture: str) -> Scanned:
    with_signal(ARCHITECTURES[architecture]()).save_pretrained(directory / architecture)
    for options in OPTIONS:
        to = f"lists/{architecture}/{''.join(options)}"
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(directory)
            assert main(["--model-name", architecture, *options, "--yes", "--device", "cpu", "--output-dir", to]) == 0
    return Scanned(directory, architecture)


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Scanned]:
    directory = tmp_path_factory.mktemp("scanned")
    return {architecture: scan(directory, architecture) for architecture in ARCHITECTURES}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def one(request: pytest.FixtureRequest, scanned: Mapping[str, Scanned]) -> Scanned:
    return scanned[request.param]


@pytest.fixture(scope="module")
def model(one: Scanned) -> Any:
    return loaded(one.checkpoint)


# Axolotl.


def by_axolotl(one: Scanned, options: Options) -> Task:
    return Task("freeze_layers_except", str(one.checkpoint), one.entries(options))


def by_plugin(one: Scanned) -> Task:
    config = {"base_model": one.architecture, "spectrum_top_fraction": 0.5}
    return Task("spectrum_plugin", str(one.checkpoint), config)


Unfrozen = Mapping[tuple[str, object], set[str]]


@pytest.fixture(scope="session")
def axolotl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(AXOLOTL, tmp_path_factory.mktemp("axolotl"))


@pytest.fixture(scope="module")
def axolotls(axolotl: Path, scanned: Mapping[str, Scanned]) -> Unfrozen:
    """What Axolotl leaves trainable. One process for all: it takes longer to start than to do its work."""
    tasks: dict[tuple[str, object], Task] = {}
    for name, each in scanned.items():
        tasks |= {(name, options): by_axolotl(each, options) for options in OPTIONS}
        tasks[name, "plugin"] = by_plugin(each)
    directory = next(iter(scanned.values())).directory
    return dict(zip(tasks, trainable(axolotl, list(tasks.values()), directory), strict=True))


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_axolotl_trains_what_was_selected_and_nothing_else(
    axolotls: Unfrozen, one: Scanned, model: Any, options: Options
) -> None:
    wanted = intended(model, one.scores(), int(options[1]), "--no-embeddings" not in options)
    assert wanted
    assert axolotls[one.architecture, options] == wanted


def test_axolotls_plugin_selects_the_same_from_our_scores(axolotls: Unfrozen, one: Scanned, model: Any) -> None:
    # By its own rules it knows embedding and head under Llama's names only, so those of other models stay frozen, and
    # writes every other name as it stands, so that a longer one which begins so is trained, too.
    layers = intended(model, one.scores(), 50, embeddings=False)
    llamas = {"lm_head.weight", "model.embed_tokens.weight"}
    begun = tuple(selected(model, one.scores(), 50))
    names = {name for name, _ in model.named_parameters()}
    longer = {name for name in names if name.startswith(begun)} - layers
    assert bool(longer) == (one.architecture == "longformer")
    assert axolotls[one.architecture, "plugin"] == layers | longer | llamas & names


def test_the_check_of_a_config_with_the_plugin_knows_its_list(
    axolotls: Unfrozen, one: Scanned, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(one.directory)
    config = {"base_model": one.architecture, "plugins": [PLUGIN], "spectrum_top_fraction": 0.5}
    path = one.directory / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    info = of_model(model, one.architecture).provenance.info
    found = read_any(path)
    assert trained_by(found, info) == axolotls[one.architecture, "plugin"]
    # What its first two lines leave frozen, and the longer names that it trains, are problems.
    problems = "\n".join(check_any(found, info).problems)
    assert ("frozen stays: " in problems) == (one.architecture not in LLAMAS_NAMES)
    assert ("also matches" in problems) == (one.architecture == "longformer")


# ms-swift.


def prefixes(entries: list[str]) -> list[str]:
    """The list in its form, which knows no patterns: embedding and head as plain names."""
    return [entry.removeprefix("^").removesuffix("$") for entry in entries]


def by_ms_swift(one: Scanned, rule: str) -> Task:
    plain = prefixes(one.entries(HALF))
    rules = {
        "--trainable_parameters": {"prefixes": plain, "regex": None},
        "--trainable_parameters_regex": {"prefixes": [], "regex": f"^({'|'.join(map(re.escape, plain))})"},
    }
    return Task("freeze_parameters_ratio", str(one.checkpoint), rules[rule])


MS_SWIFTS_RULES = ["--trainable_parameters", "--trainable_parameters_regex"]


@pytest.fixture(scope="module")
def ms_swifts(tmp_path_factory: pytest.TempPathFactory, scanned: Mapping[str, Scanned]) -> Unfrozen:
    wheels = install(MS_SWIFT, tmp_path_factory.mktemp("ms-swift"))
    tasks: dict[tuple[str, object], Task] = {
        (name, rule): by_ms_swift(each, rule) for name, each in scanned.items() for rule in MS_SWIFTS_RULES
    }
    directory = next(iter(scanned.values())).directory
    return dict(zip(tasks, trainable(wheels, list(tasks.values()), directory), strict=True))


@pytest.mark.parametrize("rule", MS_SWIFTS_RULES)
def test_ms_swift_trains_what_was_selected_and_nothing_else(
    ms_swifts: Unfrozen, one: Scanned, model: Any, rule: str
) -> None:
    assert ms_swifts[one.architecture, rule] == intended(model, one.scores(), 50, embeddings=True)


# That the above could fail.


def test_what_is_selected_here_is_not_what_comes_first(one: Scanned, model: Any) -> None:
    equal = {name: {**entry, "snr": 1.0} for name, entry in one.scores().items()}
    assert selected(model, one.scores(), 50) != selected(model, equal, 50)
