"""Which parameters hold matrices: the kinds that are no module's `weight`, and the types of hierarchical models."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from torch.nn.utils.parametrizations import weight_norm

from spectrum.checkpoint.checkpoint import Checkpoint
from spectrum.checkpoint.mapping.parameters import LoadedParameters
from spectrum.checkpoint.matrices import describe, find_holders
from spectrum.checkpoint.reader import of_model, open_checkpoint
from spectrum.layer_types import layer_number
from spectrum.records import LayerSnr, ScanResult
from spectrum.selection.selection import top_percent, unscored_note
from spectrum.trainers.formats.lora import peft
from spectrum.trainers.formats.trained import swift
from tests.helpers.architectures import dbrx


def weight(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """All matrices of a layer: (matrices, n, m)."""
    (found,) = (weight for weight in checkpoint.weights if weight.name == name)
    return torch.stack([checkpoint.read(found, index) for index in range(found.num_matrices)])


def scan(checkpoint: Checkpoint) -> ScanResult:
    """Made-up scores of all layers."""
    layers = tuple(LayerSnr(w.name, w.layer_type, 1 / (1 + i)) for i, w in enumerate(checkpoint.weights))
    return ScanResult("m", layers, (), checkpoint.provenance.info.layer_types, checkpoint.provenance)


def saved(model: Any, directory: Path) -> tuple[Checkpoint, Any]:
    """A model's checkpoint, and the model as transformers loads it from there."""
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape)
    model.save_pretrained(directory)
    return open_checkpoint(str(directory)), type(model).from_pretrained(directory)


# Weights that are not a module's `weight`.


def xlnet() -> Any:
    return t.XLNetLMHeadModel(t.XLNetConfig(vocab_size=32, d_model=16, n_layer=2, n_head=4, d_inner=24))


def test_attention_weights_with_a_dimension_for_the_heads_are_matrices(tmp_path: Path) -> None:
    checkpoint, model = saved(xlnet(), tmp_path)
    for name in "qkvor":
        value = model.get_parameter(f"transformer.layer.1.rel_attn.{name}").detach()
        assert value.shape == (16, 4, 4)
        assert torch.equal(weight(checkpoint, f"transformer.layer.1.rel_attn.{name}")[0], value.reshape(16, 16))
    assert {w.layer_type for w in checkpoint.weights if ".rel_attn." in w.name} == {
        *(f"rel_attn.{name}" for name in "qkvor"),
        "rel_attn.layer_norm",
    }


def test_a_parameter_whose_name_begins_another_has_an_anchored_entry(tmp_path: Path) -> None:
    # `rel_attn.r` is the beginning of `rel_attn.r_r_bias`.
    checkpoint, _ = saved(xlnet(), tmp_path)
    chosen = top_percent(scan(checkpoint), "50")
    assert chosen.entries()["rel_attn.r"] == ["^transformer.layer.0.rel_attn.r$"]
    assert chosen.entries()["rel_attn.q"] == ["transformer.layer.0.rel_attn.q"]
    prefixes, pattern = swift(chosen).text.splitlines()[1:]
    assert "rel_attn.r " not in prefixes
    assert "transformer.layer.0.rel_attn.q" in prefixes.split()
    assert pattern.startswith(r"--trainable_parameters_regex ^(transformer\.layer\.0\.rel_attn\.")
    # PEFT would take three dimensions for a stack of experts.
    assert not any(f"rel_attn.{name}\n" in peft(chosen).text for name in "qkvor")


def test_a_funnel_has_its_position_kernel_scored() -> None:
    config = t.FunnelConfig(vocab_size=32, block_sizes=[1, 2], d_model=16, n_head=2, d_head=8, d_inner=24)
    checkpoint = of_model(t.FunnelBaseModel(config), "m")
    assert weight(checkpoint, "encoder.blocks.1.1.attention.r_kernel").shape == (1, 16, 16)


