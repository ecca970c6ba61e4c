"""Which of a model's parameters hold matrices to score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from spectrum.checkpoint import meta_model, quantization
from spectrum.checkpoint.parameters import ParameterSource
from spectrum.errors import CheckpointError
from spectrum.layer_types import layer_types
from spectrum.records import LayerWeight, Parameter


def described(model: Any, storage: Mapping[str, str], values: ParameterSource) -> Iterator[tuple[str, Parameter]]:
    """Every parameter that has values, as records know it. Of tied ones the first is the one that trainers see."""
    first: dict[str, str] = {}
    for path, own, module in meta_model.owned_parameters(model):
        name = f"{path}.{own}" if path else own
        if name in storage:
            seen = first.setdefault(storage[name], name)
            tied_to = seen if seen != name else None
            yield name, replace(values.form(storage[name]), tied_to=tied_to, module=meta_model.torch_class(module))


def weights_of(
    model: Any, storage: Mapping[str, str], parameters: Mapping[str, Parameter], directory: Path
) -> list[LayerWeight]:
    """Weights to score in model order: every module's `weight`, and bare parameters that hold matrices."""
    found = []
    for path, own, module in meta_model.owned_parameters(model):
        name = f"{path}.{own}" if path else own
        if name in storage and _is_weight(path, own, module):
            found.append((path if own == "weight" and path else name, name, module))
    types = layer_types(layer for layer, _, _ in found)
    weights = []
    for layer, name, module in found:
        shape, dtype = parameters[name].shape, parameters[name].dtype
        if dtype not in quantization.READABLE:
            raise CheckpointError(
                f"{directory} holds {name} as {dtype}, which is no weight by itself; scan the original checkpoint"
            )
        matrix, count = _matrices(module, shape)
        weights.append(LayerWeight(layer, types[layer], storage[name], shape, matrix, count, dtype))
    return weights


def _is_weight(path: str, own: str, module: torch.nn.Module) -> bool:
    """Whether a module's own parameter holds weight matrices.

    So does its `weight`; of other names, `..._weight`, and the 3-D stacks of experts. The rest are biases, positions,
    decay rates and the like.
    """
    parameter = module.get_parameter(own)
    if parameter.numel() == 0:
        return False
    if own == "weight":
        return True
    of_experts = "expert" in path.lower() or "expert" in type(module).__name__.lower()
    named_weight = own.endswith("_weight")
    return (parameter.ndim == 3 and (named_weight or of_experts)) or (parameter.ndim == 2 and named_weight)


def _matrices(module: torch.nn.Module, shape: tuple[int, ...]) -> tuple[tuple[int, int], int]:
    """A parameter's shape as matrices: (n, m), and how many."""
    if len(shape) < 2:
        return (1, math.prod(shape)), 1
    if len(shape) == 3 and not isinstance(module, _ConvNd):
        return (shape[1], shape[2]), shape[0]
    if isinstance(module, _ConvTransposeNd):
        return (module.out_channels, math.prod(shape) // module.out_channels), 1
    return (shape[0], math.prod(shape[1:])), 1


def transposed(model: Any) -> dict[str, int]:
    """Groups of the convolutions whose weights have the input channels first."""
    return {f"{path}.weight": m.groups for path, m in model.named_modules() if isinstance(m, _ConvTransposeNd)}
