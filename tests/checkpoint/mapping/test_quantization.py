"""Quantized checkpoints: dequantized as transformers' own loader does it, or refused by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from spectrum.checkpoint.checkpoint import Checkpoint
from spectrum.checkpoint.disk.weight_files import StoredTensor
from spectrum.checkpoint.mapping.quantization import check_scales
from spectrum.checkpoint.reader import open_checkpoint
from spectrum.errors import CheckpointError
from tests.helpers.architectures import llama_like, mixture
from tests.helpers.oracle import oracle_snr
from tests.helpers.quantized import State, causal_lm, save, save_fp8, save_mxfp4, store
from tests.helpers.scanned import scan


def matrix(checkpoint: Checkpoint, name: str, index: int = 0) -> torch.Tensor:
    (weight,) = (weight for weight in checkpoint.weights if weight.name == name)
    return checkpoint.read(weight, index)


def assert_as_transformers_loads(directory: Path, config_class: Any) -> Checkpoint:
    checkpoint = open_checkpoint(str(directory))
    model_class = getattr(transformers, checkpoint.provenance.info.model_class)
    model = model_class.from_pretrained(
        directory, dtype="auto", device_map="cpu", quantization_config=config_class(dequantize=True)
    )
    values = dict(model.named_parameters(remove_duplicate=False))
    assert checkpoint.provenance.info.parameters.keys() == values.keys()
    for weight in checkpoint.weights:
        value = values[weight.name if weight.name in values else f"{weight.name}.weight"].detach()
        value = value if weight.num_matrices > 1 else value.reshape(1, *weight.matrix_shape)
        for index in range(weight.num_matrices):
            assert torch.equal(checkpoint.read(weight, index), value[index]), (weight.name, index)
    return checkpoint


def assert_scores(checkpoint: Checkpoint) -> None:
    for score in scan(checkpoint.weights, checkpoint.read, [torch.device("cpu")]):
        (weight,) = (weight for weight in checkpoint.weights if weight.name == score.name)
        expected = [oracle_snr(checkpoint.read(weight, i).double().numpy()) for i in range(weight.num_matrices)]
        assert (score.experts or (score.snr,)) == pytest.approx(expected, rel=1e-8), score.name


@pytest.mark.usefixtures("fp8_is_read")
def test_fp8_is_dequantized_as_transformers_does_it(tmp_path: Path) -> None:
    meant = save_fp8(tmp_path, experts=False)
    checkpoint = assert_as_transformers_loads(tmp_path, transformers.FineGrainedFP8Config)
    for key, value in meant.items():
        name = key.removesuffix(".weight")
        assert torch.equal(matrix(checkpoint, name).reshape(value.shape), value), key
    assert_scores(checkpoint)


@pytest.mark.usefixtures("fp8_is_read")
def test_fp8_experts_are_dequantized_one_at_a_time(tmp_path: Path) -> None:
    meant = save_fp8(tmp_path, experts=True)
    checkpoint = assert_as_transformers_loads(tmp_path, transformers.FineGrainedFP8Config)
    for layer in range(2):
        for expert in range(4):
            stored = f"model.layers.{layer}.mlp.experts.{expert}"
            both = torch.cat([meant[f"{stored}.gate_proj.weight"], meant[f"{stored}.up_proj.weight"]])
            assert torch.equal(matrix(checkpoint, f"model.layers.{layer}.mlp.experts.gate_up_proj", expert), both)
    assert_scores(checkpoint)


def test_mxfp4_is_dequantized_as_transformers_does_it(tmp_path: Path) -> None:
    meant = save_mxfp4(tmp_path)
    checkpoint = assert_as_transformers_loads(tmp_path, transformers.utils.quantization_config.Mxfp4Config)
    for layer in range(2):
        for projection in ("gate_up_proj", "down_proj"):
            name = f"model.layers.{layer}.mlp.experts.{projection}"
            for expert in range(4):
                assert torch.equal(matrix(checkpoint, name, expert), meant[name][expert])
    assert_scores(checkpoint)


def save_compressed_tensors(directory: Path, kind: str) -> State:
    """A checkpoint with 8 bits to a number, `float` or `int`, and a scale to a row. Returns what it stands for."""
    weights = {"num_bits": 8, "type": kind, "strategy": "channel", "symmetric": True, "dynamic": False}
    settings = {
        "quant_method": "compressed-tensors",
        "format": f"{kind}-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }
    dtype, largest = (torch.float8_e4m3fn, 448) if kind == "float" else (torch.int8, 127)
    stored: State = {}
    meant: State = {}
    for key, value in save(llama_model(), directory, settings).items():
        if "_proj" in key:
            scale = (value.float().abs().amax(dim=1, keepdim=True) / largest).bfloat16()
            stored[key] = (value.float() / scale.float()).to(dtype)
            stored[f"{key}_scale"] = scale
            meant[key] = (stored[key].float() * scale.float()).bfloat16()
        else:
            stored[key] = meant[key] = value
    store(directory, stored)
    return meant


@pytest.mark.parametrize("kind", ["float", "int"])
def test_compressed_tensors_are_dequantized_where_their_package_is_there(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("compressed_tensors")
    meant = save_compressed_tensors(tmp_path, kind)
    checkpoint = open_checkpoint(str(tmp_path))
    for key, value in meant.items():
        read = matrix(checkpoint, key.removesuffix(".weight")).reshape(value.shape)
        assert torch.allclose(read.float(), value.float(), rtol=2**-7, atol=0), key  # an ulp of bfloat16
    assert_scores(checkpoint)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.filterwarnings("ignore")  # bitsandbytes has much to say on a machine without a GPU
def test_bitsandbytes_is_undone_where_its_package_is_there(tmp_path: Path, bits: int) -> None:
    pytest.importorskip("bitsandbytes")
    save(llama_model(hidden_size=64, intermediate_size=128), tmp_path / "original", None)
    config_class: Any = transformers.BitsAndBytesConfig
    settings = config_class(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    load: Any = transformers.LlamaForCausalLM.from_pretrained
    load(tmp_path / "original", quantization_config=settings, device_map="cpu").save_pretrained(tmp_path / "quantized")
    checkpoint = open_checkpoint(str(tmp_path / "quantized"))
    expected = dict(load(tmp_path / "quantized", device_map="cpu").dequantize().named_parameters())
    for weight in checkpoint.weights:
        value = expected[f"{weight.name}.weight"].detach()
        assert torch.equal(checkpoint.read(weight, 0), value.reshape(weight.matrix_shape)), weight.name
    assert any("takes its memory" in warning for warning in checkpoint.warnings)


@pytest.mark.parametrize(
    "method", [*sorted(AUTO_QUANTIZER_MAPPING.keys() - {"fp8", "mxfp4"}), "a-method-of-tomorrow", None]
)
def test_every_other_method_is_refused_by_name(
    tmp_path: Path, method: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spectrum.checkpoint.mapping.quantization.find_spec", lambda name: None)
    settings = {"load_in_4bit": True} if method == "bitsandbytes_4bit" else {}
    name = "bitsandbytes" if method and method.startswith("bitsandbytes") else method
    save(llama_model(), tmp_path, {"quant_method": name, **settings})
    with pytest.raises(CheckpointError, match=f"quantized by the method '{name or 'without a name'}'.*original"):
        open_checkpoint(str(tmp_path))


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectrum.checkpoint.mapping.quantization.find_spec", lambda name: None)
    save(llama_model(), tmp_path, {"quant_method": "compressed-tensors"})
    with pytest.raises(CheckpointError, match=r"install compressed_tensors"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.int32])
def test_numbers_that_are_no_weights_are_refused_without_a_quantization_config(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    state = save(llama_model(), tmp_path, None)
    key = "model.layers.1.mlp.up_proj.weight"
    store(tmp_path, state | {key: state[key].to(dtype)})
    with pytest.raises(CheckpointError, match=rf"{key} as {str(dtype)[6:]}.*original"):
        open_checkpoint(str(tmp_path))


UP_PROJ = "model.layers.1.mlp.up_proj"
BESIDE_A_WEIGHT = [
    *("weight_scale_inv", "weight_scale", "weight_scales", "scale", "scales", "scale_inv", "qscale_weight"),
    *("weight_scale_2", "weight_global_scale", "weight_zero_point", "zeros", "SCB", "weight.absmax"),
    *("weight.nested_absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"),
]
IN_PLACE_OF_A_WEIGHT = ["qweight", "qzeros", "g_idx", "weight_packed", "q_weight", "_weight_qdata", "W_q", "codes"]


@pytest.mark.parametrize("name", [*BESIDE_A_WEIGHT, *IN_PLACE_OF_A_WEIGHT])
def test_leftover_scales_are_refused(tmp_path: Path, name: str) -> None:
    state = save(llama_model(), tmp_path, None)
    key = f"{UP_PROJ}.{name}"
    store(tmp_path, state | {key: torch.ones(1)})
    with pytest.raises(CheckpointError, match=rf"holds {re.escape(key)}, as quantized.*original"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("name", ["down_proj_scale_inv", "down_proj_scales", "down_proj_blocks"])
def test_leftover_scales_of_a_stack_of_experts_are_refused(tmp_path: Path, name: str) -> None:
    state = save(causal_lm(mixture(transformers.GptOssConfig, num_local_experts=4, head_dim=8)), tmp_path, None)
    key = f"model.layers.1.mlp.experts.{name}"
    assert "model.layers.1.mlp.experts.down_proj" in state
    store(tmp_path, state | {key: torch.ones(1)})
    with pytest.raises(CheckpointError, match=rf"holds {re.escape(key)}, as quantized.*original"):
        open_checkpoint(str(tmp_path))


@pytest.mark.parametrize("name", IN_PLACE_OF_A_WEIGHT)
@pytest.mark.parametrize("experts", [True, False])
def test_packed_weights_without_a_quantization_config_are_refused_as_quantized(
    tmp_path: Path, name: str, experts: bool
) -> None:
    model = causal_lm(mixture(transformers.MixtralConfig, num_local_experts=4)) if experts else llama_model()
    packed = {}
    for key, value in save(model, tmp_path, None).items():
        is_packed = ".experts." in key or ("mlp" in key and not experts)
        packed[f"{key.removesuffix('.weight')}.{name}" if is_packed else key] = value
    store(tmp_path, packed)
    with pytest.raises(CheckpointError, match=rf"holds model\.layers\.0\..*\.{name}, as quantized.*original"):
        open_checkpoint(str(tmp_path))


ORDINARY: dict[str, dict[str, tuple[int, ...]]] = {
    "temperature of a dropped tower": {"tower.logit_scale": (), "tower.proj.weight": (4, 4), "logit_scale": ()},
    "scales of layers that are dropped": {
        f"tower.blocks.{i}.{n}": (4,) for i in (0, 1) for n in ("layer_scale", "ls1")
    },
    "norms of a dropped tower": {"tower.norm.scale": (4,), "tower.norm.weight": (4,)},
    "scales of a cache": {f"model.layers.0.self_attn.{name}": () for name in ("k_scale", "v_scale")},
    "scales of activations": {f"{UP_PROJ}.{name}": () for name in ("input_scale", "output_scale")},
    "a scale at the top": {"scale": (), "scales": (3,), "zeros": (3,)},
    "a dropped head in packed form": {
        f"mtp.0.proj.{name}": (4, 4) for name in ("qweight", "qzeros", "scales", "g_idx")
    },
    "a dropped head with scales": {"mtp.0.proj.weight": (4, 4), "mtp.0.proj.weight_scale_inv": (1, 1)},
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_scales_that_no_weight_in_use_stands_beside_are_no_reason_to_refuse(tmp_path: Path, kind: str) -> None:
    state = save(llama_model(), tmp_path, None)
    expected = open_checkpoint(str(tmp_path)).weights
    store(tmp_path, state | {key: torch.ones(shape) for key, shape in ORDINARY[kind].items()})
    assert open_checkpoint(str(tmp_path)).weights == expected


@pytest.mark.usefixtures("fp8_is_read")
@pytest.mark.parametrize("experts", [True, False])
def test_an_fp8_layer_after_the_last_one_changes_nothing(tmp_path: Path, experts: bool) -> None:
    # As DeepSeek-V3 stores the layer that predicts several tokens, which transformers does not build.
    meant = save_fp8(tmp_path, experts=experts)
    state = load_file(tmp_path / "model.safetensors")
    expected = open_checkpoint(str(tmp_path))
    extra = {key.replace("layers.1.", "layers.2."): value.clone() for key, value in state.items() if "layers.1." in key}
    assert any(key.endswith("_scale_inv") for key in extra)
    store(tmp_path, state | extra | {"model.layers.2.eh_proj.weight": torch.ones(128, 256)})
    checkpoint = open_checkpoint(str(tmp_path))
    assert checkpoint.weights == expected.weights
    assert type(checkpoint._source).__name__ == "StreamedParameters"
    key = "model.layers.1.self_attn.q_proj"
    read = matrix(checkpoint, key)
    assert torch.allclose(read.float(), meant[f"{key}.weight"].float(), rtol=2**-7, atol=0)
    # A scale of a layer in use that nothing applies is still a reason to refuse.
    store(tmp_path, state | extra | {f"{key}.scales": torch.ones(1)})
    with pytest.raises(CheckpointError, match=rf"holds {re.escape(key)}\.scales, as quantized"):
        open_checkpoint(str(tmp_path))


def test_a_norm_that_goes_by_another_name_is_not_taken_for_quantized(tmp_path: Path) -> None:
    state = save(llama_model(), tmp_path, None)
    store(tmp_path, {key.replace("norm.weight", "norm.scale"): value for key, value in state.items()})
    with pytest.raises(CheckpointError, match=r"lacks .*norm\.weight .*no place for the key .*norm\.scale"):
        open_checkpoint(str(tmp_path))


# Weights whose scales are missing. Some versions of transformers take such numbers for the weight.


def assert_refused_without(key: str, directory: Path, weight: str, dtype: str) -> None:
    """Without this key the checkpoint is refused, and the weight that is stored as another one named."""
    state = load_file(directory / "model.safetensors")
    del state[key]
    store(directory, state)
    with pytest.raises(CheckpointError) as refused:
        open_checkpoint(str(directory))
    assert str(refused.value).startswith(f"{directory} holds {weight} as {dtype}, but its scale is missing: ")
    assert "download it again, or use the original" in str(refused.value)


@pytest.mark.usefixtures("fp8_is_read")
def test_fp8_weights_whose_scales_are_gone_are_refused(tmp_path: Path) -> None:
    save_fp8(tmp_path, experts=False)
    weight = "model.layers.1.mlp.up_proj.weight"
    assert_refused_without(f"{weight}_scale_inv", tmp_path, weight, "float8_e4m3fn")


@pytest.mark.usefixtures("fp8_is_read")
def test_an_expert_whose_scale_is_gone_is_refused(tmp_path: Path) -> None:
    save_fp8(tmp_path, experts=True)
    weight = "model.layers.1.mlp.experts.2.up_proj.weight"
    assert_refused_without(f"{weight}_scale_inv", tmp_path, weight, "float8_e4m3fn")


@pytest.mark.parametrize("projection", ["gate_up_proj", "down_proj"])
def test_packed_weights_whose_scales_are_gone_are_refused(tmp_path: Path, projection: str) -> None:
    save_mxfp4(tmp_path)
    weight = f"model.layers.1.mlp.experts.{projection}"
    assert_refused_without(f"{weight}_scales", tmp_path, f"{weight}_blocks", "uint8")


@pytest.mark.parametrize(("kind", "dtype"), [("float", "float8_e4m3fn"), ("int", "int8")])
def test_compressed_tensors_whose_scales_are_gone_are_refused(tmp_path: Path, kind: str, dtype: str) -> None:
    pytest.importorskip("compressed_tensors")
    save_compressed_tensors(tmp_path, kind)
    weight = "model.layers.1.self_attn.q_proj.weight"
    assert_refused_without(f"{weight}_scale", tmp_path, weight, dtype)


@pytest.mark.usefixtures("fp8_is_read")
def test_modules_of_an_fp8_checkpoint_that_are_not_quantized_need_no_scale(tmp_path: Path) -> None:
    meant = save_fp8(tmp_path, experts=False)
    left = [f"model.layers.{layer}.mlp.up_proj" for layer in (0, 1)]
    state = load_file(tmp_path / "model.safetensors")
    for module in left:
        state[f"{module}.weight"] = meant[f"{module}.weight"]
        del state[f"{module}.weight_scale_inv"]
    store(tmp_path, state)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["modules_to_not_convert"] = left
    path.write_text(json.dumps(config))
    checkpoint = open_checkpoint(str(tmp_path))
    for key, value in meant.items():
        read = matrix(checkpoint, key.removesuffix(".weight")).reshape(value.shape)
        assert torch.allclose(read.float(), value.float(), rtol=2**-7, atol=0), key


@pytest.mark.usefixtures("fp8_is_read")
def test_a_table_of_whole_numbers_beside_the_parameters_needs_no_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As DeepSeek-V4 has one, of the experts of each token.
    make: Any = transformers.LlamaForCausalLM.__init__

    def with_table(self: Any, config: Any) -> None:
        make(self, config)
        self.register_buffer("experts_of_tokens", torch.zeros(4, dtype=torch.int64))

    monkeypatch.setattr(transformers.LlamaForCausalLM, "__init__", with_table)
    save_fp8(tmp_path, experts=False)
    assert "experts_of_tokens" in load_file(tmp_path / "model.safetensors")
    assert open_checkpoint(str(tmp_path)).weights


# The rule by itself, which no version of transformers has a part in.


def check(*tensors: tuple[str, str, int]) -> None:
    """Of tensors by key, dtype and number of dimensions, all of which make parameters."""
    stored = {key: StoredTensor(key, Path("f"), dtype, (4,) * dims, 0) for key, dtype, dims in tensors}
    check_scales(Path("model"), stored, stored)


SCALED = [
    *(
        ("m.weight", f"m.{name}")
        for name in ("weight_scale_inv", "weight_scale", "scale", "scale_inv", "qscale_weight")
    ),
    *(("m.experts.down_proj", f"m.experts.down_proj_{name}") for name in ("scale_inv", "scale")),
    ("m.experts.down_proj_blocks", "m.experts.down_proj_scales"),
    ("m.weight_packed", "m.weight_scale"),
]


@pytest.mark.parametrize(("weight", "scale"), SCALED, ids=[scale for _, scale in SCALED])
def test_a_scale_goes_by_any_of_its_names(weight: str, scale: str) -> None:
    check((weight, "float8_e4m3fn", 2), (scale, "float32", 2))
    with pytest.raises(CheckpointError, match=f"^model holds {weight} as float8_e4m3fn, but its scale is missing"):
        check((weight, "float8_e4m3fn", 2), (f"other.{scale}", "float32", 2))


def test_a_scale_of_a_modules_weight_is_not_that_of_its_other_parameters() -> None:
    with pytest.raises(CheckpointError, match=r"holds m\.experts\.down_proj as float8_e4m3fn"):
        check(("m.experts.down_proj", "float8_e4m3fn", 3), ("m.experts.scale", "float32", 1))


@pytest.mark.parametrize("dims", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8", "uint8", "F4"])
def test_weights_of_any_form_need_a_scale(dtype: str, dims: int) -> None:
    with pytest.raises(CheckpointError, match=f"m.weight as {dtype}"):
        check(("m.bias", "float32", 1), ("m.weight", dtype, dims))


@pytest.mark.parametrize("name", ["weight_scale", "weight_scale_inv", "scale", "weight_zero_point", "weight_shape"])
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e8m0fnu", "uint8", "int64"])
def test_what_is_stored_beside_a_weight_needs_no_scale(name: str, dtype: str) -> None:
    check(("m.weight", "uint8", 2), ("m.weight_scale", "float8_e4m3fn", 2), (f"n.{name}", dtype, 1))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_weights_that_are_numbers_need_no_scale(dtype: str) -> None:
    check(("m.weight", dtype, 2), ("n.weight", dtype, 1), ("experts.down_proj", dtype, 3))


def llama_model(**changes: object) -> Any:
    return causal_lm(llama_like(transformers.LlamaConfig, **changes))
