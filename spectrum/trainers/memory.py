"""How much memory does training take? That of weights, gradients and optimizer states.

Activations, and what a framework keeps for itself, come on top.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from spectrum.records import ModelInfo

# bitsandbytes keeps 8-bit states with one float32 scale per block, except for small parameters.
_BLOCK = 256  # elements
_SMALLEST_8BIT = 4096  # elements


class ParameterSize(NamedTuple):
    """How many elements a parameter has, and whether it is an embedding's."""

    elements: int
    is_embedding: bool


@dataclass(frozen=True, slots=True)
class Recipe:
    """What an optimizer and its precision take, in bytes per element.

    Args:
        weight: of each weight, trained or not.
        gradient: of the gradient of a trained weight.
        state: of the optimizer's states of a trained weight.
        copy: of the float32 copy of a trained weight, if there is one.
        eight_bit: whether bitsandbytes keeps the states, in one byte each. Small parameters and embeddings are
            excepted: their states take `state` bytes, since the Trainer of transformers, and trainers built on it,
            keep them in float32.
    """

    weight: int
    gradient: int
    state: int
    copy: int = 0
    eight_bit: bool = False


@dataclass(frozen=True, slots=True)
class Sharding:
    """What is divided among the devices. Each device holds all the rest.

    Args:
        name: as a table shows it.
        weights: whether weights are divided.
        rest: whether gradients, optimizer states and copies are divided.
        deepspeed: whether DeepSpeed shards.
    """

    name: str
    weights: bool
    rest: bool
    deepspeed: bool = False


UNSHARDED = Sharding("one device", weights=False, rest=False)
SHARDINGS = (
    Sharding("ZeRO-2", weights=False, rest=True, deepspeed=True),
    Sharding("ZeRO-3", weights=True, rest=True, deepspeed=True),
    Sharding("FSDP", weights=True, rest=True),
)

# Each optimizer's recipe under torch and FSDP, then under DeepSpeed (arXiv:1910.02054, section 3.1). DeepSpeed keeps a
# float32 copy of each trained weight, and float32 states, whatever the weights are. Under torch and FSDP, mixed
# precision means float32 weights under autocast, and pure bfloat16 means states of the weights' dtype.
OPTIMIZERS: Mapping[str, tuple[Recipe, Recipe]] = {
    "AdamW, mixed precision": (Recipe(4, 4, 8), Recipe(2, 2, 8, copy=4)),
    "AdamW, pure bf16": (Recipe(2, 2, 4), Recipe(2, 2, 8, copy=4)),
    "8-bit AdamW, bf16": (Recipe(2, 2, 8, eight_bit=True), Recipe(2, 2, 8, copy=4, eight_bit=True)),
}


def parameter_sizes(names: Iterable[str], info: ModelInfo) -> list[ParameterSize]:
    """The sizes of these parameters. Tied ones count once; names that the model does not have are left out."""
    owners = [info.parameters[name] for name in info.owners(names)]
    return [ParameterSize(math.prod(owner.shape), owner.module == "Embedding") for owner in owners]


def bytes_per_device(
    trained: Iterable[ParameterSize],
    everything: Iterable[ParameterSize],
    optimizer: str,
    sharding: Sharding,
    devices: int,
) -> int:
    """Bytes on each device for all weights, and for gradients and optimizer states of the trained ones.

    Args:
        trained: the parameters that train.
        everything: all parameters of the model.
        optimizer: a key of `OPTIMIZERS`.
        sharding: what is divided.
        devices: among how many devices.
    """
    recipe = OPTIMIZERS[optimizer][sharding.deepspeed]
    weights = recipe.weight * sum(size.elements for size in everything)
    rest = sum((recipe.gradient + recipe.copy) * size.elements + _state_bytes(size, recipe) for size in trained)
    return math.ceil(weights / (devices if sharding.weights else 1) + rest / (devices if sharding.rest else 1))


def _state_bytes(size: ParameterSize, recipe: Recipe) -> int:
    """Bytes of the optimizer's states of a parameter. AdamW keeps two states."""
    if recipe.eight_bit and size.elements >= _SMALLEST_8BIT and not size.is_embedding:
        return 2 * (size.elements + 4 * math.ceil(size.elements / _BLOCK))
    return recipe.state * size.elements
