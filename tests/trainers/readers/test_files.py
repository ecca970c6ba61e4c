"""How a file's reader is known by its keys, and that a malformed or hostile file is refused in a line."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from spectrum.errors import SelectionError
from spectrum.trainers.checking.any_list import check_any
from spectrum.trainers.lists import EntryList
from spectrum.trainers.readers.files import read_any
from tests.helpers.lists import of_aliases
from tests.helpers.models import model_of

NAMES = ["model.embed_tokens.weight", f"model.layers.0.mlp.{'up' * 20}.weight", "lm_head.weight"]
MODEL = model_of(NAMES, head=NAMES[-1], embedding=NAMES[0])


def written(directory: Path, text: str) -> Path:
    path = directory / "file"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "reader"),
    [
        ("model: {x: 1}\nfreeze_config: {freeze_modules: [{glob: '*'}]}", "NeMo Automodel's freeze_config"),
        ("freeze_modules: [{glob: '*'}]", "NeMo Automodel's freeze_config"),
        (
            "seed: 1\ncallbacks: {x: {}, layer_freezing: {layer_names: [a]}}",
            "llm-foundry's layer_freezing",
        ),
        ("layer_freezing: {layer_names: [a]}", "llm-foundry's layer_freezing"),
        ("model: org/m\nfrozen_res: [a]", "DistillKit's frozen_res"),
        ("frozen_modules: [a]\nfrozen_res: [a]", "DistillKit's frozen_modules and frozen_res"),
        ("trainer: {type: finetune, layers_to_freeze_regex: a}", "Ludwig's layers_to_freeze_regex"),
        ("training: {lora: false, freeze_layers: [a]}", "H2O LLM Studio's freeze_layers"),
        ("lora_target: a", "LLaMA-Factory's lora_target"),
        ("use_peft: true\nlora_target_modules: [a, b]", "TRL's lora_target_modules"),
        ("model_name_or_path: org/m\nlora_target_parameters: [a]", "TRL's lora_target_modules"),
        ("adapter: lora\nlora_target_modules: [a]", "Axolotl's lora_target_modules"),
        ("lora_target_linear: true", "Axolotl's lora_target_linear"),
        ("peft_type: LORA\ntarget_modules: [a]", "PEFT's LoraConfig"),
        ("target_parameters: [a]", "PEFT's LoraConfig"),
        ("base_model: m\nplugins: [axolotl.integrations.spectrum.SpectrumPlugin]", "Axolotl's SpectrumPlugin"),
        ("model.norm.weight\nlm_head.weight\n", "names of parameters that train"),
        ("--freeze_parameters_ratio 1\n--trainable_parameters a", "ms-swift's trainable_parameters"),
        ("--use_peft --lora_target_modules a b", "TRL's lora_target_modules"),
        (
            "frozen_res: [a]\ntraining: {freeze_layers: [a]}",
            "DistillKit's frozen_res and H2O LLM Studio's freeze_layers",
        ),
    ],
    ids=str,
)
def test_the_reader_is_known_by_the_keys(text: str, reader: str, tmp_path: Path) -> None:
    found = read_any(written(tmp_path, text))
    assert not isinstance(found, EntryList)
    assert found.reader == reader


def test_axolotls_list_comes_before_all_others(tmp_path: Path) -> None:
    text = "adapter: lora\nlora_target_modules: [a]\nplugins: [SpectrumPlugin]\nunfrozen_parameters: [a]\n"
    assert isinstance(read_any(written(tmp_path, text)), EntryList)
    assert isinstance(read_any(written(tmp_path, "--- # a document\nunfrozen_parameters: [a]\n")), EntryList)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x: 1", "has no unfrozen_parameters at its top level; also read are NeMo Automodel's freeze_config"),
        ("hello world", "also read are"),
        ("", "also read are"),
        ("- model.norm", "put its list under `unfrozen_parameters:`"),
        ("--epochs 3", "neither trainable_parameters nor lora_target_modules"),
        ("freeze_config: [a]", "is not a mapping"),
        ("freeze_config: {freeze: [a]}", "has 'freeze', which NeMo Automodel refuses"),
        ("freeze_config: {freeze_modules: {path: a}}", "is not a list of entries"),
        ("freeze_config: {freeze_modules: [a]}", "entry 1 of freeze_modules is neither"),
        ("freeze_config: {freeze_modules: [{path: a, glob: b}]}", "entry 1 of freeze_modules is neither"),
        ("freeze_config: {freeze_modules: [{path: 5}]}", "entry 1 of freeze_modules is neither"),
        ("freeze_config: {freeze_vision_tower: 1, freeze_modules: []}", "is neither true nor false"),
        ("freeze_config: {freeze_modules: []}", "is empty"),
        ("callbacks: {layer_freezing: {layer_names: []}}", "is empty"),
        ("callbacks: {layer_freezing: {layer_names: [[a]]}}", "layer_names .* entry 1 .*line 1.* is a list"),
        ("frozen_res:\n- a\n- 5\n", r"frozen_res .* entry 2 \(line 3\) is 5"),
        ("trainer: {layers_to_freeze_regex: [a]}", "is not a regular expression"),
        ("trainer: {layers_to_freeze_regex: ''}", "is not a regular expression"),
        ("training: {freeze_layers: [a: b]}", "is a mapping"),
        ("lora_target: 5", "lora_target .* is not a list"),
        ("lora_target: []", "lora_target .* is empty"),
        ("lora_target: 'a,,b'", "entry 2 is empty"),
        ("target_modules: ''", "target_modules .* is empty"),
        ("target_parameters: a.*", "is not a list of names"),
        ("target_modules: [true]", "is a truth value"),
        ("--lora_target_modules a --lora_dropout x", "--lora_dropout .* is not a number"),
        (f"--trainable_parameters {'a ' * 60_000}", "words, more than any model"),
        (f"target_modules: ['{'a' * 3000}']", "longer than any name"),
        ("plugins: [SpectrumPlugin]", "neither spectrum_model_name nor base_model"),
    ],
    ids=str,
)
def test_what_is_no_list_is_refused_in_a_line(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=words) as refused:
        read_any(written(tmp_path, text))
    assert len(str(refused.value)) < 500


ENDLESS = r"^(([a-z_.0-9])+)+!"


@pytest.mark.parametrize(
    "text",
    [
        f"frozen_res: ['{ENDLESS}']",
        f"trainer: {{layers_to_freeze_regex: '{ENDLESS}'}}",
        f"target_modules: '{ENDLESS}'",
        f"use_peft: true\nlora_target_modules: ['{ENDLESS}']",
        f"--trainable_parameters_regex {ENDLESS}",
    ],
)
def test_a_pattern_that_takes_for_ever_is_refused(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectrum.trainers.matching.SECONDS", 1.0)
    with pytest.raises(SelectionError, match="takes over 1 seconds"):
        check_any(read_any(written(tmp_path, text)), MODEL)


@pytest.mark.parametrize("text", ["frozen_res: ['(']", "target_modules: '('", "--trainable_parameters_regex ("])
def test_a_pattern_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match="is not a regular expression: missing"):
        check_any(read_any(written(tmp_path, text)), MODEL)


def test_a_shell_pattern_takes_no_time(tmp_path: Path) -> None:
    entries = "".join(f"- {{glob: '{'*a' * 200}*{i}'}}\n" for i in range(20))
    started = time.perf_counter()
    report = check_any(read_any(written(tmp_path, f"freeze_modules:\n{entries}")), MODEL)
    assert report.problems
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    "text",
    [
        "freeze_config: BOMB",
        "freeze_config: {freeze_modules: BOMB}",
        "freeze_config: {freeze_modules: [{path: BOMB}]}",
        "freeze_config: {freeze_vision_tower: BOMB, freeze_modules: []}",
        "callbacks: {layer_freezing: {layer_names: BOMB}}",
        "frozen_res: BOMB",
        "trainer: {layers_to_freeze_regex: BOMB}",
        "training: {freeze_layers: [a], lora: BOMB}",
        "lora_target: BOMB",
        "lora_target: a\nfinetuning_type: BOMB",
        "target_modules: BOMB",
        "target_modules: [a]\ntarget_parameters: [a]\nlora_dropout: BOMB",
        "adapter: BOMB\nlora_target_modules: [a]",
        "plugins: [SpectrumPlugin, BOMB]\nbase_model: m\nspectrum_top_fraction: BOMB",
        "plugins: [SpectrumPlugin]\nbase_model: BOMB",
    ],
)
def test_values_that_a_small_file_makes_endless_are_not_written_out(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, f"{of_aliases(9)}{text.replace('BOMB', '*a8')}\n")
    tracemalloc.start()
    try:
        try:
            report = check_any(read_any(path), MODEL)
            told = [*report.problems, *report.notes]
        except SelectionError as error:
            told = [str(error)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(map(len, told)) < 1_000
    assert peak < 50 << 20
