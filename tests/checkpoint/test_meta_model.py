"""The class that names the parameters, and the config that the class gets. transformers' own loading is the oracle."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from spectrum.checkpoint import hub
from spectrum.checkpoint.checkpoint import Checkpoint
from spectrum.checkpoint.reader import describe_model, open_checkpoint
from spectrum.errors import CheckpointError
from spectrum.records import ModelInfo
from tests.helpers.architectures import built, gemma3, llama_like, llama_sizes, randomized, vision
from tests.helpers.multimodal import MULTIMODAL

t: Any = transformers

WHOLE, TEXT = t.AutoModelForImageTextToText, t.AutoModelForCausalLM
FAMILIES = [name for name in MULTIMODAL if hasattr(transformers, name)]


def save(model: Any, directory: Path) -> Path:
    randomized(model).save_pretrained(directory)
    return directory


def changed(directory: Path, **settings: Any) -> Path:
    """The directory, after these changes of its config.json."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return directory


def config_of(config: Any, directory: Path, **settings: Any) -> Path:
    """The directory, with this config instead of its own."""
    config.save_pretrained(directory)
    return changed(directory, **settings)


def loaded(loader: Any, directory: Path, **settings: Any) -> Any:
    """The model as transformers' own loading makes it, all of it from the files."""
    model, info = loader.from_pretrained(directory, dtype="auto", output_loading_info=True, **settings)
    assert not info["missing_keys"]
    return model


def described(directory: Path, model_class: str | None = None) -> tuple[ModelInfo, tuple[str, ...]]:
    return describe_model(str(directory), revision=None, model_class=model_class, trust_remote_code=False)[:2]


def assert_as_loaded(directory: Path, model: Any, model_class: str | None = None) -> Checkpoint:
    """Names, shapes and every bit are those of the loaded model; --check sees the same names, and warns of the same."""
    checkpoint = open_checkpoint(str(directory), model_class=model_class)
    info, warnings = described(directory, model_class)
    values = {name: value.detach() for name, value in model.named_parameters(remove_duplicate=False)}
    assert checkpoint.provenance.info.model_class == type(model).__name__ == info.model_class
    assert list(checkpoint.provenance.info.parameters) == list(values) == list(info.parameters)
    assert checkpoint.warnings == warnings
    assert {name: p.shape for name, p in info.parameters.items()} == {n: tuple(v.shape) for n, v in values.items()}
    assert checkpoint.weights
    for weight in checkpoint.weights:
        value = values[weight.name if weight.name in values else f"{weight.name}.weight"]
        read = torch.stack([checkpoint.read(weight, index) for index in range(weight.num_matrices)])
        # transformers keeps some parameters in float32.
        read = read.reshape(value.shape).to(value.dtype)
        assert torch.equal(read.view(torch.int16), value.view(torch.int16)), weight.name
    return checkpoint


def advised(warning: str) -> str:
    """The class that a warning advises to scan with."""
    return warning.rpartition(" --model-class ")[2]


# What a warning advises is done.


def test_every_config_with_two_classes_is_among_the_families() -> None:
    two = {
        config.__name__
        for config in TEXT._model_mapping
        if config in WHOLE._model_mapping and WHOLE._model_mapping[config] is not TEXT._model_mapping[config]
    }
    assert two == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_advice_to_scan_as_a_language_model_is_right_or_absent(family: str, tmp_path: Path) -> None:
    save(WHOLE.from_config(MULTIMODAL[family]()), tmp_path)
    own = assert_as_loaded(tmp_path, loaded(WHOLE, tmp_path))
    language_model, info = TEXT.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    if info["missing_keys"]:
        assert own.warnings == ()
        return
    (warning,) = own.warnings
    name = advised(warning)
    checkpoint = assert_as_loaded(tmp_path, language_model, name)
    assert_as_loaded(tmp_path, loaded(getattr(t, name), tmp_path), name)
    assert (checkpoint.provenance.class_asked, checkpoint.warnings) == (name, ())
    assert assert_as_loaded(tmp_path, language_model, "AutoModelForCausalLM").warnings == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_advice_to_scan_as_a_multimodal_model_is_right_or_absent(family: str, tmp_path: Path) -> None:
    model = WHOLE.from_config(MULTIMODAL[family]())
    text_class = TEXT._model_mapping[type(model.config)].__name__
    changed(save(model, tmp_path), architectures=[text_class])
    whole = loaded(WHOLE, tmp_path)
    language_model, info = TEXT.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)
    if info["missing_keys"]:  # transformers cannot load the class that the config names: trainers load the other
        assert assert_as_loaded(tmp_path, whole).warnings == ()
        return
    own = assert_as_loaded(tmp_path, language_model)
    (warning,) = own.warnings
    assert advised(warning) == type(whole).__name__
    assert assert_as_loaded(tmp_path, whole, advised(warning)).warnings == ()


