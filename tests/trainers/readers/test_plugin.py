"""Configs with SpectrumPlugin and no list: what is found, and what is wrong. `test_axolotl` runs the plugin itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from spectrum.errors import SelectionError
from spectrum.trainers.checking.any_list import check_any
from spectrum.trainers.checking.report import CheckReport
from spectrum.trainers.readers.files import read_any, trained_by
from spectrum.trainers.readers.plugin import PluginList
from tests.helpers.models import model_of

NAMES = ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.up.weight" for i in range(4)), "lm_head.weight"]
LLAMA = model_of(NAMES, head=NAMES[-1], embedding=NAMES[0])
OTHER = model_of(["wte.weight", *NAMES[1:-1], "out.weight"], head="out.weight", embedding="wte.weight")
PLUGINS = ["axolotl.integrations.liger.LigerPlugin", "axolotl.integrations.spectrum.SpectrumPlugin"]
CONFIG = {"base_model": "org/a_model", "plugins": PLUGINS, "spectrum_top_fraction": 0.5}
SCORES = {f"model.layers.{i}.mlp.up": {"type": "mlp.up", "snr": snr} for i, snr in enumerate([1.0, 4.0, 2.0, 3.0])}


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model_snr_results").mkdir()
    scan("org-a-model", SCORES)
    return tmp_path


def scan(name: str, scores: object) -> None:
    Path("model_snr_results", f"snr_results_{name}.json").write_text(json.dumps(scores))


def said(**changes: object) -> PluginList:
    Path("config.yaml").write_text(yaml.safe_dump({**CONFIG, **changes}))
    found = read_any(Path("config.yaml"))
    assert isinstance(found, PluginList)
    return found


def check(**changes: object) -> CheckReport:
    return check_any(said(**changes), LLAMA)


def test_the_list_is_made_from_the_scan_in_the_working_directory() -> None:
    found = said()
    assert found.entries is not None
    layers = ("model.layers.1.mlp.up", "model.layers.3.mlp.up")
    assert found.entries.entries == ("^lm_head.weight$", "^model.embed_tokens.weight$", *layers)
    report = check_any(found, LLAMA)
    assert report.problems == ()
    assert any("the working directory" in note and "snr_results_org-a-model.json" in note for note in report.notes)
    assert trained_by(found, LLAMA) == {NAMES[0], NAMES[-1], *(f"{layer}.weight" for layer in layers)}


def test_a_list_in_the_config_is_replaced_by_the_plugins() -> None:
    Path("config.yaml").write_text(yaml.safe_dump({**CONFIG, "unfrozen_parameters": ["lm_head"]}))
    (problem,) = check_any(read_any(Path("config.yaml")), LLAMA).problems
    assert "replaces this list" in problem


def test_the_model_may_have_a_name_of_its_own_for_the_plugin() -> None:
    scan("other", {"model.layers.0.mlp.up": {"type": "mlp.up", "snr": 1}})
    found = said(spectrum_model_name="other", spectrum_top_fraction=1.0)
    assert found.entries is not None
    assert found.entries.entries[2:] == ("model.layers.0.mlp.up",)
    assert not any("base_model" in note for note in found.notes)


def test_a_part_of_a_layer_is_rounded_down() -> None:
    found = said(spectrum_top_fraction=0.74)
    assert found.entries is not None
    assert found.entries.entries[2:] == ("model.layers.1.mlp.up", "model.layers.3.mlp.up")


def test_without_a_scan_the_command_that_makes_it_is_told(directory: Path) -> None:
    report = check(base_model="org/other_model")
    (problem,) = report.problems
    assert f"model_snr_results/snr_results_org-other-model.json is not in {directory}" in problem
    assert "everything trains" in problem
    assert "spectrum --model-name org/other_model" in problem
    (trained,) = report.trained.values()
    assert trained == set(NAMES)
    with pytest.raises(SelectionError, match="everything trains"):
        trained_by(said(base_model="org/other_model"), LLAMA)
    scan("org-a-model", {})  # which the plugin takes as none
    assert "is not in" in check().problems[0]


@pytest.mark.parametrize(
    ("fraction", "words"),
    [
        (25, "over 1, so SpectrumPlugin selects every layer; write 0.25 for 25 percent"),
        (1.5, "over 1"),
        ("a quarter", "'a quarter', not a number"),
        (None, "not a number"),
        (0, "is 0, not a number from 0 to 1"),
        (-0.5, "is -0.5, not a number"),
        (float("nan"), "not a number"),
    ],
)
def test_a_fraction_that_is_none_is_a_problem(fraction: object, words: str) -> None:
    assert words in check(spectrum_top_fraction=fraction).problems[0]


def test_what_the_config_leaves_out_has_the_plugins_defaults() -> None:
    Path("config.yaml").write_text(yaml.safe_dump({key: CONFIG[key] for key in ("base_model", "plugins")}))
    found = read_any(Path("config.yaml"))
    assert trained_by(found, LLAMA) == trained_by(said(), LLAMA)
    notes = check_any(found, LLAMA).notes
    assert any("spectrum_top_fraction is not set, so SpectrumPlugin takes 0.5" in note for note in notes)
    assert any("takes base_model: org/a_model" in note for note in notes)


def test_the_lines_that_the_plugin_always_writes_may_name_nothing() -> None:
    problems = check_any(said(), OTHER).problems
    assert "^lm_head.weight$ and ^model.embed_tokens.weight$, which SpectrumPlugin always writes" in problems[0]
    assert "frozen stays: wte.weight, out.weight" in problems[0]
    assert "paste the list that spectrum writes" in problems[-1]


def test_a_bare_name_that_matches_too_much_cannot_be_edited() -> None:
    model = model_of([*NAMES, "model.layers.1.mlp.up_gate.weight"], head=NAMES[-1], embedding=NAMES[0])
    problems = check_any(said(), model).problems
    assert "model.layers.1.mlp.up also matches model.layers.1.mlp.up_gate.weight" in problems[0]
    assert "cannot be edited" in problems[-1]


def test_settings_are_checked_as_beside_a_list() -> None:
    assert any("adapter: lora" in problem for problem in check(adapter="lora").problems)
    assert any("reentrant" in note for note in check(gradient_checkpointing=True).notes)
    kwargs = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    assert not any("reentrant" in note for note in check(**kwargs).notes)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "lacks its type or SNR"),
        ('{"mlp.up": {"model.layers.0.mlp.up": 1.0}}', "'mlp.up' lacks its type or SNR"),
        ('{"a": {"type": "a", "snr": null}}', "'a' lacks its type or SNR"),
        ('{"a": {"type": "a", "snr": true}}', "'a' lacks its type or SNR"),
        ('{"%s": {"type": "a", "snr": 1}}' % ("a" * 3000), "longer than any name"),
    ],
    ids=range(7),
)
def test_a_scan_that_the_plugin_cannot_read_is_refused_in_a_line(content: str, words: str) -> None:
    Path("model_snr_results/snr_results_org-a-model.json").write_text(content)
    with pytest.raises(SelectionError, match=words) as refused:
        said()
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("model", [None, 5, ["a"], "a" * 5000, "a\nb", "..\\.."])
def test_a_name_that_is_no_model_is_refused_in_a_line(model: object) -> None:
    with pytest.raises(SelectionError) as refused:
        said(base_model=model)
    assert len(str(refused.value)) < 400


def test_a_name_cannot_lead_out_of_the_directory() -> None:
    assert said(base_model="../../etc/passwd").path == Path("model_snr_results/snr_results_..-..-etc-passwd.json")
