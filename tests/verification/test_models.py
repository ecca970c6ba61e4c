"""Models in memory, wrapped or not; mixtures of experts; towers; models on the Hub; what sharded training leaves."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel

import spectrum
from spectrum.errors import CheckpointError, SpectrumError
from spectrum.trainers.formats.formats import FORMATS
from spectrum.verification import comparison, parts
from tests.helpers.architectures import ARCHITECTURES, built
from tests.helpers.hub_client import serving
from tests.helpers.hub_server import Repo, Revision, commit
from tests.helpers.quantized import save_fp8
from tests.helpers.trained import FILE, moving, nudged, trained, written_list
from tests.helpers.wrappers import FILTERS, checkpointed, compiled, layers_compiled, with_fsdp, with_fsdp2

pytestmark = FILTERS

DOWN, UP = "model.layers.0.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight"


def saved(model: Any, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


def moved(model: Any, *names: str) -> Any:
    """A copy of a model in which these parameters have moved."""
    after = copy.deepcopy(model)
    with torch.no_grad():
        for name in names:
            after.get_parameter(name).mul_(1.5)
    return after


def verify(before: Any, after: Any, listing: Any, **options: Any) -> spectrum.Verification:
    return spectrum.verify(before, after, listing, show_progress=False, **options)


# In memory.


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(
    "wrap", [lambda model: model, compiled, layers_compiled, checkpointed, DistributedDataParallel]
)
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_model_in_memory_is_compared_without_its_wrappers(
    tmp_path: Path, wrap: Callable[[Any], Any], in_memory: bool
) -> None:
    model = built("llama").float()
    before = model if in_memory else saved(model, tmp_path / "base")
    listing = written_list(tmp_path / "list.yaml", [DOWN])
    assert verify(before, wrap(moved(model, DOWN)), listing).ok
    found = verify(before, wrap(moved(model, DOWN, UP)), listing)
    assert found.problems == (f"moved, but was not to train: {UP}",)
    assert found.notes == ()


def test_both_models_may_be_on_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every value that is compared has been brought to the processor's memory."""
    brought = set[int]()
    to_cpu, compare_parts = torch.Tensor.cpu, comparison.compare

    def cpu(value: torch.Tensor) -> torch.Tensor:
        brought.add(value.data_ptr())
        return to_cpu(value)

    def compare(base: torch.Tensor, trained: torch.Tensor, *others: Any, **options: Any) -> Any:
        assert {base.data_ptr(), trained.data_ptr()} <= brought
        return compare_parts(base, trained, *others, **options)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    model = built("llama").float()
    after = moved(model, DOWN)
    monkeypatch.setattr(comparison, "compare", compare)
    assert verify(model, after, written_list(tmp_path / "l.yaml", [DOWN])).ok


