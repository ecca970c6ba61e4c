"""Experts are cut out of a conversion only where that changes no value: compared with the conversion of the whole."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from transformers import core_model_loading

from spectrum.checkpoint.disk import tensors
from spectrum.checkpoint.mapping import conversion
from spectrum.checkpoint.mapping.conversion import StreamedParameters
from spectrum.checkpoint.mapping.keys import ConversionInput
from spectrum.checkpoint.reader import open_checkpoint
from spectrum.errors import CheckpointError

State = dict[str, torch.Tensor]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of elements of each tensor or row that has been read."""
    counts: list[int] = []

    def counting(tensor: Any, index: int | None = None) -> torch.Tensor:
        value = tensors.read_tensor(tensor, index)
        counts.append(value.numel())
        return value

    monkeypatch.setattr(conversion, "read_tensor", counting)
    return counts


def filled(model: Any) -> Any:
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data = (torch.randn(parameter.shape) * 0.05).bfloat16()
    model.config.dtype = torch.bfloat16
    return model


def stacks(directory: Path) -> Iterator[tuple[str, list[torch.Tensor], torch.Tensor]]:
    """Each 3-D parameter that is scored: its name, its matrices as read, and what `from_pretrained` loads."""
    checkpoint = open_checkpoint(str(directory))
    class_name = checkpoint.provenance.info.model_class
    model = getattr(transformers, class_name).from_pretrained(directory, dtype="auto")
    for weight in checkpoint.weights:
        if len(weight.shape) == 3 and ".experts." in weight.name:
            read = [checkpoint.read(weight, index) for index in range(weight.num_matrices)]
            yield weight.name, read, model.get_parameter(weight.name).detach()


def assert_exact(directory: Path, num_stacks: int) -> None:
    found = list(stacks(directory))
    assert len(found) == num_stacks
    for name, read, expected in found:
        assert torch.equal(torch.stack(read), expected), name


# Transposed only if the parameter's shape asks for it.


def qwen3_vl_moe(experts: int, width: int, inner: int) -> Any:
    text = {
        "vocab_size": 64,
        "pad_token_id": 0,  # 5.0 looks for it in the text config
        "hidden_size": width,
        "intermediate_size": 24,
        "moe_intermediate_size": inner,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_experts": experts,
        "num_local_experts": experts,
        "num_experts_per_tok": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "out_hidden_size": width,
        "patch_size": 4,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = transformers.Qwen3VLMoeConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=5,
        video_token_id=6,
        vision_start_token_id=7,
        vision_end_token_id=8,
    )
    return filled(transformers.Qwen3VLMoeForConditionalGeneration(config))


def as_published(directory: Path) -> None:
    """Store the experts as Qwen's own checkpoints have them: (experts, in, out)."""
    if "check_dims" not in inspect.signature(core_model_loading.Transpose).parameters:
        pytest.skip("this version of transformers stores them in one layout only")
    file = directory / "model.safetensors"
    state = safetensors.torch.load_file(file)
    changed = {k: v.transpose(1, 2).contiguous() if ".mlp.experts." in k else v for k, v in state.items()}
    assert changed.keys() == state.keys()
    safetensors.torch.save_file(changed, file, metadata={"format": "pt"})


