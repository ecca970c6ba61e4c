"""Lists of what trains or is frozen, for others than Axolotl: what is wrong with them, by their reader's rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from spectrum.records import ModelInfo
from spectrum.trainers.checking.any_list import check_any
from spectrum.trainers.checking.report import CheckReport
from spectrum.trainers.readers.files import read_any
from tests.helpers.models import model_of

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
NAMES = [
    EMBEDDING,
    *(f"model.layers.{i}.mlp.{own}.weight" for i in range(3) for own in ("gate", "gate_proj")),
    *(f"model.layers.{i}.mlp.experts.{own}" for i in range(3) for own in ("gate_up_proj", "down_proj")),
    *(f"model.layers.{i}.norm.{own}" for i in range(3) for own in ("weight", "bias")),
    HEAD,
]
MODEL = model_of(NAMES, head=HEAD, embedding=EMBEDDING)
TIED = model_of(NAMES, head=HEAD, embedding=EMBEDDING, tied={HEAD: EMBEDDING})


def check(directory: Path, text: str, model: ModelInfo = MODEL) -> CheckReport:
    path = directory / "config.yaml"
    path.write_text(text)
    return check_any(read_any(path), model)


def nemo(*unfrozen: str) -> str:
    entries = "".join(f"\n  - {{{entry}}}" for entry in unfrozen)
    return f"freeze_config:\n  freeze_modules:\n  - {{glob: '*'}}\n  unfreeze_modules:{entries}\n"


def foundry(*names: str) -> str:
    return f"callbacks:\n  layer_freezing:\n    layer_names: [{', '.join(names)}]\n"


GATE = "model.layers.1.mlp.gate"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (nemo("path: model.layers.3.mlp"), ["model.layers.3.mlp matches nothing", "stops", "only model.layers.0 to 2"]),
        (nemo("glob: '*.q_proj'"), ["*.q_proj matches nothing", "NeMo Automodel stops"]),
        (nemo(f"path: {GATE}.weight"), ["is a parameter", f"write {GATE}"]),
        (nemo("path: model.layers.0.norm.bias"), ["write model.layers.0.norm, which also holds 1 other parameter"]),
        (nemo("path: model.layers.0.mlp.gate_prj"), ["did you mean model.layers.0.mlp.gate_proj?"]),
        (nemo("path: language_model.model.layers.0.norm"), ["write model.layers.0.norm"]),
        (
            nemo("path: lm_head") + "freeze_config: {freeze_modules: [{glob: '*'}]}\n",
            ["lines 1 and 6", "nothing trains"],
        ),
        (foundry(f"{GATE}.weight"), ["llm-foundry stops", f"write model.{GATE}.weight"]),
        (foundry(f"model.{GATE}"), ["it is a module", f"write model.{GATE}.weight"]),
        (foundry(f"model.{GATE}.wight"), [f"did you mean model.{GATE}.weight?"]),
        (f"frozen_modules: [{GATE}, model.layers.7]", ["model.layers.7 matches nothing, at which DistillKit stops"]),
        ("frozen_res: [q_proj, norm]", ["q_proj matches nothing; DistillKit says nothing of it"]),
        ("trainer: {layers_to_freeze_regex: '^transformer'}", ["^transformer matches nothing; Ludwig"]),
        (f"training: {{lora: false, freeze_layers: [{GATE}]}}", [f"{GATE} also freezes {GATE}_proj.weight"]),
        (rf"frozen_res: ['^{GATE}']", [f"^{GATE} also freezes {GATE}_proj.weight"]),
        ("training: {freeze_layers: [norm]}", ["training.lora is on"]),
        ("adapter: {type: lora}\ntrainer: {layers_to_freeze_regex: norm}", ["only the adapter trains"]),
        (f"model: {{peft_config: {{r: 8}}}}\n{foundry(f'model.{GATE}.weight')}", ["model.peft_config"]),
        ("frozen_res: [norm]\ntraining: {lora: false, freeze_layers: [mlp]}", ["differ in what trains"]),
        (f"{GATE}.weight\n{GATE}\n", [f"{GATE} matches nothing: it is a module; write {GATE}.weight"]),
        (f"--freeze_parameters_ratio 1 --trainable_parameters {GATE}", [f"also trains {GATE}_proj.weight"]),
        (f"--trainable_parameters {GATE}.weight", ["--freeze_parameters_ratio 1 is missing"]),
        (f"--freeze_parameters_ratio 1 --tuner_type lora --trainable_parameters {GATE}.", ["only full reads the list"]),
    ],
    ids=str,
)
def test_what_is_wrong_is_told_with_what_to_write(text: str, words: list[str], tmp_path: Path) -> None:
    problems = "\n".join(check(tmp_path, text).problems)
    for word in words:
        assert word in problems


@pytest.mark.parametrize(
    "text",
    [
        nemo("path: lm_head", "glob: '*.mlp.gate'"),
        nemo("path: model.layers.1.mlp.experts"),
        foundry(f"model.{GATE}.weight", "model.lm_head.weight"),
        f"frozen_modules: [{GATE}]\nfrozen_res: ['layers.0', lm_head]",
        "trainer: {layers_to_freeze_regex: 'norm|embed'}",
        f"training: {{lora: false, freeze_layers: [{GATE}., norm]}}",
        f"{GATE}.weight\n",
        f"--freeze_parameters_ratio 1 --trainable_parameters {GATE}. --trainable_parameters_regex ^lm_head[.]weight$",
    ],
)
def test_what_is_right_has_no_problem(text: str, tmp_path: Path) -> None:
    assert check(tmp_path, text).problems == ()


def test_a_tied_name_trains_with_its_owner_and_is_unknown_to_who_lists_what_is_frozen(tmp_path: Path) -> None:
    found = check(tmp_path, f"{HEAD}\n{EMBEDDING}\n", TIED)
    assert found.problems == ()
    assert f"{HEAD} is tied to {EMBEDDING}, and trains through it" in found.notes
    (alone,) = check(tmp_path, f"{HEAD}\n{GATE}.weight\n", TIED).problems
    assert f"is tied to {EMBEDDING}" in alone
    assert f"write {EMBEDDING}" in alone
    (frozen,) = check(tmp_path, foundry(f"model.{HEAD}", f"model.{GATE}.weight"), TIED).problems
    assert "llm-foundry stops" in frozen
    assert "leave it out" in frozen


def test_a_tied_module_trains_with_its_owner_for_readers_of_prefixes(tmp_path: Path) -> None:
    head = HEAD.removesuffix(".weight")
    arguments = f"--freeze_parameters_ratio 1 --trainable_parameters {head}"
    found = check(tmp_path, f"{arguments} {EMBEDDING}", TIED)
    assert found.problems == ()
    assert f"{head} is tied to {EMBEDDING}, and trains through it" in found.notes
    assert any(f"{head} matches nothing" in problem for problem in check(tmp_path, arguments, TIED).problems)


def test_of_many_entries_that_match_nothing_a_few_are_told(tmp_path: Path) -> None:
    found = check(tmp_path, nemo("path: lm_head", *(f"path: model.layers.{i}" for i in range(10, 40))))
    assert len(found.problems) == 4
    assert found.problems[-1] == "27 more match nothing, at which NeMo Automodel stops"


def test_nemo_automodels_other_classes_are_noted_unless_they_are_off(tmp_path: Path) -> None:
    assert any("force_hf" in note for note in check(tmp_path, nemo("path: lm_head")).notes)
    config = f"model: {{force_hf: true}}\n{nemo('path: lm_head')}"
    assert not any("force_hf" in note for note in check(tmp_path, config).notes)