def test_the_models_own_class_may_be_named(tmp_path: Path) -> None:
    save(built("llama4"), tmp_path)
    by_default = open_checkpoint(str(tmp_path))
    named = open_checkpoint(str(tmp_path), model_class="Llama4ForConditionalGeneration")
    assert named.provenance == by_default.provenance
    assert named.provenance.class_asked is None
    assert named.warnings == by_default.warnings != ()


def test_a_model_with_two_classes_is_read_also_where_transformers_hides_its_mapping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(built("llama4"), tmp_path)
    expected = open_checkpoint(str(model)).provenance.info
    monkeypatch.setattr(
        importlib.import_module("transformers.conversion_mapping"), "get_model_conversion_mapping", None
    )
    for class_name in (None, "Llama4ForConditionalGeneration"):
        assert open_checkpoint(str(model), model_class=class_name).provenance.info == expected


# Whole configs beside a language model, and the reverse.


def test_a_text_class_that_does_not_fit_the_weights_gives_way_to_the_class_that_trainers_load(tmp_path: Path) -> None:
    changed(save(built("gemma3"), tmp_path), architectures=["Gemma3ForCausalLM"])
    checkpoint = assert_as_loaded(tmp_path, loaded(TEXT, tmp_path))
    assert checkpoint.warnings == ()
    named = open_checkpoint(str(tmp_path), model_class="Gemma3ForConditionalGeneration")
    assert named.provenance.class_asked is None
    with pytest.raises(CheckpointError, match="Gemma3ForCausalLM"):
        open_checkpoint(str(tmp_path), model_class="Gemma3ForCausalLM")