@pytest.mark.parametrize("in_memory", [True, False])
def test_experts_that_lie_below_each_other_are_a_stack(tmp_path: Path, in_memory: bool) -> None:
    checkpoint, model = saved(dbrx(), tmp_path)
    if in_memory:
        checkpoint = of_model(model, "m")
    for name in ("w1", "v1", "w2"):
        layer = f"transformer.blocks.1.ffn.experts.mlp.{name}"
        stack = weight(checkpoint, layer)
        assert stack.shape == (3, 10, 16)
        assert torch.equal(stack, model.get_parameter(layer).detach().reshape(3, 10, 16))
    assert "ffn.experts.mlp.w1" in checkpoint.provenance.info.layer_types
    assert unscored_note(checkpoint.provenance.info) is None


@pytest.mark.parametrize(
    ("build", "modeling", "name"), [(xlnet, "xlnet", "XLNetRelativeAttention"), (dbrx, "dbrx", "DbrxExpertGLU")]
)
def test_a_subclass_has_the_weights_of_its_class_scored(
    build: Any, modeling: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = of_model(build(), "m").weights
    module = import_module(f"transformers.models.{modeling}.modeling_{modeling}")
    monkeypatch.setattr(module, name, type("OfRemoteCode", (getattr(module, name),), {}))
    model = build()
    assert any(type(part).__name__ == "OfRemoteCode" for part in model.modules())
    assert of_model(model, "m").weights == plain


class Normed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = weight_norm(torch.nn.Linear(6, 4))
        self.conv = weight_norm(torch.nn.Conv1d(6, 4, 3), dim=2)
        self.transposed = weight_norm(torch.nn.ConvTranspose1d(6, 4, 3))
        self.grouped = weight_norm(torch.nn.ConvTranspose1d(6, 4, 3, groups=2))


def test_a_weight_under_weight_normalization_is_the_one_that_the_model_computes_with() -> None:
    model = Normed()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape)
    checkpoint = of_model(model, "m")
    plain = {
        "linear": model.linear.weight,
        "conv": model.conv.weight.reshape(4, 18),
        "transposed": model.transposed.weight.transpose(0, 1).reshape(4, 18),
    }
    for name, expected in plain.items():
        assert torch.allclose(weight(checkpoint, name)[0], expected.detach(), rtol=1e-6), name
    grouped = model.grouped.weight.detach().reshape(2, 3, 2, 3).transpose(1, 2).reshape(4, 9)
    assert torch.allclose(weight(checkpoint, "grouped")[0], grouped, rtol=1e-6)
    assert [w.name for w in checkpoint.weights] == ["linear", "conv", "transposed", "grouped"]


def test_a_weight_under_weight_normalization_is_computed_exactly_and_then_rounded() -> None:
    torch.manual_seed(0)
    model: Any = torch.nn.ModuleDict({"linear": weight_norm(torch.nn.Linear(96, 64))})
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape)
    found = weight(of_model(model, "m"), "linear")[0]
    in_float32 = model["linear"].weight.detach()
    assert found.dtype == torch.float32
    assert torch.equal(found, model.double()["linear"].weight.detach().float())
    assert not torch.equal(found, in_float32)


def test_a_direction_whose_norms_are_not_stored_is_not_scored() -> None:
    model = Normed()
    source = LoadedParameters(dict(model.named_parameters()))
    holders, specs = find_holders(model, source, "m")
    del holders["conv.parametrizations.weight.original0"]
    assert [w.name for w in describe(model, holders, specs).weights] == ["linear", "transposed", "grouped"]


def test_a_layer_under_weight_normalization_trains_with_both_its_parameters() -> None:
    chosen = top_percent(scan(of_model(Normed(), "m")), "100")
    assert chosen.entries()["conv"] == ["conv"]
    assert chosen.parameters()["conv"] == [
        "conv.parametrizations.weight.original0",
        "conv.parametrizations.weight.original1",
        "conv.bias",
    ]
    assert chosen.result.info is not None
    assert chosen.result.info.layers_by_type()["conv"] == ["conv"]