def test_adapters_in_memory_are_counted_and_what_they_replace_is_compared(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = built("llama")
    after: Any = moved(model, DOWN)
    modules = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    after = get_peft_model(after, modules)
    with torch.no_grad():
        for name, value in after.named_parameters():
            if "modules_to_save" in name:
                value.add_(1)
    listing = written_list(tmp_path / "list.yaml", [DOWN, "^lm_head.weight$"])
    found = verify(model, after, listing)
    assert found.ok, found.problems
    assert "tensors of adapters are not merged" in found.notes[-1]
    # Two for each of two modules in two layers, and the head's original, which is not used.
    assert found.notes[-1].startswith("9 ")


def test_tied_embeddings_in_memory_are_one_parameter(tmp_path: Path) -> None:
    model = built("llama-tied")
    after = moved(model, "model.embed_tokens.weight")
    found = verify(saved(model, tmp_path / "m"), after, written_list(tmp_path / "l.yaml", ["model.embed_tokens"]))
    assert found.ok
    assert found.notes == ()


@pytest.mark.parametrize("after", ["resized", "half"])
def test_a_model_in_memory_may_be_resized_and_of_another_dtype(tmp_path: Path, after: str) -> None:
    model = built("llama").float()
    changed = moved(model, DOWN)
    if after == "resized":
        changed.resize_token_embeddings(70)
    else:
        changed.half()
    found = verify(model, changed, written_list(tmp_path / "l.yaml", [DOWN]))
    assert found.ok
    assert ("from 64 rows to 70" if after == "resized" else "compared at float16") in found.notes[0]


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("wrap", [with_fsdp2, lambda model: with_fsdp(model, original=False)])
def test_a_sharded_model_in_memory_is_refused(tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
    model = built("llama").float()
    with pytest.raises(SpectrumError, match=r"as a whole in memory; save|none of the layers"):
        verify(model, wrap(copy.deepcopy(model)), written_list(tmp_path / "l.yaml", [DOWN]))


def test_quantized_and_empty_models_in_memory_are_refused(tmp_path: Path) -> None:
    model, listing = built("llama"), written_list(tmp_path / "l.yaml", [DOWN])
    packed = copy.deepcopy(model)
    packed.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(torch.zeros(32, 48).byte(), requires_grad=False)
    with pytest.raises(CheckpointError, match="as uint8: it is quantized"):
        verify(model, packed, listing)
    with pytest.raises(CheckpointError, match="as a whole in memory"):
        verify(model, copy.deepcopy(model).to("meta"), listing)


def test_a_model_that_is_its_own_base_is_refused_wrapped_or_not(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = built("llama")
    listing = written_list(tmp_path / "l.yaml", [DOWN])
    for same in (model, compiled(model), get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))):
        with pytest.raises(CheckpointError, match="one and the same object"):
            verify(model, same, listing)


@pytest.mark.parametrize("wrong", [None, 3, transformers.LlamaForCausalLM, "selection"])
def test_wrong_arguments_are_refused(tmp_path: Path, wrong: Any) -> None:
    model = built("llama")
    after, listing = (model, 3) if wrong == "selection" else (wrong, tmp_path)
    with pytest.raises(ValueError, match="is expected"):
        verify(model, after, listing)


# Selections.


def test_a_selection_is_what_was_to_move(tmp_path: Path) -> None:
    model = built("llama").float()
    selection = spectrum.select(spectrum.scan(model, show_progress=False), 50)
    after = moved(model, *selection.trained())
    found = verify(saved(model, tmp_path / "m"), after, selection)
    assert found.ok
    assert set(found.moved) == set(selection.trained())
    fewer = spectrum.select(spectrum.scan(model, show_progress=False), 50, embeddings=False)
    assert verify(model, after, fewer).problems == (
        "moved, but was not to train: model.embed_tokens.weight, lm_head.weight",
    )


def test_a_scan_of_another_tool_does_not_say_how_embeddings_are_called(tmp_path: Path) -> None:
    model = built("gpt2")
    selection = spectrum.select(replace(spectrum.scan(model, show_progress=False), provenance=None), 50)
    names = [name for name in selection.trained() if name in dict(model.named_parameters())]
    assert len(names) < len(selection.trained())
    embedding = "transformer.wte.weight"  # the head, which is named as assumed, is tied to it
    assert verify(model, moved(model, *names, embedding), selection).ok


def test_a_selection_of_another_model_names_what_is_not_there(tmp_path: Path) -> None:
    selection = spectrum.select(spectrum.scan(built("gpt2"), show_progress=False), 50)
    model = built("llama")
    found = verify(model, moved(model, DOWN), selection)
    assert any("on the list, but no parameter of" in problem for problem in found.problems)


# Lists of every reader.


@pytest.mark.parametrize("form", [form for form in FORMATS if form != "json"])
def test_a_list_in_every_format_says_what_was_to_move(tmp_path: Path, form: str) -> None:
    model = built("llama").float()
    selection = spectrum.select(spectrum.scan(model, show_progress=False), 50, embeddings=not FORMATS[form].adapters)
    listing = tmp_path / f"list.{FORMATS[form].ending}"
    listing.write_text(FORMATS[form].render(selection).text)
    names = [name for name in selection.trained() if not (FORMATS[form].adapters and "norm" in name)]
    found = verify(model, moved(model, *names), listing)
    assert found.ok, found.problems
    assert set(found.moved) == set(names)
    first, *others = names
    assert verify(model, moved(model, *others), listing).problems == (f"was to train, but did not move: {first}",)
    assert len(verify(model, moved(model, *names, UP, DOWN), listing).problems) == 1


def test_what_a_list_for_adapters_also_trains_is_noted(tmp_path: Path) -> None:
    listing = tmp_path / "list.yaml"
    listing.write_text("target_modules: [down_proj]\nmodules_to_save: [lm_head]\n")
    model = built("llama")
    found = verify(model, moved(model, DOWN, DOWN.replace("0", "1"), "lm_head.weight"), listing)
    assert found.problems == ("moved, but was not to train: lm_head.weight",)
    assert any("modules_to_save" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("layer_freezing:\n  layer_names: [model.norm.weights]\n", "model.norm.weights"),
        ("freeze_config:\n  unfreeze_modules: [{path: model.layers.7}]\n", "model.layers.7"),
        ("adapter: lora\nlora_target_modules: [down_proj, downproj]\n", "downproj"),
        ("model.layers.0.mlp.down_proj.weight\nmodel.layers.0.mlp.nothing.weight\n", "model.layers.0.mlp.nothing"),
    ],
)
def test_an_entry_of_another_reader_that_matches_nothing_is_named(tmp_path: Path, text: str, entry: str) -> None:
    listing = tmp_path / "list.yaml"
    listing.write_text(text)
    model = built("llama")
    found = verify(model, moved(model, DOWN), listing)
    assert any(
        f"on the list, but no parameter of the LlamaForCausalLM in memory: {entry}" in problem
        for problem in found.problems
    )


