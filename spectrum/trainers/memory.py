"""What training takes: elements of parameters, and memory for weights, gradients and optimizer states.

Activations and what a framework keeps for itself come on top.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from spectrum.records import ModelInfo

# bitsandbytes: 8-bit states, with a float32 scale for each block, of parameters that are not too small for that.
_BLOCK = 256
_SMALLEST_8BIT = 4096  # elements


class Size(NamedTuple):
    """How many elements a parameter has, and whether it is an embedding's."""

    elements: int
    is_embedding: bool


@dataclass(frozen=True, slots=True)
class Recipe:
    """Bytes for each element: of its weight, trained or not; of its gradient, its state and a copy, where trained.

    eight_bit: the states are bitsandbytes', of one byte each where a parameter is large enough, and no embedding's: the
    Trainer of transformers, and whatever is made of it, keeps these in float32.
    """

    weight: int
    gradient: int
    state: int
    copy: int = 0
    eight_bit: bool = False


@dataclass(frozen=True, slots=True)
class Sharding:
    """How N devices share: what is divided among them (all else, each has whole)."""

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

# Each optimizer as torch and FSDP have it, and as DeepSpeed has it (arXiv:1910.02054, section 3.1), which keeps a
# float32 copy of what trains, and states of that, whatever the weights. Elsewhere mixed precision is float32 weights
# under autocast, and pure bfloat16 has states of its weights' dtype.
OPTIMIZERS: Mapping[str, tuple[Recipe, Recipe]] = {
    "AdamW, mixed precision": (Recipe(4, 4, 8), Recipe(2, 2, 8, copy=4)),
    "AdamW, pure bf16": (Recipe(2, 2, 4), Recipe(2, 2, 8, copy=4)),
    "8-bit AdamW, bf16": (Recipe(2, 2, 8, eight_bit=True), Recipe(2, 2, 8, copy=4, eight_bit=True)),
}


def sizes(names: Iterable[str], info: ModelInfo) -> list[Size]:
    """Sizes of these parameters, tied ones once. Names that the model does not have are left out."""
    owners = [info.parameters[name] for name in info.owners(names)]
    return [Size(math.prod(owner.shape), owner.module == "Embedding") for owner in owners]


def memory(
    trained: Iterable[Size], everything: Iterable[Size], optimizer: str, sharding: Sharding, devices: int
) -> int:
    """Bytes on each of so many devices for all weights, and gradients and optimizer states of the trained ones."""
    recipe = OPTIMIZERS[optimizer][sharding.deepspeed]
    weights = recipe.weight * sum(size.elements for size in everything)
    rest = sum((recipe.gradient + recipe.copy) * size.elements + _state(size, recipe) for size in trained)
    return math.ceil(weights / (devices if sharding.weights else 1) + rest / (devices if sharding.rest else 1))


def _state(size: Size, recipe: Recipe) -> int:
    if recipe.eight_bit and size.elements >= _SMALLEST_8BIT and not size.is_embedding:
        return 2 * (size.elements + 4 * math.ceil(size.elements / _BLOCK))
    return recipe.state * size.elements