# The stacks are (experts, 2 * inner, width) and (experts, width, inner).
SHAPES = {
    "oblong": (4, 16, 24),
    "square gate and up": (4, 16, 8),
    "square down": (4, 16, 16),
    "as many experts as channels": (16, 16, 8),
    "as many experts as both": (16, 16, 16),
    "one expert": (1, 16, 24),
    "one square expert": (1, 16, 16),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("layout", ["as saved", "as published"])
def test_experts_are_transposed_as_the_whole_parameter_asks(
    shape: tuple[int, int, int], layout: str, tmp_path: Path
) -> None:
    qwen3_vl_moe(*shape).save_pretrained(tmp_path)
    if layout == "as published":
        as_published(tmp_path)
    assert_exact(tmp_path, 4)


@pytest.mark.parametrize("layout", ["as saved", "as published"])
def test_a_transposed_expert_is_read_without_the_others(layout: str, tmp_path: Path, counted: list[int]) -> None:
    qwen3_vl_moe(4, 16, 24).save_pretrained(tmp_path)
    if layout == "as published":
        as_published(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    for weight in (w for w in checkpoint.weights if w.num_matrices > 1):
        for index in range(weight.num_matrices):
            counted.clear()
            assert checkpoint.read(weight, index).numel() == sum(counted), weight.name


# Experts of two parameters, of different sizes, in one list of keys.


has_ernie = pytest.mark.skipif(
    not hasattr(transformers, "Ernie4_5_VLMoeConfig"), reason="not in this version of transformers"
)


def ernie(experts: int) -> Any:
    text = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "moe_intermediate_size": [24, 8],
        "moe_num_experts": experts,
        "moe_k": 1,
        "moe_layer_start_index": 0,
        "mlp_layer_types": ["sparse", "sparse"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4}
    config = transformers.Ernie4_5_VLMoeConfig(text_config=text, vision_config=vision)
    return filled(transformers.Ernie4_5_VLMoeForConditionalGeneration(config))


@has_ernie
@pytest.mark.parametrize("experts", [1, 2, 4])
def test_text_and_vision_experts_of_different_sizes_are_told_apart(experts: int, tmp_path: Path) -> None:
    ernie(experts).save_pretrained(tmp_path)
    assert_exact(tmp_path, 8)  # gate and up, down; text, vision; two layers


@has_ernie
def test_no_stack_of_text_and_vision_experts_is_read_as_a_whole(tmp_path: Path, counted: list[int]) -> None:
    ernie(4).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    assert not counted
    for weight in (w for w in checkpoint.weights if w.num_matrices > 1):
        for index in range(weight.num_matrices):
            counted.clear()
            checkpoint.read(weight, index)
            assert sum(counted) in (16 * (24 + 8), 2 * 16 * (24 + 8)), weight.name  # one text and one vision expert


@has_ernie
def test_a_misshapen_text_expert_is_refused_by_name(tmp_path: Path) -> None:
    ernie(4).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(file)
    key = next(key for key in state if key.endswith("experts.2.down_proj.weight"))
    state[key] = torch.cat([state[key], state[key]])
    safetensors.torch.save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=key.replace(".", r"\.")):
        open_checkpoint(str(tmp_path))


# Every operation of transformers.


def made_of(
    directory: Path, operations: list[Any], sources: list[list[torch.Tensor]], shapes: list[tuple[int, ...]]
) -> StreamedParameters:
    """Parameters of these shapes, which one converter makes of these tensors; a list for each of its patterns."""
    names = [f"target{place}" for place in range(len(shapes))]
    patterns = [f"source{place}" for place in range(len(sources))]
    keys: dict[str | None, tuple[str, ...]] = {
        pattern: tuple(f"{pattern}.{place}" for place in range(len(found)))
        for pattern, found in zip(patterns, sources, strict=True)
    }
    values = (value.clone() for value in itertools.chain(*sources))
    state = dict(zip(itertools.chain(*keys.values()), values, strict=True))
    safetensors.torch.save_file(state, directory / "model.safetensors")
    model: Any = torch.nn.Module()
    for name, shape in zip(names, shapes, strict=True):
        model.register_parameter(name, torch.nn.Parameter(torch.empty(shape, device="meta")))
    model.config = SimpleNamespace()
    converter = core_model_loading.WeightConverter(patterns, names, operations=operations)
    made = ConversionInput(names[0], converter, keys)
    return StreamedParameters(model, None, tensors.WeightHeaders(directory).tensors(), dict.fromkeys(names, made), ())


def stack(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


def operation(name: str, *arguments: int, **settings: bool) -> Any:
    return getattr(core_model_loading, name)(*arguments, **settings)


DIMS = (0, 1, 2, -1, -2, -3)
SIZES = [(4, 6, 8), (4, 4, 8), (4, 8, 4), (4, 6, 6), (4, 4, 4), (2, 2, 2), (1, 4, 6), (1, 2, 2), (2, 1, 4)]

# Each makes parameters of a stack of this shape.
Made = tuple[list[Any], list[list[torch.Tensor]], int]
CHAINS: dict[str, Callable[[tuple[int, int, int]], Iterator[Made]]] = {
    "Chunk": lambda s: (([operation("Chunk", d)], [[stack(*s)]], 2) for d in DIMS if s[d] % 2 == 0),
    "Concatenate": lambda s: (([operation("Concatenate", d)], [[stack(*s)], [-stack(*s)]], 1) for d in DIMS),
    "Interleave": lambda s: (([operation("Interleave", d % 3)], [[stack(*s)]], 1) for d in DIMS if s[d] % 2 == 0),
    "Transpose": lambda s: (([operation("Transpose", d, e)], [[stack(*s)]], 1) for d in DIMS for e in DIMS),
    "merged": lambda s: (([operation("MergeModulelist", d)], [list(stack(*s))], 1) for d in (0, 1, 2)),
    "merged, then joined": lambda s: (
        ([operation("MergeModulelist", d), operation("Concatenate", e)], [list(stack(*s)), list(-stack(*s))], 1)
        for d, e in itertools.product((0, 1, 2), DIMS)
    ),
    "merged, then transposed": lambda s: (
        ([operation("MergeModulelist", 0), operation("Transpose", d, e)], [list(stack(*s))], 1)
        for d, e in itertools.product(DIMS, DIMS)
    ),
    "joined, not merged": lambda s: (([operation("Concatenate", d)], [list(stack(*s))], 1) for d in (0, 1, -1, -2)),
    "split by target": lambda s: (
        ([operation("ErnieFuseAndSplitTextVisionExperts", d, e)], [[*stack(*s), *-stack(*s)]] * 2, 2)
        for d, e in itertools.product((0, 1), (0, 1, 2))
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_each_element_is_that_of_the_whole(chain: str, size: tuple[int, int, int], tmp_path: Path) -> None:
    if chain in ("Interleave",) and not hasattr(core_model_loading, chain):
        pytest.skip("not in this version of transformers")
    num_compared = 0
    for operations, sources, num_targets in CHAINS[chain](size):
        # What transformers makes of the whole decides the shapes of the parameters.
        parameters = made_of(tmp_path, operations, sources, [(1,)] * num_targets)
        whole = parameters._convert(parameters.inputs["target0"], None, tensors.read_tensor)
        assert len(whole) == num_targets
        parameters = made_of(tmp_path, operations, sources, [tuple(value.shape) for value in whole.values()])
        for name, value in whole.items():
            assert parameters.spec(name).shape == tuple(value.shape)
            for index, expected in enumerate(value):
                assert torch.equal(parameters.read(name, index), expected), (operations, name, index)
                num_compared += 1
    assert num_compared


# Several parameters in one tensor: each is read without the others.


@pytest.mark.parametrize("name", ["Chunk", "Split"])
@pytest.mark.parametrize("dim", [0, 1])
def test_a_parameter_that_is_some_rows_of_a_tensor_is_read_alone(
    name: str, dim: int, tmp_path: Path, counted: list[int]
) -> None:
    if not hasattr(core_model_loading, name):
        pytest.skip("not in this version of transformers")
    sizes = [4, 4, 4] if name == "Chunk" else [6, 4, 2]
    shapes: list[tuple[int, ...]] = [(size, 5) if dim == 0 else (5, size) for size in sizes]
    whole = stack(12, 5) if dim == 0 else stack(5, 12)
    parameters = made_of(tmp_path, [operation(name, dim)], [[whole]], shapes)
    for place, expected in enumerate(torch.split(whole, sizes, dim)):
        counted.clear()
        assert torch.equal(parameters.read(f"target{place}", None), expected)
        assert counted == [expected.numel() if dim == 0 else whole.numel()]
        ((tensor, rows),) = parameters.parts(f"target{place}", None)
        assert tensors.part_bytes(tensor, rows)[1] == 4 * counted[0]


def test_rows_that_are_converted_further_are_not_cut_out(tmp_path: Path) -> None:
    operations = [operation("Chunk", 0), operation("Transpose", 0, 1)]
    whole = stack(8, 4)
    parameters = made_of(tmp_path, operations[:1], [[whole]], [(4, 4), (4, 4)])
    assert parameters.parts("target1", None)[0][1] == slice(4, 8)
    parameters = made_of(tmp_path, operations, [[whole]], [(4, 4), (4, 4)])
    assert parameters.parts("target1", None)[0][1] is None