# Architectures.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_compared_whole(tmp_path: Path, architecture: str) -> None:
    model = built(architecture)
    base = saved(model, tmp_path / "base")
    matrices = [name for name, value in model.named_parameters() if value.ndim > 1]
    name, other = matrices[len(matrices) // 2], matrices[-1]
    after = saved(moved(model, name), tmp_path / "after")
    found = verify(base, after, written_list(tmp_path / "l.yaml", [f"^{name}$"]))
    assert found.ok, found.problems
    assert found.moved == (name,)
    assert len({one.name for one in found.parameters}) == len(list(model.named_parameters()))
    found = verify(base, after, written_list(tmp_path / "l.yaml", [f"^{other}$"]))
    assert found.problems == (
        f"moved, but was not to train: {name}",
        f"was to train, but did not move: {other}",
    )


@pytest.mark.parametrize("architecture", ["qwen3-moe", "gpt-oss", "mixtral"])
def test_one_bit_of_one_expert_is_found_in_every_way_to_read_a_stack(
    tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(architecture)
    base = saved(model, tmp_path / "base")
    name = next(name for name, value in model.named_parameters() if value.ndim == 3)
    after = copy.deepcopy(model)
    with torch.no_grad():
        stack = after.get_parameter(name)
        stack[2].copy_(nudged(stack[2]))
    changed = saved(after, tmp_path / "after")
    listing = written_list(tmp_path / "l.yaml", [f"^{name}$"])
    for size in (parts._MAX_BYTES, 256):
        monkeypatch.setattr(parts, "_MAX_BYTES", size)
        found = verify(base, changed, listing)
        assert found.ok
        change = next(one.relative_change for one in found.parameters if one.moved)
        whole, before = (one.get_parameter(name).detach().double() for one in (after, model))
        assert change == pytest.approx(float((whole - before).norm() / before.norm()), rel=1e-4)
        in_rows = written_list(tmp_path / "rows.yaml", [f"^{name}$[2]"])
        assert verify(base, changed, in_rows).ok
        wrong = written_list(tmp_path / "wrong.yaml", [f"^{name}$[1]"])
        assert len(verify(base, changed, wrong).problems) == 2


def test_the_text_model_of_a_vision_model_is_matched(tmp_path: Path) -> None:
    whole = built("gemma3")
    base = saved(whole, tmp_path / "base")
    model_class: Any = transformers.Gemma3ForCausalLM
    text = model_class.from_pretrained(base, config=whole.config.text_config)
    names = {name: value for name, value in whole.named_parameters() if "language_model" in name and value.ndim > 1}
    name = next(name for name in names if "mlp" in name)
    with torch.no_grad():
        for own, value in text.named_parameters():
            twin = whole.get_parameter(own.replace("model.", "model.language_model.", 1))
            value.copy_(twin)
    text.get_parameter(name.replace("language_model.", "")).data.mul_(2)
    found = verify(base, saved(text, tmp_path / "text"), written_list(tmp_path / "l.yaml", [name]))
    assert found.ok, found.problems
    assert found.moved == (name,)
    assert any("Gemma3ForCausalLM calls" in note for note in found.notes)
    assert any("only in Gemma3ForConditionalGeneration, the class of the base" in note for note in found.notes)


# On the Hub.


@pytest.mark.parametrize("architecture", ["llama-tied", "qwen3-moe", "gpt-oss"])
@pytest.mark.parametrize("size", [32 << 20, 256])
def test_models_on_the_hub_are_read_by_ranges(
    tmp_path: Path, architecture: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_MAX_BYTES", size)
    model = built(architecture)
    name = [name for name, value in model.named_parameters() if value.ndim > 1][1]
    base, after = saved(model, tmp_path / "base"), saved(moved(model, name), tmp_path / "after")
    repos = {
        "org/base": Repo(base, commit("a")),
        "org/trained": Repo(base, commit("a"), refs={"epoch-2": Revision(after, commit("c"))}),
    }
    listing = written_list(tmp_path / "l.yaml", [f"^{name}$"])
    with serving(tmp_path / "home", repos):
        for one in (str(base), "org/base"):
            assert verify(one, after, listing).ok
            found = verify(one, "org/trained", listing, trained_revision="epoch-2")
            assert found.ok
            assert found.moved == (name,)
            assert "nothing moved" in verify(one, "org/trained", listing).problems[0]
        with pytest.raises(CheckpointError, match="both the base and the trained"):
            verify("org/base", "org/base", listing)
    assert not list((tmp_path / "home").rglob("*.safetensors"))


# What sharded training leaves.


def leftover(directory: Path, base: Path, *names: str) -> Path:
    """A folder of a training that has these files and the model's config, and no whole weights."""
    directory.mkdir()
    shutil.copy(base / "config.json", directory)
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"x")
    return directory


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (("zero_to_fp32.py", "global_step10/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"), "zero_to_fp32.py"),
        (("pytorch_model_fsdp_0/__0_0.distcp",), "accelerate merge-weights"),
        (("__0_0.distcp", ".metadata"), "accelerate merge-weights"),
        (
            ("checkpoint-10/zero_to_fp32.py", "checkpoint-10/global_step10/mp_rank_00_model_states.pt"),
            "zero_to_fp32.py",
        ),
        (("optimizer.pt", "trainer_state.json"), "has the state of a training"),
        (("model.gguf",), "GGUF"),
        (("adapter_config.json", "adapter_model.safetensors"), "holds an adapter"),
    ],
)
def test_what_training_leaves_in_place_of_a_model_is_named(tmp_path: Path, names: tuple[str, ...], advice: str) -> None:
    base = saved(built("llama"), tmp_path / "base")
    after = leftover(tmp_path / "after", base, *names)
    with pytest.raises(CheckpointError, match=advice):
        verify(base, after, written_list(tmp_path / "l.yaml", [DOWN]))


