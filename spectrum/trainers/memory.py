"""How much memory do weights, gradients and optimizer states take in training?

The memory of activations, and the memory that a framework takes for itself, are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from spectrum.records import ModelInfo, Parameter

DEFAULT_DEVICES = 8  # that share the training, where it is sharded

# bitsandbytes keeps 8-bit states with one float32 scale per block. States of small parameters are not in 8 bits.
_BLOCK_ELEMENTS = 256  # elements
_MIN_8BIT_ELEMENTS = 4096  # elements


class ParameterSize(NamedTuple):
    """The size of a parameter. is_embedding: whether it is the weight of an embedding module."""

    elements: int
    is_embedding: bool


@dataclass(frozen=True, slots=True)
class BytesPerElement:
    """The memory that training with an optimizer takes, in bytes per element of a parameter.

    Args:
        weight: for the weight, whether or not it trains.
        gradient: for the gradient, if the weight trains.
        state: for all states that the optimizer keeps, if the weight trains.
        copy: for the float32 copy, if the weight trains and there is a copy.
        has_8bit_states: whether bitsandbytes keeps each state in one byte. States of small parameters and of embeddings
            take `state` bytes all the same: the Trainer of transformers, and trainers built on it, keep these in
            float32.
    """

    weight: int
    gradient: int
    state: int
    copy: int = 0
    has_8bit_states: bool = False


@dataclass(frozen=True, slots=True)
class Sharding:
    """What is divided among the devices. Each device holds a full copy of everything else.

    Args:
        name: the name in tables.
        divides_weights: whether weights are divided.
        divides_training_state: whether gradients, optimizer states and float32 copies are divided.
        is_deepspeed: whether DeepSpeed does it.
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

# For each optimizer, first under torch and FSDP, then under DeepSpeed (arXiv:1910.02054, section 3.1). DeepSpeed keeps
# a float32 copy of each trained weight, and float32 states, whatever the weights' dtype is. Under torch and FSDP, mixed
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
    return [parameter_size(info.parameters[name]) for name in info.owners(names)]


def parameter_size(parameter: Parameter) -> ParameterSize:
    """The size of one parameter."""
    return ParameterSize(math.prod(parameter.shape), parameter.module == "Embedding")


def bytes_per_device(
    trained: Iterable[ParameterSize],
    everything: Iterable[ParameterSize],
    optimizer: str,
    sharding: Sharding,
    devices: int,
) -> int:
    """The bytes on each device for all weights, and for the gradients and optimizer states of those that train.

    Args:
        trained: the parameters that train.
        everything: all parameters of the model.
        optimizer: a key of `OPTIMIZERS`.
        sharding: what is divided.
        devices: the number of devices.
    """
    per_element = OPTIMIZERS[optimizer][sharding.is_deepspeed]
    weights: float = per_element.weight * sum(size.elements for size in everything)
    training_state: float = sum(training_bytes(size, per_element) for size in trained)
    weights /= devices if sharding.divides_weights else 1
    training_state /= devices if sharding.divides_training_state else 1
    return math.ceil(weights + training_state)


def training_bytes(size: ParameterSize, per_element: BytesPerElement) -> int:
    """The bytes for the gradient, the float32 copy and the optimizer's states of one parameter that trains."""
    return (per_element.gradient + per_element.copy) * size.elements + _state_bytes(size, per_element)


def _state_bytes(size: ParameterSize, per_element: BytesPerElement) -> int:
    """The bytes of the optimizer's states for one parameter. AdamW keeps two states."""
    if per_element.has_8bit_states and size.elements >= _MIN_8BIT_ELEMENTS and not size.is_embedding:
        return 2 * (size.elements + 4 * math.ceil(size.elements / _BLOCK_ELEMENTS))
    return per_element.state * size.elements
