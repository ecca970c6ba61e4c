"""From stored tensors to parameters, one at a time.

The keys of a checkpoint are not parameter names. When transformers loads a checkpoint, it renames, prefixes, fuses,
transposes and dequantizes the tensors. `keys` matches the names. `StreamedParameters` applies the whole mapping to one
parameter at a time or, where `by_expert` allows that, to one expert of a stack.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from spectrum.checkpoint.disk.tensors import read_tensor, torch_dtype
from spectrum.checkpoint.disk.weight_files import StoredTensor
from spectrum.checkpoint.mapping.by_expert import OneExpert, is_by_expert, tensors_to_read
from spectrum.checkpoint.mapping.isolation import quiet
from spectrum.checkpoint.mapping.keys import ConversionInput, match_keys
from spectrum.errors import CheckpointError, first_line
from spectrum.records import Parameter


@dataclass(frozen=True, slots=True)
class StreamedParameters:
    """Parameters that are read from a checkpoint's files when they are asked for.

    Args:
        model: on the meta device.
        quantizer: the object of transformers' that dequantizes; None for a checkpoint that is not quantized.
        stored: the tensors of the checkpoint, by their keys.
        inputs: the stored tensors that each parameter is made of.
        unused: the keys of tensors that the model has no place for.
    """

    model: Any
    quantizer: Any
    stored: Mapping[str, StoredTensor]
    inputs: Mapping[str, ConversionInput]
    unused: tuple[str, ...]
    # The stack that was last converted as a whole, because its experts cannot be converted one by one. It is kept until
    # all of them have been read.
    _unsplit_stack: dict[str, torch.Tensor] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.inputs

    def spec(self, name: str) -> Parameter:
        """The shape and the dtype in which the parameter is read. This reads no weight.

        Raises CheckpointError if the stored tensors do not fit together.
        """
        conversion = self.inputs[name]
        if conversion.converter is None:
            tensor = self.stored[conversion.only_key()]
            return Parameter(tensor.shape, tensor.dtype)
        self._refuse_two_layouts(name, conversion)
        expected = tuple(self.model.get_parameter(name).shape)
        by_expert = len(expected) == 3 and is_by_expert(conversion, self.stored, expected[0])
        self._refuse_unequal(name, conversion, expected[0] if by_expert else None)
        converted = self._convert(conversion, 0 if by_expert else None, _without_values)[name]
        shape = (expected[0], *converted.shape[1:]) if by_expert else tuple(converted.shape)
        return Parameter(shape, str(converted.dtype).removeprefix("torch."))

    def is_remote(self, name: str) -> bool:
        """Whether the parameter is made of tensors that are not in a directory."""
        return not all(isinstance(self.stored[key].file, Path) for key in self.keys_of([name]))

    def reads_rows(self, name: str) -> bool:
        """Whether rows of the parameter are read by themselves: it is stored as it is."""
        return self.inputs[name].converter is None

    def read(self, name: str, index: int | slice | None) -> torch.Tensor:
        """The parameter or, if `index` is given, that element or those rows of its first dimension.

        Raises CheckpointError if a file cannot be read, or if transformers cannot convert what is in it.
        """
        conversion = self.inputs[name]
        if conversion.converter is None:
            return read_tensor(self.stored[conversion.only_key()], index)
        if index is None:
            rows = self._rows_of(name)
            if rows is not None:
                return read_tensor(self.stored[conversion.only_key()], rows)
            return self._convert(conversion, None, read_tensor)[name]
        if isinstance(index, slice):
            return self._convert(conversion, None, read_tensor)[name][index]
        if is_by_expert(conversion, self.stored, self.model.get_parameter(name).shape[0]):
            return self._convert(conversion, index, read_tensor)[name][0]
        stack = self._unsplit_stack.get(name)
        if stack is None:
            stack = self._convert(conversion, None, read_tensor)[name]
            self._unsplit_stack.clear()
            self._unsplit_stack[name] = stack
        if index == len(stack) - 1:
            self._unsplit_stack.clear()
        return stack[index]

    def parts(self, name: str, index: int | slice | None) -> list[tuple[StoredTensor, int | slice | None]]:
        """The stored tensors that `read` reads with these arguments, each with the rows that it reads; None for all.

        What `read` keeps of one call for the next is not considered.
        """
        conversion = self.inputs[name]
        if conversion.converter is None:
            return [(self.stored[conversion.only_key()], index)]
        rows = self._rows_of(name) if index is None else None
        if rows is not None:
            return [(self.stored[conversion.only_key()], rows)]
        expert = None
        if isinstance(index, int) and is_by_expert(conversion, self.stored, self.model.get_parameter(name).shape[0]):
            expert = index
        return [(self.stored[key], row) for _, key, row in self._rows_to_read(conversion, expert)]

    def keys_of(self, names: Iterable[str]) -> Iterator[str]:
        """The keys of the stored tensors that these parameters are made of."""
        for name in names:
            if name in self.inputs:
                for keys in self.inputs[name].keys.values():
                    yield from keys

    def _rows_to_read(
        self, conversion: ConversionInput, expert: int | None
    ) -> Iterator[tuple[str | None, str, int | None]]:
        """The pattern, the key and the row (None for all) of each tensor to convert; `expert` as for `_convert`."""
        num_experts = 1 if expert is None else len(self.model.get_parameter(conversion.first_parameter))
        for pattern, keys in conversion.keys.items():
            for key, row in tensors_to_read(keys, expert, num_experts):
                yield pattern, key, row

    def _rows_of(self, name: str) -> slice | None:
        """The rows of one stored tensor that are the parameter, if transformers only splits that tensor into several.

        None if the parameter is made in another way.
        """
        conversion = self.inputs[name]
        operations = conversion.converter.operations
        is_split = [type(operation).__name__ for operation in operations] in (["Chunk"], ["Split"])
        if not is_split or operations[0].dim != 0 or sum(map(len, conversion.keys.values())) != 1:
            return None
        start = 0
        for part, value in self._convert(conversion, None, _without_values).items():
            if part == name:
                return slice(start, start + len(value))
            start += len(value)
        return None

    def _refuse_two_layouts(self, name: str, conversion: ConversionInput) -> None:
        """Raises CheckpointError if a parameter is stored as a whole too, or as the parts of another converter."""
        for pattern, keys in conversion.keys.items():
            if pattern not in conversion.converter.source_patterns:
                first, second = self.stored[next(iter(conversion.keys.values()))[0]], self.stored[keys[0]]
                raise CheckpointError(
                    f"{name} is stored in two layouts: {first.file} holds {first.key}, and {second.file} holds "
                    f"{second.key}; transformers loads neither, so take the tensors of one out"
                )

    def _refuse_unequal(self, name: str, conversion: ConversionInput, num_experts: int | None) -> None:
        """Raises CheckpointError if tensors that a converter combines differ in dtype or, among experts, in shape.

        num_experts: of the parameter, if each is converted by itself; None if transformers compares the shapes.
        """
        for keys in conversion.keys.values():
            for place, tensor in enumerate(self.stored[key] for key in keys):
                first = self.stored[keys[place - place % (num_experts or len(keys))]]  # of the same target
                unequal_shapes = num_experts is not None and first.shape != tensor.shape
                if first.dtype != tensor.dtype or unequal_shapes:
                    raise CheckpointError(
                        f"{name} cannot be made: {tensor.file} holds {tensor.key} as {tensor.dtype} "
                        f"{list(tensor.shape)}, but {first.key} is {first.dtype} {list(first.shape)}"
                    )

    def _convert(
        self,
        conversion: ConversionInput,
        expert: int | None,
        read: Callable[[StoredTensor, int | None], torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """The parameters that are made of these tensors.

        Args:
            conversion: the tensors, and what converts them.
            expert: convert only this expert of each parameter, to stacks of one; None for all experts.
            read: reads a tensor or, given an index, one row of it.
        """
        converter = copy.deepcopy(conversion.converter)
        model = self.model if expert is None else OneExpert(self.model)
        for pattern, key, row in self._rows_to_read(conversion, expert):
            value = read(self.stored[key], row)
            stacked = value if row is None else value[None]
            converter.add_tensor(conversion.first_parameter, key, pattern, lambda tensor=stacked: tensor)
        try:
            with quiet():
                converted = converter.convert(
                    conversion.first_parameter, model=model, config=self.model.config, hf_quantizer=self.quantizer
                )
        except Exception as error:  # for example, shapes that do not fit together, or missing scales
            stored = ", ".join(keys[0] for keys in conversion.keys.values())
            raise CheckpointError(
                f"{conversion.first_parameter} cannot be made from what the checkpoint holds ({stored}, ...): "
                f"{first_line(error)}"
            ) from error
        converted = converted[0] if isinstance(converted, tuple) else converted  # transformers 5.0 returns errors too
        return {name: (value[0] if isinstance(value, list) else value).detach() for name, value in converted.items()}


def stream(model: Any, stored: Mapping[str, StoredTensor], quantizer: Any) -> StreamedParameters:
    """A model's parameters, matched with the keys of a checkpoint by the mapping that transformers has for the model.

    Raises MappingUnavailableError if transformers does not provide that mapping.
    """
    inputs, unused = match_keys(model, stored, quantizer)
    return StreamedParameters(model, quantizer, stored, inputs, tuple(unused))


def _without_values(tensor: StoredTensor, index: int | None) -> torch.Tensor:
    """Replaces `read_tensor` where only shape and dtype are wanted: an empty tensor on the meta device."""
    shape = tensor.shape if index is None else tensor.shape[1:]
    return torch.empty(shape, dtype=torch_dtype(tensor), device="meta")