def test_a_training_run_names_its_newest_checkpoint(tmp_path: Path) -> None:
    base = saved(built("llama"), tmp_path / "base")
    for step in (2, 10):
        trained(base, tmp_path / "run" / f"checkpoint-{step}", moving(DOWN))
    with pytest.raises(CheckpointError, match="checkpoint-10"):
        verify(base, tmp_path / "run", written_list(tmp_path / "l.yaml", [DOWN]))
    assert verify(base, tmp_path / "run" / "checkpoint-10", written_list(tmp_path / "l.yaml", [DOWN])).ok


@pytest.mark.parametrize(
    ("rename", "reason"),
    [
        (lambda key: f"_orig_mod.{key}", "torch.compile"),
        (lambda key: f"module.{key}", "data-parallel"),
        (lambda key: f"base_model.model.{key}", "adapter is not merged"),
        (lambda key: key.replace("q_proj.", "q_proj.base_layer."), "adapter is not merged"),
        (lambda key: key.replace("layers.0.", "layers.0._fsdp_wrapped_module."), "FSDP"),
    ],
)
def test_names_of_wrappers_in_the_files_are_named(tmp_path: Path, rename: Callable[[str], str], reason: str) -> None:
    base = saved(built("llama"), tmp_path / "base")
    after = trained(base, tmp_path / "after", lambda state: {rename(key): value for key, value in state.items()})
    with pytest.raises(CheckpointError, match=reason):
        verify(base, after, written_list(tmp_path / "l.yaml", [DOWN]))