def test_a_normalized_weight_of_a_checkpoint_is_the_one_of_the_loaded_model(tmp_path: Path) -> None:
    config = t.EncodecConfig(num_filters=4, hidden_size=8, codebook_size=16, codebook_dim=8, upsampling_ratios=[2, 2])
    checkpoint, model = saved(t.EncodecModel(config), tmp_path)
    names = [w.name for w in checkpoint.weights if w.parameter.endswith("original1")]
    assert len(names) > 5
    for name in names:
        value = model.get_submodule(name).weight.detach()
        transposed = isinstance(model.get_submodule(name), torch.nn.ConvTranspose1d)
        value = value.transpose(0, 1) if transposed else value
        assert torch.allclose(weight(checkpoint, name)[0], value.reshape(len(value), -1), rtol=1e-5, atol=1e-6), name


def test_matrices_of_recurrent_modules_are_scored() -> None:
    model = torch.nn.ModuleDict({"rnn": torch.nn.LSTM(6, 4, bidirectional=True), "cell": torch.nn.GRUCell(6, 4)})
    checkpoint = of_model(model, "m")
    assert {w.name: w.matrix_shape for w in checkpoint.weights} == {
        "rnn.weight_ih_l0": (16, 6),
        "rnn.weight_hh_l0": (16, 4),
        "rnn.weight_ih_l0_reverse": (16, 6),
        "rnn.weight_hh_l0_reverse": (16, 4),
        "cell.weight_ih": (12, 6),
        "cell.weight_hh": (12, 4),
    }


class WithPositions(torch.nn.Module):
    def __init__(self, positions: int) -> None:
        super().__init__()
        self.positions = torch.nn.Parameter(torch.randn(1, positions, 8))
        self.token = torch.nn.Parameter(torch.randn(1, 1, 80))
        self.fc = torch.nn.Linear(8, 100)


def test_weights_that_no_rule_scores_are_told_with_their_share() -> None:
    # 200 of 1,180 elements. The token is a vector, and so is a single position.
    note = unscored_note(of_model(WithPositions(25), "m").provenance.info)
    assert note is not None
    assert note.startswith("16.9 percent of the parameters")
    assert note.endswith(": positions")
    assert unscored_note(of_model(WithPositions(1), "m").provenance.info) is None


# Hierarchical models.


def swin() -> Any:
    return t.SwinModel(t.SwinConfig(image_size=32, embed_dim=8, depths=[2, 3], num_heads=[2, 4], window_size=2))


def resnet() -> Any:
    return t.ResNetModel(t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 3]))


def segformer() -> Any:
    config = t.SegformerConfig(
        num_encoder_blocks=2,
        depths=[2, 3],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
    )
    return t.SegformerModel(config)


def convnext() -> Any:
    return t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[8, 16], depths=[2, 3], num_stages=2))


def poolformer() -> Any:
    config = t.PoolFormerConfig(
        depths=[2, 3], hidden_sizes=[8, 16], num_encoder_blocks=2, patch_sizes=[3, 3], strides=[2, 2], padding=[1, 1]
    )
    return t.PoolFormerModel(config)


def funnel() -> Any:
    return t.FunnelModel(t.FunnelConfig(vocab_size=32, block_sizes=[2, 3], d_model=16, n_head=2, d_head=8, d_inner=24))


@pytest.mark.parametrize("build", [swin, resnet, segformer, convnext, poolformer, funnel])
def test_each_stage_of_a_hierarchical_model_is_ranked_by_itself(build: Any) -> None:
    checkpoint = of_model(build(), "m")
    by_type: dict[str, list[Any]] = {}
    for found in checkpoint.weights:
        by_type.setdefault(found.layer_type, []).append(found)
    whole_stages = 0
    for layer_type, layers in by_type.items():
        assert not layer_type[0].isdigit()
        numbers = [layer_number(layer.name, layer_type) for layer in layers]
        assert len(set(numbers)) == len(layers), layer_type  # one layer of each block
        whole_stages += numbers == ["0", "1", "2"]
        if len(numbers) == 3:  # the second stage, whose blocks are of one width
            assert len({layer.shape[0] for layer in layers}) == 1, layer_type
    assert whole_stages > 3
