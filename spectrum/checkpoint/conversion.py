"""From stored tensors to parameters, one at a time.

The keys of a checkpoint are not parameter names. On loading, transformers renames, prefixes, fuses, transposes and
dequantizes what it reads. `Streamed` applies that mapping to one parameter, or to one expert of a stack.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from spectrum.checkpoint.disk.tensors import read_tensor, torch_dtype
from spectrum.checkpoint.disk.weight_files import StoredTensor
from spectrum.checkpoint.isolation import quiet
from spectrum.errors import CheckpointError, first_line
from spectrum.records import Parameter


class MappingError(Exception):
    """The installed version of transformers does not provide the mapping of this model."""


@dataclass(frozen=True, slots=True)
class ConversionInput:
    """The stored tensors that one or more parameters are made of.

    Args:
        target: the parameter that the converter's first target pattern names.
        converter: transformers' own; None if the parameter is the one stored tensor, unchanged.
        keys: the keys of the tensors by the pattern of the converter that they match, in the order in which it takes
            them.
    """

    target: str
    converter: Any
    keys: Mapping[str | None, tuple[str, ...]]

    def only_key(self) -> str:
        """Return the key of the one stored tensor. Only for inputs without a converter."""
        ((key,),) = self.keys.values()
        return key


@dataclass(frozen=True, slots=True)
class Streamed:
    """Parameters that are read from a checkpoint's files when they are asked for.

    Args:
        model: on the meta device.
        quantizer: transformers' own, which dequantizes; None for a checkpoint that is not quantized.
        stored: the tensors of the checkpoint, by their keys.
        inputs: what each parameter is made of.
        unused: the keys that no parameter takes.
    """

    model: Any
    quantizer: Any
    stored: Mapping[str, StoredTensor]
    inputs: Mapping[str, ConversionInput]
    unused: tuple[str, ...]
    # The last stack whose experts cannot be converted one by one. It is kept until all of them have been read.
    _whole: dict[str, torch.Tensor] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.inputs

    def spec(self, name: str) -> Parameter:
        """Return the shape and the dtype in which the parameter is read. No weight is read for this.

        Raises CheckpointError if the stored tensors do not fit together.
        """
        conversion = self.inputs[name]
        if conversion.converter is None:
            tensor = self.stored[conversion.only_key()]
            return Parameter(tensor.shape, tensor.dtype)
        self._refuse_unequal(name, conversion)
        experts = self.model.get_parameter(name).shape[:1]
        single = self.model.get_parameter(name).ndim == 3 and self._by_expert(conversion, experts[0])
        converted = self._convert(conversion, 0 if single else None, _without_values)[name]
        shape = (*experts, *converted.shape[1:]) if single else tuple(converted.shape)
        return Parameter(shape, str(converted.dtype).removeprefix("torch."))

    def read(self, name: str, index: int | None) -> torch.Tensor:
        """Return the parameter or, if `index` is given, that element of its first dimension.

        Raises CheckpointError if a file cannot be read, or if transformers cannot convert what is in it.
        """
        conversion = self.inputs[name]
        if conversion.converter is None:
            return read_tensor(self.stored[conversion.only_key()], index)
        if index is None:
            return self._convert(conversion, None, read_tensor)[name]
        if self._by_expert(conversion, self.model.get_parameter(name).shape[0]):
            return self._convert(conversion, index, read_tensor)[name][0]
        whole = self._whole.get(name)
        if whole is None:
            whole = self._convert(conversion, None, read_tensor)[name]
            self._whole.clear()
            self._whole[name] = whole
        if index == len(whole) - 1:
            self._whole.clear()
        return whole[index]

    def keys_of(self, names: Iterable[str]) -> Iterator[str]:
        """Yield the keys of the stored tensors that these parameters are made of."""
        for name in names:
            if name in self.inputs:
                for keys in self.inputs[name].keys.values():
                    yield from keys

    def _refuse_unequal(self, name: str, conversion: ConversionInput) -> None:
        """Raises CheckpointError if tensors that a converter puts together differ in shape or dtype."""
        for keys in conversion.keys.values():
            first = self.stored[keys[0]]
            for tensor in (self.stored[key] for key in keys[1:]):
                if (first.shape, first.dtype) != (tensor.shape, tensor.dtype):
                    raise CheckpointError(
                        f"{name} cannot be made: {tensor.file} holds {tensor.key} as {tensor.dtype} "
                        f"{list(tensor.shape)}, but {first.key} is {first.dtype} {list(first.shape)}"
                    )

    def _by_expert(self, conversion: ConversionInput, experts: int) -> bool:
        """Whether one expert can be converted without the others.

        It can if each pattern has one tensor per expert, or if each has a single tensor with one row per expert.
        """
        lengths = {len(keys) for keys in conversion.keys.values()}
        return lengths == {experts} or self._is_stacked(conversion, experts)

    def _is_stacked(self, conversion: ConversionInput, experts: int) -> bool:
        return all(len(keys) == 1 and self.stored[keys[0]].shape[:1] == (experts,) for keys in conversion.keys.values())

    def _convert(
        self,
        conversion: ConversionInput,
        expert: int | None,
        read: Callable[[StoredTensor, int | None], torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Return the parameters that are made of these tensors.

        Args:
            conversion: the tensors, and what converts them.
            expert: if given, stacks have this expert alone.
            read: reads a tensor or, given an index, one row of it.
        """
        converter = copy.deepcopy(conversion.converter)
        for pattern, keys in conversion.keys.items():
            if expert is not None and len(keys) > 1:
                keys = keys[expert : expert + 1]
                row = None
            else:
                row = expert
            for key in keys:
                value = read(self.stored[key], row)
                value = value if row is None else value[None]
                converter.add_tensor(conversion.target, key, pattern, lambda v=value: v)
        try:
            with quiet():
                converted = converter.convert(
                    conversion.target, model=self.model, config=self.model.config, hf_quantizer=self.quantizer
                )
        except Exception as error:  # shapes that do not fit together, missing scales
            stored = ", ".join(keys[0] for keys in conversion.keys.values())
            raise CheckpointError(
                f"{conversion.target} cannot be made from what the checkpoint holds ({stored}, ...): "
                f"{first_line(error)}"
            ) from error
        converted = converted[0] if isinstance(converted, tuple) else converted  # transformers 5.0 adds the errors
        return {name: (value[0] if isinstance(value, list) else value).detach() for name, value in converted.items()}


