"""What training takes: elements of parameters, and memory for weights, gradients and optimizer states.

Activations and what a framework keeps for itself come on top.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from spectrum.layers import Parameter

# bitsandbytes: 8-bit states, with a float32 scale for each block, of parameters that are not too small for that.
_BLOCK = 256
_SMALLEST_8BIT = 4096  # elements


@dataclass(frozen=True, slots=True)
class Recipe:
    """Bytes for each element: of its weight, trained or not; of its gradient and its optimizer state, where trained.

    eight_bit: the states are bitsandbytes', of one byte each where a parameter is large enough.
    """

    weight: int
    gradient: int
    state: int
    eight_bit: bool = False


@dataclass(frozen=True, slots=True)
class Sharding:
    """How N devices share: what is divided among them (all else, each has whole)."""

    name: str
    weights: bool
    rest: bool
    deepspeed: bool = False


ALONE = Sharding("one device", weights=False, rest=False)
SHARDINGS = (
    Sharding("ZeRO-2", weights=False, rest=True, deepspeed=True),
    Sharding("ZeRO-3", weights=True, rest=True, deepspeed=True),
    Sharding("FSDP", weights=True, rest=True),
)

# Each optimizer as torch and FSDP have it, and as DeepSpeed has it (arXiv:1910.02054, section 3.1). Mixed precision is
# float32 weights under autocast there, with two float32 moments; here bfloat16 weights and gradients, with a float32
# copy of what trains beside the moments. States are of the weights' dtype in pure bfloat16.
OPTIMIZERS: Mapping[str, tuple[Recipe, Recipe]] = {
    "AdamW, mixed precision": (Recipe(4, 4, 8), Recipe(2, 2, 12)),
    "AdamW, pure bf16": (Recipe(2, 2, 4), Recipe(2, 2, 4)),
    "8-bit AdamW, bf16": (Recipe(2, 2, 8, eight_bit=True), Recipe(2, 2, 8, eight_bit=True)),
}


def sizes(names: Iterable[str], parameters: Mapping[str, Parameter]) -> list[int]:
    """Elements of each of these parameters, tied ones once; names that the model does not have are left out."""
    owners = dict.fromkeys(parameters[name].tied_to or name for name in names if name in parameters)
    return [math.prod(parameters[name].shape) for name in owners]


def memory(trained: Iterable[int], everything: Iterable[int], optimizer: str, sharding: Sharding, devices: int) -> int:
    """Bytes on each of so many devices for all weights, and gradients and optimizer states of the trained ones.

    trained, everything: sizes of parameters.
    """
    recipe = OPTIMIZERS[optimizer][sharding.deepspeed]
    weights = recipe.weight * sum(everything)
    rest = sum(recipe.gradient * size + _state(size, recipe) for size in trained)
    return math.ceil(weights / (devices if sharding.weights else 1) + rest / (devices if sharding.rest else 1))


def _state(size: int, recipe: Recipe) -> int:
    if recipe.eight_bit and size >= _SMALLEST_8BIT:
        return 2 * (size + 4 * math.ceil(size / _BLOCK))
    return recipe.state * size
