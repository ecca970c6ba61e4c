"""Lists for those who freeze modules and parameters: NeMo Automodel, and trainers that are told what to freeze."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml

from spectrum.errors import SelectionError
from spectrum.records import Parameter, ScanResult
from spectrum.selection.selection import Selection, top_percent
from spectrum.trainers.formats.frozen import frozen
from spectrum.trainers.formats.nemo import nemo
from tests.helpers.records import scan_of

LINEAR = Parameter((4, 4), "bfloat16", module="Linear")
VECTOR = Parameter((4,), "bfloat16", module="Linear")
STACK = Parameter((2, 4, 4), "bfloat16")


def everything(result: ScanResult) -> Selection:
    return top_percent(result, "100")


def test_nemo_freezes_all_modules_and_unfreezes_those_that_hold_what_trains() -> None:
    result = scan_of(
        {
            "emb.weight": LINEAR,
            "blocks.1.up.weight": LINEAR,
            "blocks.1.up.bias": VECTOR,
            "blocks.1.up_gate.weight": LINEAR,
            "blocks.11.up.weight": LINEAR,
            "head.weight": replace(LINEAR, tied_to="emb.weight"),
        },
        "blocks.1.up",
        "head",
        head="head.weight",
        embedding="emb.weight",
    )
    assert nemo(everything(result)).text == (
        "freeze_config:\n"
        "  freeze_modules:\n"
        "  - glob: '*'\n"
        "  unfreeze_modules:\n"
        "  - path: head\n"
        "  - path: emb\n"
        "  - path: blocks.1.up\n"
    )


EXPERTS = {"mlp.experts.gate_up": STACK, "mlp.experts.down": STACK}


def test_one_matrix_of_the_experts_is_no_module() -> None:
    with pytest.raises(SelectionError) as refusal:
        nemo(everything(scan_of(EXPERTS, "mlp.experts.down")))
    assert str(refusal.value) == (
        "NeMo Automodel trains modules as a whole, and mlp.experts holds mlp.experts.down, which trains, and "
        "mlp.experts.gate_up, which does not; choose other --layer-types, or use another --format"
    )


def test_all_matrices_of_the_experts_are_a_module() -> None:
    text = nemo(everything(scan_of(EXPERTS, "mlp.experts.down", "mlp.experts.gate_up"))).text
    assert yaml.safe_load(text)["freeze_config"]["unfreeze_modules"] == [{"path": "mlp.experts"}]


def test_a_module_with_others_below_it_is_not_unfrozen_alone() -> None:
    result = scan_of({"mixer.weight": LINEAR, "mixer.inner.norm.weight": VECTOR}, "mixer")
    with pytest.raises(SelectionError, match=r"mixer holds mixer\.weight.*and mixer\.inner\.norm\.weight"):
        nemo(everything(result))


def test_a_head_whose_bias_does_not_train_can_stay_frozen() -> None:
    result = scan_of({"head.weight": LINEAR, "head.bias": VECTOR, "up.weight": LINEAR}, "up", head="head.weight")
    with pytest.raises(SelectionError, match=r"head holds.*; use --no-embeddings, or"):
        nemo(everything(result))
    text = nemo(top_percent(result, "100", embeddings=False)).text
    assert yaml.safe_load(text)["freeze_config"]["unfreeze_modules"] == [{"path": "up"}]


def test_a_parameter_in_no_module_is_never_frozen_by_nemo() -> None:
    with pytest.raises(SelectionError, match="scale is in none"):
        nemo(everything(scan_of({"scale": VECTOR, "up.weight": LINEAR}, "up")))
    text = nemo(everything(scan_of({"scale": LINEAR, "up.weight": LINEAR}, "up", "scale"))).text
    assert yaml.safe_load(text)["freeze_config"]["unfreeze_modules"] == [{"path": "up"}]


def test_what_is_frozen_is_listed_for_each_trainer_in_its_own_way() -> None:
    result = scan_of(
        {"emb.weight": LINEAR, "up.weight": LINEAR, "head.weight": replace(LINEAR, tied_to="emb.weight")}, "up"
    )
    rendered = frozen(everything(result))
    assert rendered.notes == ()
    assert rendered.text == (
        "# Copy the part for your trainer into its config.\n\n"
        "# DistillKit 2\n"
        "frozen_res:\n"
        "- ^emb\\.weight$\n\n"
        "# llm-foundry\n"
        "callbacks:\n"
        "  layer_freezing:\n"
        "    layer_names:\n"
        "    - model.emb.weight\n\n"
        "# Ludwig, without an adapter\n"
        "trainer:\n"
        "  layers_to_freeze_regex: ^model\\.(emb\\.weight)$\n\n"
        "# H2O LLM Studio\n"
        "training:\n"
        "  lora: false\n"
        "  freeze_layers:\n"
        "  - emb.weight\n"
    )


def test_a_name_that_is_part_of_a_trained_one_is_told_apart_by_all_but_h2o() -> None:
    rendered = frozen(everything(scan_of({"a.b": LINEAR, "tower.a.b": LINEAR}, "tower.a.b")))
    parts = yaml.safe_load(rendered.text)
    assert "training" not in parts
    assert parts["frozen_res"] == [r"^a\.b$"]
    assert re.search(parts["trainer"]["layers_to_freeze_regex"], "model.a.b")
    assert not re.search(parts["trainer"]["layers_to_freeze_regex"], "model.tower.a.b")
    assert rendered.notes == (
        "the list has nothing for H2O LLM Studio, which would freeze tower.a.b with a.b, part of that name",
    )


def test_h2os_own_word_before_names_counts_too() -> None:
    # It sees backbone.a.
    assert "training" not in yaml.safe_load(frozen(everything(scan_of({"a": LINEAR, "bone.a": LINEAR}, "a"))).text)


def test_a_dot_in_a_frozen_name_is_a_dot() -> None:
    parts = yaml.safe_load(frozen(everything(scan_of({"a.b": LINEAR, "axb": LINEAR}, "axb"))).text)
    assert not re.search(parts["frozen_res"][0], "axb")
    assert not re.search(parts["trainer"]["layers_to_freeze_regex"], "model.axb")


def test_there_is_no_list_of_what_is_frozen_where_nothing_is() -> None:
    with pytest.raises(SelectionError, match="every parameter trains"):
        frozen(everything(scan_of({"up.weight": LINEAR}, "up")))


@pytest.mark.parametrize("render", [nemo, frozen])
def test_what_is_frozen_wants_a_scan_that_names_all_parameters(render: Any) -> None:
    with pytest.raises(SelectionError, match=r"the cached scan of m does not say .*--rescan"):
        render(everything(replace(scan_of({"up.weight": LINEAR}, "up"), provenance=None)))