@pytest.mark.parametrize("has_weights", [True, False])
def test_weights_in_the_hubs_cache_decide_between_two_classes(
    has_weights: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(save(built("gemma3"), tmp_path), architectures=["Gemma3ForCausalLM"])
    own = type(loaded(TEXT, tmp_path)).__name__
    if not has_weights:
        (tmp_path / "model.safetensors").unlink()
    monkeypatch.setattr(hub, "config_snapshot", lambda *_, **__: tmp_path)
    info, *_ = describe_model("org/model", revision=None, model_class=None, trust_remote_code=False)
    assert info.model_class == (own if has_weights else "Gemma3ForCausalLM")


def test_a_language_model_beside_the_config_of_the_whole_is_read_with_its_part(tmp_path: Path) -> None:
    config = gemma3()
    save(t.Gemma3ForCausalLM(config.text_config), tmp_path)
    config_of(config, tmp_path, architectures=["Gemma3ForCausalLM"], dtype="bfloat16")
    checkpoint = assert_as_loaded(tmp_path, loaded(t.Gemma3ForCausalLM, tmp_path))
    (warning,) = checkpoint.warnings
    assert "trainers that go by config.json load Gemma3ForConditionalGeneration" in warning
    assert warning.endswith("replace config.json by its text_config")
    # Done as advised, trainers load what was scanned.
    text_config = json.loads((tmp_path / "config.json").read_text())["text_config"]
    (tmp_path / "config.json").write_text(json.dumps(text_config | {"dtype": "bfloat16"}))
    after = assert_as_loaded(tmp_path, loaded(TEXT, tmp_path))
    assert after.warnings == ()
    assert [weight.name for weight in after.weights] == [weight.name for weight in checkpoint.weights]


PRUNED: dict[str, Callable[[], Any]] = {
    "Gemma3ForConditionalGeneration": lambda: t.Gemma3ForCausalLM(gemma3().text_config),
    "Mistral3ForConditionalGeneration": lambda: t.MistralForCausalLM(llama_like(t.MistralConfig)),
    "LlavaForConditionalGeneration": lambda: t.LlamaForCausalLM(llama_like(t.LlamaConfig)),
    "Qwen3_5ForConditionalGeneration": lambda: t.Qwen3_5ForCausalLM(MULTIMODAL["Qwen3_5Config"]().text_config),
}


@pytest.mark.parametrize("whole", [name for name in PRUNED if hasattr(transformers, name)])
def test_a_language_model_whose_config_names_a_multimodal_class_is_what_trainers_load(
    whole: str, tmp_path: Path
) -> None:
    changed(save(PRUNED[whole](), tmp_path), architectures=[whole])
    model = loaded(TEXT, tmp_path)
    assert assert_as_loaded(tmp_path, model).warnings == ()
    named = open_checkpoint(str(tmp_path), model_class=type(model).__name__)
    assert named.provenance.class_asked is None
    needed = "text_config, vision_config"
    for ask in (open_checkpoint, lambda path, model_class: described(Path(path), model_class)):
        with pytest.raises(
            CheckpointError, match=f"{whole} needs {needed}, but .*config.json.*leave out --model-class"
        ):
            ask(str(tmp_path), model_class=whole)


@pytest.mark.parametrize(
    ("task", "auto"),
    [
        ("ForMaskedLM", t.AutoModelForMaskedLM),
        ("ForCausalLM", t.AutoModelForCausalLM),
        ("ForTokenClassification", t.AutoModelForTokenClassification),
        ("Model", t.AutoModel),
    ],
)
def test_a_class_of_another_type_of_model_stands_for_the_class_of_the_same_task(
    task: str, auto: Any, tmp_path: Path
) -> None:
    config = t.CamembertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    changed(save(getattr(t, f"Camembert{task}")(config), tmp_path), architectures=[f"Roberta{task}"])
    checkpoint = assert_as_loaded(tmp_path, loaded(auto, tmp_path))
    assert checkpoint.provenance.info.model_class == f"Camembert{task}"


@pytest.mark.parametrize("own", ["FunnelModel", "FunnelBaseModel"])
def test_an_auto_class_builds_the_one_of_its_classes_that_the_config_names(own: str, tmp_path: Path) -> None:
    config = t.FunnelConfig(vocab_size=32, block_sizes=[1, 2], d_model=16, n_head=2, d_head=8, d_inner=24)
    save(getattr(t, own)(config), tmp_path)
    model = loaded(t.AutoModel, tmp_path)
    assert type(model).__name__ == own
    assert_as_loaded(tmp_path, model, "AutoModel")


# One tower.


def clip() -> Any:
    projection: dict[str, Any] = {"projection_dim": 16}
    text, image = llama_sizes(**projection), vision(**projection)
    return t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=image, **projection))


def siglip() -> Any:
    return t.SiglipModel(t.SiglipConfig(text_config=llama_sizes(), vision_config=vision()))


TOWERS = [
    (clip, "CLIPTextModel"),
    (clip, "CLIPVisionModel"),
    (clip, "CLIPTextModelWithProjection"),
    (clip, "CLIPVisionModelWithProjection"),
    (siglip, "SiglipTextModel"),
    (siglip, "SiglipVisionModel"),
]


@pytest.mark.parametrize(("build", "tower"), TOWERS)
def test_one_tower_is_read_by_its_class(build: Callable[[], Any], tower: str, tmp_path: Path) -> None:
    save(build(), tmp_path)
    model = loaded(getattr(t, tower), tmp_path)
    assert assert_as_loaded(tmp_path, model, tower).provenance.class_asked == tower
    changed(tmp_path, architectures=[tower])
    assert assert_as_loaded(tmp_path, model).provenance.class_asked is None


def test_a_tower_that_transformers_cannot_load_is_an_error_in_a_line(tmp_path: Path) -> None:
    # Its config lacks the size of the projection, which stands in that of the whole.
    save(t.CLIPModel(t.CLIPConfig(text_config=llama_sizes(), vision_config=vision(), projection_dim=16)), tmp_path)
    tower = "CLIPVisionModelWithProjection"
    with pytest.raises(RuntimeError):
        getattr(t, tower).from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"visual_projection\.weight") as refusal:
        open_checkpoint(str(tmp_path), model_class=tower)
    assert tower in str(refusal.value)


