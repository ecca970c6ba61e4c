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
_BLOCK_ELEMENTS = 256  # elements
_MIN_8BIT_ELEMENTS = 4096  # elements


class ParameterSize(NamedTuple):
    """How many elements a parameter has, and whether it is an embedding's."""

    elements: int
    is_embedding: bool


@dataclass(frozen=True, slots=True)
class BytesPerElement:
    """What an optimizer and its precision take, in bytes per element.

    Args:
        weight: of each weight, trained or not.
        gradient: of the gradient of a trained weight.
        state: of the optimizer's states of a trained weight.
        copy: of the float32 copy of a trained weight, if there is one.
        has_8bit_states: whether bitsandbytes keeps the states, in one byte each. Small parameters and embeddings are
            excepted: their states take `state` bytes, since the Trainer of transformers, and trainers built on it,
            keep them in float32.
    """

    weight: int
    gradient: int
    state: int
    copy: int = 0
    has_8bit_states: bool = False


@dataclass(frozen=True, slots=True)
class Sharding:
    """What is divided among the devices. Each device holds all the rest.

    Args:
        name: as a table shows it.
        divides_weights: whether weights are divided.
        divides_training_state: whether gradients, optimizer states and float32 copies are divided.
        is_deepspeed: whether DeepSpeed shards.
    """

    name: str
    divides_weights: bool
    divides_training_state: bool
    is_deepspeed: bool = False


UNSHARDED = Sharding("one device", divides_weights=False, divides_training_state=False)
SHARDINGS = (
    Sharding("ZeRO-2", divides_weights=False, divides_training_state=True, is_deepspeed=True),
    Sharding("ZeRO-3", divides_weights=True, divides_training_state=True, is_deepspeed=True),
    Sharding("FSDP", divides_weights=True, divides_training_state=True),
)

# Each optimizer's recipe under torch and FSDP, then under DeepSpeed (arXiv:1910.02054, section 3.1). DeepSpeed keeps a
# float32 copy of each trained weight, and float32 states, whatever the weights are. Under torch and FSDP, mixed
# precision means float32 weights under autocast, and pure bfloat16 means states of the weights' dtype.
OPTIMIZERS: Mapping[str, tuple[BytesPerElement, BytesPerElement]] = {
    "AdamW, mixed precision": (BytesPerElement(4, 4, 8), BytesPerElement(2, 2, 8, copy=4)),
    "AdamW, pure bf16": (BytesPerElement(2, 2, 4), BytesPerElement(2, 2, 8, copy=4)),
    "8-bit AdamW, bf16": (
        BytesPerElement(2, 2, 8, has_8bit_states=True),
        BytesPerElement(2, 2, 8, copy=4, has_8bit_states=True),
    ),
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
    per_element = OPTIMIZERS[optimizer][sharding.is_deepspeed]
    weights = per_element.weight * sum(size.elements for size in everything)
    rest = sum(
        (per_element.gradient + per_element.copy) * size.elements + _state_bytes(size, per_element) for size in trained
    )
    return math.ceil(
        weights / (devices if sharding.divides_weights else 1)
        + rest / (devices if sharding.divides_training_state else 1)
    )


def _state_bytes(size: ParameterSize, per_element: BytesPerElement) -> int:
    """Bytes of the optimizer's states of a parameter. AdamW keeps two states."""
    if per_element.has_8bit_states and size.elements >= _MIN_8BIT_ELEMENTS and not size.is_embedding:
        return 2 * (size.elements + 4 * math.ceil(size.elements / _BLOCK_ELEMENTS))
    return per_element.state * size.elements