def test_tensors_that_zero_has_left_empty_are_named(tmp_path: Path) -> None:
    base = saved(built("llama"), tmp_path / "base")
    after = trained(base, tmp_path / "after", lambda state: {key: torch.zeros(0) for key in state})
    with pytest.raises(CheckpointError, match="ZeRO-3"):
        verify(base, after, written_list(tmp_path / "l.yaml", [DOWN]))


# Hostile files.


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"vocab_size": 10**12}, None),
        ({"num_hidden_layers": 10**9}, "layers"),
        ({"auto_map": {"AutoModelForCausalLM": "evil.Evil"}, "architectures": ["Evil"]}, None),
    ],
)
def test_a_hostile_config_of_the_trained_model_is_refused_or_does_not_matter(
    tmp_path: Path, settings: dict[str, Any], reason: str | None
) -> None:
    base = saved(built("llama"), tmp_path / "base")
    after = trained(base, tmp_path / "after", moving(DOWN), **settings)
    (after / "evil.py").write_text("raise SystemExit(3)")
    listing = written_list(tmp_path / "l.yaml", [DOWN])
    if reason is None:
        assert verify(base, after, listing).ok
        return
    with pytest.raises(CheckpointError, match=reason):
        verify(base, after, listing)


@pytest.mark.parametrize("shape", [(), (1,), (2, 2, 2, 2), (10**5,)], ids=str)
def test_hostile_shapes_are_findings(tmp_path: Path, shape: tuple[int, ...]) -> None:
    base = saved(built("llama"), tmp_path / "base")
    after = trained(base, tmp_path / "after", moving("lm_head.weight"))
    state = load_file(after / FILE)
    save_file(state | {UP: torch.zeros(shape)}, after / FILE, metadata={"format": "pt"})
    found = verify(base, after, written_list(tmp_path / "l.yaml", ["^lm_head.weight$"]))
    assert found.problems == (f"{UP} is [48, 32] in the base, and {list(shape)} in the trained model",)


# A quantized base.


def test_a_quantized_base_is_compared_as_dequantized(tmp_path: Path) -> None:
    pytest.importorskip("transformers.integrations.finegrained_fp8")
    values = save_fp8(tmp_path / "base", experts=False)
    shutil.copytree(tmp_path / "base", tmp_path / "after")
    for file in (tmp_path / "after").glob("model*"):
        file.unlink()
    config = json.loads((tmp_path / "after" / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "after" / "config.json").write_text(json.dumps(config))
    save_file(values | {DOWN: values[DOWN] * 2}, tmp_path / "after" / FILE, metadata={"format": "pt"})
    found = verify(tmp_path / "base", tmp_path / "after", written_list(tmp_path / "l.yaml", [DOWN]))
    assert found.ok, found.problems
    assert found.notes[-1] == f"{tmp_path / 'base'} is quantized (fp8), and was compared as dequantized"
    with pytest.raises(CheckpointError, match=r"is quantized \(fp8\), and the base is not"):
        verify(tmp_path / "after", tmp_path / "base", written_list(tmp_path / "l.yaml", [DOWN]))