# A class of another type of model.


def test_a_class_of_another_type_takes_what_it_knows_with_a_warning(tmp_path: Path) -> None:
    save(t.LlamaForCausalLM(llama_like(t.LlamaConfig)), tmp_path)
    model = loaded(t.MistralForCausalLM, tmp_path)
    (warning,) = assert_as_loaded(tmp_path, model, "MistralForCausalLM").warnings
    assert warning.startswith("MistralForCausalLM is no class of llama models")


def test_a_class_of_another_type_that_cannot_be_built_is_an_error_in_a_line(tmp_path: Path) -> None:
    save(built("qwen2.5-vl"), tmp_path)
    with pytest.raises(Exception, match="to_dict"):
        t.Qwen2ForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"cannot build Qwen2ForCausalLM, because .*config\.json is .* qwen2_5_vl"
    ):
        open_checkpoint(str(tmp_path), model_class="Qwen2ForCausalLM")


@pytest.mark.parametrize(("auto", "own"), [(TEXT, "LlamaForCausalLM"), (t.AutoModel, "LlamaModel")])
def test_a_class_that_auto_classes_build_from_a_config_of_another_type_is_a_models_own(
    auto: Any, own: str, tmp_path: Path
) -> None:
    if not hasattr(t, "ExaoneConfig"):
        pytest.skip("this transformers has no Exaone")
    save(auto.from_config(llama_like(t.ExaoneConfig)), tmp_path)
    saved_as = json.loads((tmp_path / "config.json").read_text())
    assert (saved_as["model_type"], saved_as["architectures"]) == ("exaone", [own])
    assert assert_as_loaded(tmp_path, loaded(auto, tmp_path)).warnings == ()
    assert open_checkpoint(str(tmp_path), model_class=own).provenance.class_asked is None
    (tmp_path / "model.safetensors").unlink()  # the config alone says so too
    assert described(tmp_path)[0].model_class == own


def test_an_auto_class_that_knows_no_class_says_so(tmp_path: Path) -> None:
    save(t.LlamaForCausalLM(llama_like(t.LlamaConfig)), tmp_path)
    with pytest.raises(CheckpointError, match=r"AutoModelForSeq2SeqLM has no class for .*, a model of the type llama"):
        open_checkpoint(str(tmp_path), model_class="AutoModelForSeq2SeqLM")


# Quantized.


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}


def store_fp8(directory: Path) -> None:
    """Store the language model's MLP in fp8, with a scale for each block of 16 x 16."""
    path, state = directory / "model.safetensors", {}
    for key, value in load_file(directory / "model.safetensors").items():
        state[key] = value
        if key.endswith("_proj.weight") and ".mlp." in key:
            blocks = value.float().reshape(value.shape[0] // 16, 16, value.shape[1] // 16, 16)
            scales = blocks.abs().amax(dim=(1, 3)) / 448
            state[key] = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn).reshape(value.shape)
            state[f"{key}_scale_inv"] = scales
    save_file(state, path, metadata={"format": "pt"})


@pytest.mark.usefixtures("fp8_is_read")
@pytest.mark.parametrize("place", ["whole", "part"])
def test_the_language_model_of_a_quantized_model_is_dequantized(place: str, tmp_path: Path) -> None:
    if not hasattr(t, "Qwen3_5Config"):
        pytest.skip("this transformers has no Qwen3.5")
    save(WHOLE.from_config(MULTIMODAL["Qwen3_5Config"]()), tmp_path)
    store_fp8(tmp_path)
    changed(tmp_path, quantization_config=FP8)
    dequantize = {"quantization_config": t.FineGrainedFP8Config(dequantize=True, weight_block_size=(16, 16))}
    whole, text = (loaded(auto, tmp_path, **dequantize) for auto in (WHOLE, TEXT))
    if place == "part":
        settings = json.loads((tmp_path / "config.json").read_text())
        del settings["quantization_config"]
        settings["text_config"]["quantization_config"] = FP8
        (tmp_path / "config.json").write_text(json.dumps(settings))
    (warning,) = assert_as_loaded(tmp_path, whole).warnings
    assert_as_loaded(tmp_path, text, advised(warning))