def stream(model: Any, stored: Mapping[str, StoredTensor], quantizer: Any) -> Streamed:
    """Match the keys of a checkpoint with a model's parameters, by the model's own mapping.

    Raises MappingError if transformers does not provide that mapping.
    """
    try:
        with quiet():
            inputs, unused = _match_keys(model, stored, quantizer)
    except Exception as error:  # this interface is not public; if it has changed, the public loader is used instead
        raise MappingError(first_line(error)) from error
    return Streamed(model, quantizer, stored, inputs, tuple(unused))


def _match_keys(
    model: Any, stored: Mapping[str, StoredTensor], quantizer: Any
) -> tuple[dict[str, ConversionInput], list[str]]:
    """Return what each parameter is made of, and the keys that no parameter takes."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    mapping = get_model_conversion_mapping(model, None, quantizer)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix, state = model.base_model_prefix, model.state_dict()

    taken: dict[str, tuple[Any, dict[str | None, list[str]]]] = {}
    unused = []
    for key in sorted(stored, key=dot_natural_key):  # the order in which converters take experts
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], prefix, state)
        if name not in state:
            unused.append(key)
            continue
        _, by_source = taken.setdefault(name, (by_pattern.get(pattern) if pattern else None, {}))
        by_source.setdefault(pattern, []).append(key)

    inputs: dict[str, ConversionInput] = {}
    for name, (converter, by_source) in taken.items():
        conversion = ConversionInput(name, converter, {pattern: tuple(keys) for pattern, keys in by_source.items()})
        inputs |= dict.fromkeys(_targets(conversion), conversion)
    return inputs, unused


def _targets(conversion: ConversionInput) -> list[str]:
    """Return the parameters that are made. The names of further targets differ from the first in that pattern alone."""
    if conversion.converter is None:
        return [conversion.target]
    first, *further = conversion.converter.target_patterns
    return [conversion.target, *(conversion.target.replace(first, pattern) for pattern in further)]


def _without_values(tensor: StoredTensor, index: int | None) -> torch.Tensor:
    """Stand in for `read_tensor`, on the meta device."""
    shape = tensor.shape if index is None else tensor.shape[1:]
    return torch.empty(shape, dtype=torch_dtype(tensor), device="meta")
