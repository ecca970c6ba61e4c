"""What a model consists of: its parameters, which of them are tied, and which hold matrices to score."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from transformers.pytorch_utils import Conv1D

from spectrum.checkpoint import meta_model
from spectrum.checkpoint.mapping.parameters import ParameterSource
from spectrum.errors import CheckpointError
from spectrum.layer_types import display_order, layer_types
from spectrum.records import WEIGHT_NORM, LayerWeight, ModelInfo, Parameter, layer_name

# Attention modules whose weights are parameters of their own, with a dimension for the heads: (d_model, heads, d_head).
# They are used as matrices (d_model, heads * d_head).
_HEADS_APART: Mapping[str, tuple[str, ...]] = {
    "XLNetRelativeAttention": ("q", "k", "v", "o", "r"),
    "FunnelRelMultiheadAttention": ("r_kernel",),
}

# Modules that keep all experts of a layer in parameters of two dimensions: (experts * rows, columns). Each module has
# the number of experts as the attribute.
_EXPERTS_IN_ROWS: Mapping[str, tuple[str, tuple[str, ...]]] = {"DbrxExpertGLU": ("moe_num_experts", ("w1", "v1", "w2"))}

_COMPARED_ROWS = 16  # of two parameters on the Hub that may be tied

_WEIGHT_NORMS, _WEIGHT_DIRECTIONS = (f".{name}" for name in WEIGHT_NORM)


@dataclass(frozen=True, slots=True)
class WeightNorm:
    """How a weight is computed from its direction, the parameter of the layer, and the norms of its rows.

    Args:
        parameter: the holder of the norms.
        module: torch's module that computes the weight.
    """

    parameter: str
    module: torch.nn.Module

    def weight(self, norms: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        """The weight that the model computes with, in the dtype of its direction."""
        weight: torch.Tensor = self.module(norms.double(), direction.double())
        return weight.to(direction.dtype)


@dataclass(frozen=True, slots=True)
class Description:
    """A model and its weights.

    Args:
        info: what the model consists of.
        weights: the weights to score, in model order.
        groups: the number of groups of each transposed convolution, by the name of its weight. These weights have the
            input channels first.
        norms: how weights under weight normalization are computed, by the holders of their directions.
    """

    info: ModelInfo
    weights: tuple[LayerWeight, ...]
    groups: Mapping[str, int]
    norms: Mapping[str, WeightNorm]


def describe(model: Any, holders: Mapping[str, str], specs: Mapping[str, Parameter]) -> Description:
    """Describe a model, in one pass over its modules.

    The weights are the `weight` of every module, also under weight normalization, and other parameters that hold
    matrices. The owner of tied parameters, under whose name trainers see them, is the first in model order.

    Args:
        model: on any device, the meta device included.
        holders: for each parameter, the one under whose name its values are stored: itself, or one that it is tied to.
            Parameters that are missing here are left out.
        specs: the shape and the dtype of each parameter in `holders`.
    """
    modules: dict[str, torch.nn.Module] = dict(model.named_modules(remove_duplicate=False))
    parameters: dict[str, Parameter] = {}
    groups: dict[str, int] = {}
    norms: dict[str, WeightNorm] = {}
    owners: dict[str, str] = {}  # by holder
    matrices: list[tuple[str, str, torch.nn.Module]] = []  # layer, parameter, module
    for path, module in modules.items():
        module_class = _module_class(module)
        normalized = _normalized_module(path, modules)
        if isinstance(module, _ConvTransposeNd):
            groups[_join(path, "weight")] = groups[_join(path, WEIGHT_NORM[1])] = module.groups
        for own_name, value in module.named_parameters(recurse=False):
            name = _join(path, own_name)
            if name not in holders:
                continue
            owner = owners.setdefault(holders[name], name)
            parameters[name] = replace(specs[name], tied_to=None if owner == name else owner, module=module_class)
            if normalized is not None and name.endswith(_WEIGHT_DIRECTIONS) and _norms_of(name) in holders:
                matrices.append((layer_name(name), name, normalized))
                norms[holders[name]] = WeightNorm(holders[_norms_of(name)], modules[f"{path}.0"])
            elif _holds_matrices(path, own_name, module, value):
                matrices.append((layer_name(name), name, module))
    types = layer_types(layer for layer, _, _ in matrices)
    for layer, name, _ in matrices:
        for own in (name, _norms_of(name)) if holders[name] in norms else (name,):
            parameters[own] = replace(parameters[own], layer_type=types[layer])
    weights = tuple(
        _layer_weight(layer, types[layer], holders[name], parameters[name], module) for layer, name, module in matrices
    )
    head, embedding = meta_model.head_and_embedding(model, modules)
    info = ModelInfo(
        model_class=type(model).__name__,
        parameters=parameters,
        layer_types=tuple(display_order(weight.layer_type for weight in weights)),
        head=head,
        embedding=embedding,
        modules=frozenset(filter(None, modules)),
    )
    return Description(info, weights, groups, norms)


def _layer_weight(
    name: str, layer_type: str, holder: str, parameter: Parameter, module: torch.nn.Module
) -> LayerWeight:
    matrix, count = _matrix_shape(module, name.rpartition(".")[2], parameter.shape)
    return LayerWeight(name, layer_type, holder, parameter.shape, matrix, count, parameter.dtype)


def _normalized_module(path: str, modules: Mapping[str, torch.nn.Module]) -> torch.nn.Module | None:
    """The module whose weight a module computes by weight normalization; None if it does not do that."""
    parametrizations: Any = modules[path]
    if not isinstance(parametrizations, ParametrizationList) or not path.endswith(".parametrizations.weight"):
        return None
    if len(parametrizations) != 1 or not isinstance(parametrizations[0], _WeightNorm):
        return None
    return modules[path.removesuffix(".parametrizations.weight")]


def _norms_of(direction: str) -> str:
    """The name of the norms of a weight, given that of its direction."""
    return f"{direction.removesuffix(_WEIGHT_DIRECTIONS)}{_WEIGHT_NORMS}"


def _join(path: str, own_name: str) -> str:
    return f"{path}.{own_name}" if path else own_name


def _module_class(module: torch.nn.Module) -> str | None:
    """The name of the nearest class that torch.nn, transformers (Conv1D) or `_HEADS_APART` defines, None for no such.

    The class says which adapters fit the module. Convolutions in groups are named `grouped ...`: no adapter fits them.
    """
    special = _special_class(module)
    if special in _HEADS_APART:
        return special
    for base in type(module).__mro__:
        if base is torch.nn.Module:
            return None
        if base is Conv1D or getattr(torch.nn, base.__name__, None) is base:
            return f"grouped {base.__name__}" if getattr(module, "groups", 1) != 1 else base.__name__
    return None


def _holds_matrices(path: str, own_name: str, module: torch.nn.Module, value: torch.Tensor) -> bool:
    """Whether a module's own parameter holds weight matrices.

    A `weight` does. So does any other parameter that is a matrix or a 3-D stack and is named `..._weight`, any 3-D
    stack of experts, the `weight_...` matrices of recurrent modules, and what `_HEADS_APART` and `_EXPERTS_IN_ROWS`
    name. The rest are biases, positions, decay rates and the like. An empty parameter holds none.
    """
    if value.numel() == 0:
        return False
    if own_name == "weight" or _has_heads_apart(module, own_name) or _experts_in_rows(module, own_name):
        return True
    of_experts = "expert" in path.lower() or "expert" in type(module).__name__.lower()
    named_weight = own_name.endswith("_weight")
    if isinstance(module, torch.nn.RNNBase | torch.nn.RNNCellBase):
        named_weight = own_name.startswith("weight_")
    return (value.ndim == 3 and (named_weight or of_experts)) or (value.ndim == 2 and named_weight)


def _special_class(module: torch.nn.Module) -> str:
    """The name of the nearest class that `_HEADS_APART` or `_EXPERTS_IN_ROWS` lists, empty for no such."""
    names = (base.__name__ for base in type(module).__mro__)
    return next((name for name in names if name in _HEADS_APART or name in _EXPERTS_IN_ROWS), "")


def _has_heads_apart(module: torch.nn.Module, own_name: str) -> bool:
    return own_name in _HEADS_APART.get(_special_class(module), ())


def _experts_in_rows(module: torch.nn.Module, own_name: str) -> int:
    """The number of experts whose matrices lie below each other in a parameter; 0 if it is not such a parameter."""
    count, names = _EXPERTS_IN_ROWS.get(_special_class(module), ("", ()))
    return int(getattr(module, count)) if own_name in names else 0


def _matrix_shape(module: torch.nn.Module, own_name: str, shape: tuple[int, ...]) -> tuple[tuple[int, int], int]:
    """The shape (n, m) of the matrices that a parameter of this shape holds, and their number."""
    if len(shape) < 2:
        return (1, math.prod(shape)), 1
    if (experts := _experts_in_rows(module, own_name)) and len(shape) == 2 and shape[0] % experts == 0:
        return (shape[0] // experts, shape[1]), experts
    if len(shape) == 3 and not isinstance(module, _ConvNd) and not _has_heads_apart(module, own_name):
        return (shape[1], shape[2]), shape[0]
    if isinstance(module, _ConvTransposeNd):
        return (module.out_channels, math.prod(shape) // module.out_channels), 1
    return (shape[0], math.prod(shape[1:])), 1


def find_holders(
    model: Any, source: ParameterSource, where: object, *, any_shape: bool = False
) -> tuple[dict[str, str], dict[str, Parameter]]:
    """The holder of each parameter's values, see `describe`, and the shape and the dtype of each parameter as read.

    Parameters without values are left out, see `missing_parameters`. Raises CheckpointError if a parameter has another
    shape, unless any shape will do: transformers would fill it with random numbers.
    """
    specs = {}
    for name, spec, expected in _shapes(model, source):  # all of them, before any value is read
        if spec.shape != expected and not any_shape:
            raise CheckpointError(
                f"{where} holds {name} as {list(spec.shape)}, but {type(model).__name__} has it as {list(expected)}: "
                "the weights are not those of config.json"
            )
        specs[name] = spec
    holders = _first_holders(model, source)
    for group in meta_model.tied_groups(model):
        first, *others = sorted(name for name in group if name in source) or [""]
        holders |= {name: first for name in others if _are_equal(first, name, source)}
    return holders, specs


def fills(model: Any, source: ParameterSource) -> bool:
    """Whether a source has all parameters of a model in the model's shapes. No value is read.

    Raises CheckpointError if stored tensors do not fit together.
    """
    return not missing_parameters(model, source) and all(
        spec.shape == expected for _, spec, expected in _shapes(model, source)
    )


def missing_parameters(model: Any, source: ParameterSource) -> list[str]:
    """The parameters that transformers would fill with random numbers, in model order.

    The source lacks them and all that they are tied to, and transformers does not itself expect that.
    """
    holders = _first_holders(model, source)
    return [
        name for name, _ in meta_model.named_parameters(model) if name not in holders and not _is_optional(model, name)
    ]


def _first_holders(model: Any, source: ParameterSource) -> dict[str, str]:
    """For each parameter, the one that has its values: itself or, if the source lacks it, one that it is tied to."""
    holders = {name: name for name, _ in meta_model.named_parameters(model) if name in source}
    for group in meta_model.tied_groups(model):
        if stored := group & holders.keys():
            holders |= dict.fromkeys(group - stored, min(stored))
    return holders


def _shapes(model: Any, source: ParameterSource) -> Iterator[tuple[str, Parameter, tuple[int, ...]]]:
    """For each parameter that has values, how it is read and the shape that it must have, in model order."""
    holders = _first_holders(model, source)
    spec_of = functools.cache(source.spec)
    for name, value in meta_model.named_parameters(model):
        if name in holders:
            yield name, spec_of(holders[name]), tuple(value.shape)


def _is_optional(model: Any, name: str) -> bool:
    """Whether transformers itself expects checkpoints that lack this parameter."""
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _are_equal(first: str, second: str, source: ParameterSource) -> bool:
    """Whether two stored parameters are equal. If not, transformers does not tie them, even if the config does.

    Of parameters on the Hub, only some rows are compared here, and all when they are scored.
    """
    spec = source.spec(first)
    if spec != source.spec(second):
        return False
    rows: Iterable[int | None] = (None,)
    if spec.shape and (source.is_remote(first) or source.is_remote(second)):
        rows = {*range(0, spec.shape[0], spec.shape[0] // _COMPARED_ROWS + 1), spec.shape[0] - 1}
    return all(torch.equal(source.read(first, row), source.read(second, row)) for row in rows)
