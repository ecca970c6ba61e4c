"""What a verification finds, each on a checkpoint that has it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import spectrum
from spectrum.checkpoint.checkpoint import Checkpoint
from spectrum.errors import CheckpointError, SpectrumError
from spectrum.verification import parts
from tests.helpers.command import tiny_llama
from tests.helpers.trained import FILE, State, moving, nudged, trained, written_list

DOWN, UP, GATE = (f"model.layers.0.mlp.{name}_proj.weight" for name in ("down", "up", "gate"))
NORM = "model.layers.1.input_layernorm.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
LIST = (r"^lm_head.weight$", "model.layers.0.mlp.down_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("base") / "model", num_hidden_layers=2)


@pytest.fixture
def verify(base: Path, tmp_path: Path) -> Callable[..., spectrum.Verification]:
    def run(
        change: Callable[[State], object] | Path,
        entries: tuple[str, ...] = LIST,
        base: Path = base,
        **config: Any,
    ) -> spectrum.Verification:
        after = change if isinstance(change, Path) else trained(base, tmp_path / "trained", change, **config)
        return spectrum.verify(base, after, written_list(tmp_path / "list.yaml", entries), show_progress=False)

    return run


Verify = Callable[..., spectrum.Verification]
trains = moving(HEAD, DOWN)


def with_training(change: Callable[[State], object]) -> Callable[[State], None]:
    """What the list says moves, and then a change."""

    def both(state: State) -> None:
        trains(state)
        change(state)

    return both


def test_what_was_to_move_moved_and_nothing_else(verify: Verify) -> None:
    found = verify(trains)
    assert found.ok
    assert found.problems == found.notes == ()
    assert found.moved == (DOWN, HEAD)
    assert {one.name for one in found.parameters if one.listed} == {DOWN, HEAD}
    assert str(found).count("ok: the 2 parameters on the list moved, and the other 19 did not") == 1


def test_how_far_a_parameter_moved_is_relative_to_the_base(verify: Verify, base: Path) -> None:
    found = verify(lambda state: state.update({HEAD: state[HEAD] * 1.25, DOWN: state[DOWN] * 0.5}))
    changes = {one.name: one.relative_change for one in found.parameters if one.moved}
    assert changes == {DOWN: pytest.approx(0.5, rel=1e-4), HEAD: pytest.approx(0.25, rel=1e-4)}
    row = next(line for line in str(found).splitlines() if line.startswith("mlp.down_proj"))
    assert row.split() == ["mlp.down_proj", "1", "of", "1", "0", "of", "1", "0.5", "0.5"]


@pytest.mark.parametrize("name", [UP, NORM, EMBEDDING])
def test_one_bit_of_a_frozen_parameter_is_found(verify: Verify, name: str) -> None:
    found = verify(with_training(lambda state: state.update({name: nudged(state[name])})))
    assert found.problems == (f"moved, but was not to train: {name}",)
    assert set(found.moved) == {DOWN, HEAD, name}


def test_a_selected_parameter_that_did_not_move_is_found(verify: Verify) -> None:
    found = verify(moving(DOWN))
    assert found.problems == (f"was to train, but did not move: {HEAD}",)


def test_many_alike_are_counted_by_layer_type(verify: Verify) -> None:
    keys = [f"model.layers.{i}.mlp.{name}_proj.weight" for i in range(2) for name in ("up", "gate")]
    found = verify(with_training(moving(*keys)))
    assert found.problems == (
        "moved, but was not to train: 4 parameters, mlp.gate_proj (2 of 2), mlp.up_proj (2 of 2)",
    )


def test_a_training_without_any_freezing_is_told_in_one_line(verify: Verify) -> None:
    found = verify(lambda state: moving(*state)(state))
    assert found.problems == ("nothing was frozen: all 21 parameters moved, also the 19 not on the list",)


def test_a_training_that_froze_one_parameter_is_no_training_without_any_freezing(verify: Verify) -> None:
    found = verify(lambda state: moving(*(key for key in state if key != NORM))(state))
    (problem,) = found.problems
    assert problem.startswith("moved, but was not to train: 18 parameters, ")


def test_a_training_that_moved_nothing_is_told_in_one_line(verify: Verify) -> None:
    found = verify(lambda state: None)
    assert found.problems == ("nothing moved: every parameter is as in the base, to the last bit",)


def test_a_missing_tensor_is_found(verify: Verify) -> None:
    found = verify(with_training(lambda state: state.pop(UP)))
    (problem,) = found.problems
    assert problem.startswith("missing in ")
    assert problem.endswith(f"trained: {UP}")
    assert found.missing == (UP,)


@pytest.mark.parametrize(("wrong", "name"), [(float("nan"), DOWN), (float("inf"), UP), (float("-inf"), NORM)])
def test_nan_and_infinity_are_found(verify: Verify, wrong: float, name: str) -> None:
    def breaks(state: State) -> None:
        state[name].view(-1)[3] = wrong

    found = verify(with_training(breaks))
    assert f"NaN or infinity in {name}, which the base does not have" in found.problems
    assert str(found)  # a change that is no number has no place in the table


def test_nan_in_both_is_told_apart(verify: Verify, base: Path, tmp_path: Path) -> None:
    def breaks(state: State) -> None:
        state[UP][0, 0] = float("nan")

    broken = trained(base, tmp_path / "broken", breaks)
    found = verify(trains, base=broken)
    assert found.problems == (f"NaN or infinity in {UP}, as in the base",)
    assert UP not in found.moved


def test_another_shape_is_found(verify: Verify) -> None:
    found = verify(with_training(lambda state: state.update({UP: state[UP][:4].clone()})))
    assert found.problems == (f"{UP} is [12, 8] in the base, and [4, 8] in the trained model",)


def test_an_entry_that_matches_nothing_is_named(verify: Verify) -> None:
    found = verify(trains, entries=(*LIST, "model.layers.9"))
    (problem,) = found.problems
    assert "model.layers.9; --check says what to write instead" in problem


def test_a_list_that_stands_twice_is_noted(verify: Verify, base: Path, tmp_path: Path) -> None:
    file = written_list(tmp_path / "twice.yaml", ["model.layers.1"])
    file.write_text(file.read_text() + written_list(tmp_path / "list.yaml", LIST).read_text())
    found = spectrum.verify(base, trained(base, tmp_path / "t", trains), file, show_progress=False)
    assert found.ok
    assert "only the last list" in found.notes[0]


# Precision.


def to(dtype: torch.dtype) -> Callable[[State], State]:
    return lambda state: {key: value.to(dtype) for key, value in state.items()}


def test_a_training_in_float32_that_is_saved_in_bfloat16_is_compared_there(verify: Verify) -> None:
    def change(state: State) -> State:
        trains(state)
        return to(torch.bfloat16)(state)

    found = verify(change, dtype="bfloat16")
    assert found.ok
    assert found.notes == ("21 parameters are float32 in the base and bfloat16 after training: compared at bfloat16",)


def test_an_update_that_saving_rounds_away_is_explained(verify: Verify) -> None:
    def change(state: State) -> State:
        moving(HEAD)(state)
        state[DOWN] = state[DOWN].bfloat16().float() * (1 + 1e-5)
        return to(torch.bfloat16)(state)

    found = verify(change, dtype="bfloat16")
    assert found.problems == (
        f"was to train, but did not move: {DOWN}; changes smaller than the spacing of bfloat16 are lost",
    )


def test_a_wider_dtype_is_compared_exactly(verify: Verify, tmp_path: Path) -> None:
    half = tiny_llama(tmp_path / "half", dtype="bfloat16", num_hidden_layers=2)

    def change(state: State) -> State:
        state = to(torch.float32)(state)
        trains(state)
        return state | {UP: nudged(state[UP])}

    found = verify(change, base=half, dtype="float32")
    assert found.problems == (f"moved, but was not to train: {UP}",)
    assert found.notes == ("21 parameters are bfloat16 in the base and float32 after training: compared exactly",)


def test_what_was_rounded_on_the_way_did_not_move(verify: Verify) -> None:
    def change(state: State) -> State:
        state = to(torch.float32)(to(torch.bfloat16)(state))
        trains(state)
        return state

    found = verify(change)
    assert found.ok
    assert found.moved == (DOWN, HEAD)
    # Norms are ones, which rounding keeps.
    assert found.notes == ("14 parameters were rounded to bfloat16, and otherwise did not change",)
    assert {one.relative_change for one in found.parameters if not one.moved} == {0.0}


def test_what_was_rounded_is_not_called_equal_to_the_last_bit(verify: Verify) -> None:
    found = verify(lambda state: {key: value.bfloat16().float() for key, value in state.items()})
    assert found.problems == (
        "nothing moved: every parameter is as in the base, but for rounding; "
        "changes smaller than the spacing of bfloat16 are lost",
    )


# Tied and resized embeddings.


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("tied") / "model", tie_word_embeddings=True)


def test_tied_embeddings_are_one_parameter(verify: Verify, tied: Path) -> None:
    found = verify(moving(EMBEDDING), base=tied, entries=("^lm_head.weight$", f"^{EMBEDDING}$"))
    assert found.ok
    assert found.moved == (EMBEDDING,)
    assert HEAD not in [one.name for one in found.parameters]


def test_a_tied_embedding_that_did_not_move_is_named_once(verify: Verify, tied: Path) -> None:
    found = verify(moving(DOWN), base=tied, entries=(*LIST, f"^{EMBEDDING}$"))
    assert found.problems == (f"was to train, but did not move: {EMBEDDING}",)


def test_an_entry_for_a_tied_head_alone_trains_nothing(verify: Verify, tied: Path) -> None:
    found = verify(moving(DOWN), base=tied)
    assert "^lm_head.weight$; --check" in found.problems[0]


def test_a_head_that_training_has_untied_is_noted(verify: Verify, tied: Path) -> None:
    def change(state: State) -> None:
        state[HEAD] = state[EMBEDDING] * 2
        moving(EMBEDDING)(state)

    found = verify(change, base=tied, entries=("^lm_head.weight$", f"^{EMBEDDING}$"), tie_word_embeddings=False)
    assert found.ok
    assert found.notes == (f"{HEAD} is tied to {EMBEDDING} in the base, and is not in the trained model",)
    assert found.moved == (EMBEDDING, HEAD)


def test_a_head_that_is_untied_and_stayed_is_no_problem(verify: Verify, tied: Path) -> None:
    def change(state: State) -> None:
        state[HEAD] = state[EMBEDDING].clone()
        moving(EMBEDDING)(state)

    assert verify(change, base=tied, entries=(EMBEDDING,), tie_word_embeddings=False).ok


def test_a_head_that_is_tied_after_training_is_noted(verify: Verify, base: Path) -> None:
    def change(state: State) -> None:
        del state[HEAD]
        moving(DOWN)(state)

    found = verify(change, tie_word_embeddings=True)
    assert found.notes == (f"{HEAD} is not tied in the base, and is tied to {EMBEDDING} in the trained model",)
    assert found.ok  # the head was to move, and is now the embedding


@pytest.mark.parametrize("in_rows", [True, False])
@pytest.mark.parametrize("rows", [6, 12])
def test_a_resized_vocabulary_is_compared_in_the_rows_that_both_have(
    verify: Verify, base: Path, rows: int, in_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_rows:  # as of a parameter that is stored otherwise than its class has it
        monkeypatch.setattr(Checkpoint, "reads_rows", lambda checkpoint, parameter: False)
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(rows, mean_resizing=False)
    resized = {name: value.detach().clone() for name, value in model.state_dict().items()}

    found = verify(with_training(lambda state: state.update(resized | {DOWN: resized[DOWN] + 1})), vocab_size=rows)
    assert found.problems == (f"was to train, but did not move: {HEAD}",)
    assert found.notes == (
        f"{EMBEDDING} is resized from 8 rows to {rows}; the first {min(8, rows)} were compared",
        f"{HEAD} is resized from 8 rows to {rows}; the first {min(8, rows)} were compared",
    )
    changed = resized | {EMBEDDING: nudged(resized[EMBEDDING][: min(8, rows)])}
    if rows > 8:
        changed[EMBEDDING] = torch.cat([changed[EMBEDDING], resized[EMBEDDING][8:]])
    shutil.rmtree(Path(found.trained))
    found = verify(lambda state: changed | {DOWN: resized[DOWN] + 1, HEAD: resized[HEAD] + 1}, vocab_size=rows)
    assert found.problems == (f"moved, but was not to train: {EMBEDDING}",)


@pytest.mark.parametrize("in_rows", [True, False])
@pytest.mark.parametrize("at_once", [1, 32 << 20])
def test_nan_in_a_row_that_is_new_is_found(
    verify: Verify, base: Path, at_once: int, in_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_MAX_BYTES", at_once)
    if not in_rows:
        monkeypatch.setattr(Checkpoint, "reads_rows", lambda checkpoint, parameter: False)

    def grow(state: State) -> None:
        for name in (EMBEDDING, HEAD):
            state[name] = torch.cat([state[name], torch.ones(3, 8, dtype=state[name].dtype)])
        state[HEAD][-1, -1] = float("nan")

    found = verify(with_training(grow), vocab_size=11)
    assert found.problems == (f"NaN or infinity in {HEAD}, which the base does not have",)


# Rows.


def rows(name: str, *numbers: int) -> Callable[[State], None]:
    def change(state: State) -> None:
        for number in numbers:
            state[name][number] += 1

    return change


def test_rows_on_the_list_that_moved_are_right(verify: Verify) -> None:
    found = verify(rows(DOWN, 2, 3), entries=("model.layers.0.mlp.down_proj.weight[2:5]",))
    assert found.ok
    assert found.moved == (DOWN,)


def test_the_row_after_the_last_is_not_on_the_list(verify: Verify) -> None:
    found = verify(rows(DOWN, 4, 5), entries=("model.layers.0.mlp.down_proj.weight[2:5]",))
    assert found.problems[0].startswith("rows that are not on the list moved too")


def test_other_rows_that_moved_are_a_problem(verify: Verify) -> None:
    found = verify(rows(DOWN, 2, 6), entries=("model.layers.0.mlp.down_proj.weight[2:5]",))
    (problem,) = found.problems
    assert problem.startswith(f"rows that are not on the list moved too, in {DOWN}")
    assert "weight decay" in problem


def test_rows_on_the_list_that_did_not_move_are_a_problem(verify: Verify) -> None:
    found = verify(rows(DOWN, 6), entries=("model.layers.0.mlp.down_proj.weight[2:5]",))
    assert f"was to train, but did not move: {DOWN}" in found.problems[0]
    assert found.problems[1].startswith("rows that are not on the list")


def test_other_rows_that_were_only_rounded_did_not_move(verify: Verify) -> None:
    def change(state: State) -> None:
        state.update({name: value.bfloat16().float() for name, value in state.items()})
        rows(DOWN, 2)(state)

    found = verify(change, entries=("model.layers.0.mlp.down_proj.weight[2:5]",))
    assert found.ok, found.problems
    assert found.moved == (DOWN,)


def test_norms_in_sixteen_bits_that_did_not_move_are_explained(verify: Verify, base: Path, tmp_path: Path) -> None:
    norm = "model.norm.weight"

    sixteen = trained(base, tmp_path / "base", to(torch.bfloat16), dtype="bfloat16")
    found = verify(moving(HEAD), entries=("^lm_head.weight$", f"^{norm}$"), base=sixteen)
    assert found.problems == (
        f"was to train, but did not move: {norm}; changes smaller than the spacing of bfloat16 are lost",
    )


def test_an_entry_for_the_whole_parameter_beats_one_for_rows(verify: Verify) -> None:
    assert verify(rows(DOWN, 6), entries=("model.layers.0.mlp.down_proj.weight[2:5]", "model.layers.0.mlp.down")).ok


@pytest.mark.parametrize("at_once", [64, 200])  # bytes: rows one by one, and several
def test_parts_tell_what_the_whole_tells(verify: Verify, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(parts, "_MAX_BYTES", at_once)
    entries = ("model.layers.0.mlp.down_proj.weight[2:5]", "^lm_head.weight$")

    def change(state: State) -> None:
        state[HEAD] = state[HEAD] * 2
        rows(DOWN, 2, 7)(state)
        state[EMBEDDING] = nudged(state[EMBEDDING])

    found = verify(change, entries=entries)
    assert [problem.partition(":")[0] for problem in found.problems] == [
        "moved, but was not to train",
        f"rows that are not on the list moved too, in {DOWN}",
    ]
    change_of = {one.name: one.relative_change for one in found.parameters}
    assert change_of[HEAD] == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("at_once", [32, 64, 32 << 20])
@pytest.mark.parametrize("row", [0, 3, 7])
def test_one_part_of_many_tells(verify: Verify, monkeypatch: pytest.MonkeyPatch, at_once: int, row: int) -> None:
    monkeypatch.setattr(parts, "_MAX_BYTES", at_once)

    def change(state: State) -> None:
        trains(state)
        state[EMBEDDING][row] *= 3
        state[GATE][row, 0] = float("nan")

    def relative(state: State) -> float:
        return float(2 * state[EMBEDDING][row].norm() / state[EMBEDDING].norm())

    found = verify(change)
    by_name = {one.name: one for one in found.parameters}
    before = load_file(Path(found.base) / FILE)
    assert by_name[EMBEDDING].relative_change == pytest.approx(relative(before), rel=1e-4)
    assert f"NaN or infinity in {GATE}, which the base does not have" in found.problems


def test_a_change_of_zeros_is_infinite_and_no_change_is_none(verify: Verify, base: Path, tmp_path: Path) -> None:
    zeros = trained(base, tmp_path / "zeros", lambda state: state.update({UP: torch.zeros(12, 8), GATE: state[UP] * 0}))
    found = verify(trained(zeros, tmp_path / "t", lambda state: state.update({UP: state[UP] + 1})), (UP,), zeros)
    assert found.ok
    changes = {one.name: one.relative_change for one in found.parameters}
    assert (changes[UP], changes[GATE]) == (float("inf"), 0.0)


# Other classes, and other files.


def saved(model: Any, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


def test_a_trained_model_without_its_head_is_matched(verify: Verify, base: Path, tmp_path: Path) -> None:
    model: Any = transformers.AutoModel.from_pretrained(base)
    with torch.no_grad():
        model.layers[0].mlp.down_proj.weight.add_(1)
    found = verify(saved(model, tmp_path / "headless"), entries=("model.layers.0.mlp.down_proj",))
    assert found.ok
    assert found.notes == (
        "LlamaModel calls embed_tokens.weight what LlamaForCausalLM calls model.embed_tokens.weight, and others alike",
        f"only in LlamaForCausalLM, the class of the base: {HEAD}",
    )
    found = verify(tmp_path / "headless")
    assert found.problems == (f"on the list, but LlamaModel has no such parameter: {HEAD}",)


def test_a_base_without_a_head_is_matched(verify: Verify, base: Path, tmp_path: Path) -> None:
    headless = saved(transformers.AutoModel.from_pretrained(base), tmp_path / "headless")
    found = verify(trained(base, tmp_path / "full", moving(DOWN)), base=headless, entries=("layers.0.mlp.down_proj",))
    assert found.ok
    assert found.notes[-1] == f"only in the trained model: {HEAD}"


def test_the_class_that_is_asked_for_is_that_of_the_base(base: Path, tmp_path: Path) -> None:
    listing = written_list(tmp_path / "list.yaml", ["layers.0.mlp.down_proj"])
    after = trained(base, tmp_path / "after", moving(DOWN))
    found = spectrum.verify(base, after, listing, model_class="LlamaModel", show_progress=False)
    assert found.ok
    assert found.moved == (DOWN.removeprefix("model."),)
    assert found.notes[0].startswith("LlamaForCausalLM calls model.embed_tokens.weight what LlamaModel calls embed")


def test_a_tensor_that_a_classs_files_lack_is_missing_under_another_name_too(
    verify: Verify, base: Path, tmp_path: Path
) -> None:
    headless = saved(transformers.AutoModel.from_pretrained(base), tmp_path / "headless")
    name = "layers.0.mlp.up_proj.weight"
    incomplete = trained(headless, tmp_path / "t", lambda state: {key: state[key] for key in state if key != name})
    found = verify(incomplete, entries=("model.layers.0.mlp.down_proj",))
    assert f"missing in {incomplete}: {UP}" in found.problems


@pytest.mark.parametrize("model_class", ["LlamaModel", "LlamaForSequenceClassification"])
def test_a_tensor_outside_of_layers_that_a_classs_files_lack_is_missing(
    verify: Verify, base: Path, tmp_path: Path, model_class: str
) -> None:
    lacking = ("norm.weight", "model.norm.weight")
    other = saved(getattr(transformers, model_class).from_pretrained(base), tmp_path / "other")
    incomplete = trained(other, tmp_path / "t", lambda state: {key: state[key] for key in state if key not in lacking})
    found = verify(incomplete, entries=("model.layers.0.mlp.down_proj",))
    assert f"missing in {incomplete}: model.norm.weight" in found.problems


def test_a_classifier_keeps_the_names_and_has_a_head_of_its_own(verify: Verify, base: Path, tmp_path: Path) -> None:
    model: Any = transformers.LlamaForSequenceClassification.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.add_(1)
    found = verify(saved(model, tmp_path / "classifier"), entries=("model.layers.0.mlp.down_proj",))
    assert found.ok
    assert found.notes == (
        f"only in LlamaForCausalLM, the class of the base: {HEAD}",
        "only in the trained model: score.weight",
    )


def test_nan_in_what_only_the_trained_model_has_is_found(verify: Verify, base: Path, tmp_path: Path) -> None:
    model: Any = transformers.LlamaForSequenceClassification.from_pretrained(base)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.add_(1)
        model.score.weight[0, 0] = float("inf")
    found = verify(saved(model, tmp_path / "classifier"), entries=("model.layers.0.mlp.down_proj",))
    assert found.problems == ("NaN or infinity in score.weight, only in the trained model",)


@pytest.mark.parametrize("model_class", ["LlamaModel", "LlamaForCausalLM"])
def test_layers_that_are_gone_are_missing_in_every_class(
    verify: Verify, base: Path, tmp_path: Path, model_class: str
) -> None:
    model: Any = getattr(transformers, model_class).from_pretrained(base, num_hidden_layers=1)
    with torch.no_grad():
        model.base_model.layers[0].mlp.down_proj.weight.add_(1)
    shorter = saved(model, tmp_path / "shorter")
    (problem,) = verify(shorter, entries=("model.layers.0.mlp.down_proj",)).problems
    assert problem.startswith(f"missing in {shorter}: 9 parameters, model.layers.1.self_attn.q_proj.weight, ")


def test_a_value_head_is_noted(verify: Verify) -> None:
    found = verify(with_training(lambda state: state.update({"v_head.summary.weight": torch.ones(1, 8)})))
    assert found.ok
    assert "v_head.summary.weight" in found.notes[0]


def test_an_adapter_that_is_stored_beside_the_weights_is_noted(verify: Verify) -> None:
    key = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"
    found = verify(with_training(lambda state: state.update({key: torch.ones(2, 12)})))
    assert found.ok
    assert found.notes == ("1 tensor of adapters is not merged, and not compared; merge_and_unload() merges them",)


def test_a_model_that_has_nothing_of_the_base_is_refused(verify: Verify, tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    other = saved(transformers.GPT2LMHeadModel(config), tmp_path / "gpt2")
    with pytest.raises(SpectrumError, match="has none of the layers of"):
        verify(other)


def test_the_base_itself_is_refused(verify: Verify, base: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(base)
    for same in (base, tmp_path / "link"):
        with pytest.raises(CheckpointError, match="both the base and the trained model"):
            verify(same)


def test_a_quantized_trained_model_is_refused(verify: Verify) -> None:
    with pytest.raises(CheckpointError, match=r"is quantized \(gptq\), and the base is not"):
        verify(trains, quantization_config={"quant_method": "gptq", "bits": 4})


def test_a_list_that_is_none_is_refused_before_a_model_is_opened(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("a: 1\n")
    with pytest.raises(SpectrumError, match="has no unfrozen_parameters"):
        spectrum.verify(tmp_path / "no-base", tmp_path / "no-model", tmp_path / "list.yaml")


def test_hostile_names_stay_on_their_line(verify: Verify) -> None:
    found = verify(with_training(lambda state: state.update({"a\nproblem: \x1b[31mb": torch.ones(1)})))
    assert "\x1b" not in str(found)
    assert not any(line.startswith("problem") for line in str(found).splitlines())
    assert "\n" not in found._repr_html_().partition("</p>")[0].removeprefix("<p>").replace("<br>\n", "")


def test_a_trained_model_of_the_wrong_size_is_told_in_few_lines(verify: Verify, tmp_path: Path) -> None:
    wider = tiny_llama(tmp_path / "wider", hidden_size=16, num_hidden_layers=2)
    found = verify(wider)
    assert len(found.problems) <= 5
    assert "is [8, 8] in the base, and [8, 16] in the trained model" in found.problems[0]


def test_shards_are_compared_as_one_file_is(verify: Verify, base: Path, tmp_path: Path) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for name in (HEAD, DOWN):
            model.get_parameter(name).add_(1)
    model.save_pretrained(tmp_path / "shards", max_shard_size="1KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert verify(tmp_path / "shards").ok


def test_safetensors_and_bin_files_are_compared(verify: Verify, base: Path, tmp_path: Path) -> None:
    after = trained(base, tmp_path / "bin", trains)
    torch.save(load_file(after / FILE), after / "pytorch_model.bin")
    (after / FILE).unlink()
    assert verify(after).ok


def test_a_file_that_is_cut_off_is_named(verify: Verify, base: Path, tmp_path: Path) -> None:
    after = trained(base, tmp_path / "cut", trains)
    (after / FILE).write_bytes((after / FILE).read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=FILE):
        verify(after)
