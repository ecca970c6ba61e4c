"""Every list that is written is right by the check, which says of it what its reader trains, on every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from peft import LoraConfig, get_peft_model

from spectrum.checkpoint.reader import of_model
from spectrum.errors import SelectionError
from spectrum.records import LayerSnr, ModelInfo, ScanResult
from spectrum.selection.selection import Selection, top_percent
from spectrum.trainers.checking.any_list import check_any
from spectrum.trainers.formats.formats import FORMATS
from spectrum.trainers.readers.files import read_any, trained_by
from tests.helpers.adapters import adapted, names_of, weights
from tests.helpers.architectures import ARCHITECTURES, longformer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model .*has `tie_word_embeddings=True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to (True|False):UserWarning"),
    pytest.mark.filterwarnings("ignore:target_modules=.* were set but no module was matched:RuntimeWarning"),
]

BUILDERS = {**ARCHITECTURES, "longformer": longformer}
OF_PARAMETERS = ("axolotl", "swift", "nemo", "frozen", "names")
OF_ADAPTERS = ("peft", "axolotl-lora", "trl-lora")


@pytest.fixture(scope="module", params=BUILDERS)
def model(request: pytest.FixtureRequest) -> Any:
    return BUILDERS[request.param]()


@pytest.fixture(scope="module")
def scan(model: Any) -> ScanResult:
    """The last layers of each type score highest."""
    checkpoint = of_model(model, "m")
    layers = tuple(LayerSnr(weight.name, weight.layer_type, 1.0 + i) for i, weight in enumerate(checkpoint.weights))
    return ScanResult("m", layers, (), checkpoint.provenance.info.layer_types, checkpoint.provenance)


def written(form: str, chosen: Selection, directory: Path) -> Path | None:
    """The file of a format; None if the format refuses the selection."""
    path = directory / f"list.{FORMATS[form].ending}"
    try:
        path.write_text(FORMATS[form].render(chosen).text)
    except SelectionError:
        return None
    return path


def info_of(scan: ScanResult) -> ModelInfo:
    assert scan.info is not None
    return scan.info


@pytest.mark.parametrize("embeddings", [True, False])
def test_lists_of_parameters_are_right_and_train_what_is_selected(
    scan: ScanResult, embeddings: bool, tmp_path: Path
) -> None:
    info = info_of(scan)
    chosen = top_percent(scan, "50", embeddings=embeddings)
    selected = set(info.owners(chosen.trained()))
    refused = 0
    for form in OF_PARAMETERS:
        path = written(form, chosen, tmp_path)
        if path is None:
            refused += 1
            continue
        found = read_any(path)
        report = check_any(found, info)
        assert report.problems == (), form
        assert not report.adapters
        assert trained_by(found, info) == selected, form
        assert next(iter(report.trained.values())) == selected
        if form == "frozen":  # a list for each of four readers
            assert len(report.trained) in (3, 4)
            assert set(map(frozenset, report.trained.values())) == {frozenset(selected)}
    assert refused <= 1


def test_lists_for_adapters_are_right_and_adapt_what_peft_does(model: Any, scan: ScanResult, tmp_path: Path) -> None:
    info = info_of(scan)
    chosen = top_percent(scan, "50")
    peft = written("peft", chosen, tmp_path)
    assert peft is not None
    config = LoraConfig(r=2, **yaml.safe_load(peft.read_text()))
    names = names_of(model)
    by_peft = get_peft_model(model, config)
    expected = {info.owner(name) for name in weights(adapted(by_peft, names))}
    by_peft.unload()
    assert expected
    for form in OF_ADAPTERS:
        path = written(form, chosen, tmp_path)
        assert path is not None
        found = read_any(path)
        report = check_any(found, info)
        assert report.problems == (), form
        assert report.adapters
        assert trained_by(found, info) == expected, form


def test_llamafactorys_list_is_right_and_adapts_what_is_selected(scan: ScanResult, tmp_path: Path) -> None:
    info = info_of(scan)
    chosen = top_percent(scan, "50")
    path = written("llamafactory", chosen, tmp_path)
    if path is None:  # the format's tests say of which architectures
        return
    found = read_any(path)
    assert check_any(found, info).problems == ()
    modules = yaml.safe_load(path.read_text())["lora_target"].split(",")
    assert trained_by(found, info) == {info.owner(f"{module}.weight") for module in modules}
