"""From stored tensors to parameters, one at a time.

The keys of a checkpoint are not parameter names. When transformers loads a checkpoint, it renames, prefixes, fuses,
transposes and dequantizes the tensors. `StreamedParameters` applies that mapping to one parameter at a time, or to one
expert of a stack.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from spectrum.checkpoint.disk.tensors import read_tensor, torch_dtype
from spectrum.checkpoint.disk.weight_files import StoredTensor
from spectrum.checkpoint.isolation import quiet
from spectrum.errors import CheckpointError, first_line
from spectrum.records import Parameter

# Operations of transformers that treat each matrix of a stack by itself, if none of these attributes names the first
# dimension, along which the matrices are stacked.
_MATRIXWISE: Mapping[str, tuple[str, ...]] = {
    "Force16BytesAlignment": (),
    "Fp8Dequantize": (),
    "Inkling2LoopDequantizeExperts": (),
    "Mxfp4Dequantize": (),
    **dict.fromkeys(("Chunk", "Concatenate", "Interleave", "Split"), ("dim",)),
    "Transpose": ("dim0", "dim1"),
}
# Operations that treat each tensor of a list by itself.
_TENSORWISE = ("CompressedTensorsDequantize", "DecompressExperts", "Fp8Dequantize")


class MappingUnavailableError(Exception):
    """The installed version of transformers does not provide the mapping from keys to parameters for this model."""


@dataclass(frozen=True, slots=True)
class ConversionInput:
    """The stored tensors that one or more parameters are made of.

    Args:
        first_parameter: the first of the parameters. Its name matches the converter's first target pattern.
        converter: an object of transformers'; None if the parameter is the one stored tensor, unchanged.
        keys: the keys of the tensors, in the converter's order, by the source pattern of the converter that they match.
    """

    first_parameter: str
    converter: Any
    keys: Mapping[str | None, tuple[str, ...]]

    def only_key(self) -> str:
        """The key of the one stored tensor. Only for inputs without a converter."""
        ((key,),) = self.keys.values()
        return key


@dataclass(frozen=True, slots=True)
class StreamedParameters:
    """Parameters that are read from a checkpoint's files when they are asked for.

    Args:
        model: on the meta device.
        quantizer: the object of transformers' that dequantizes; None for a checkpoint that is not quantized.
        stored: the tensors of the checkpoint, by their keys.
        inputs: the stored tensors that each parameter is made of.
        unused: the keys of tensors that no parameter is made of.
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
        expected = tuple(self.model.get_parameter(name).shape)
        is_by_expert = len(expected) == 3 and self._is_by_expert(conversion, expected[0])
        self._refuse_unequal(name, conversion, expected[0] if is_by_expert else None)
        converted = self._convert(conversion, 0 if is_by_expert else None, _without_values)[name]
        shape = (expected[0], *converted.shape[1:]) if is_by_expert else tuple(converted.shape)
        return Parameter(shape, str(converted.dtype).removeprefix("torch."))

    def read(self, name: str, index: int | slice | None) -> torch.Tensor:
        """The parameter or, if `index` is given, that element or those rows of its first dimension.

        Raises CheckpointError if a file cannot be read, or if transformers cannot convert what is in it.
        """
        conversion = self.inputs[name]
        if conversion.converter is None:
            return read_tensor(self.stored[conversion.only_key()], index)
        if index is None:
            return self._convert(conversion, None, read_tensor)[name]
        if isinstance(index, slice):
            return self._convert(conversion, None, read_tensor)[name][index]
        if self._is_by_expert(conversion, self.model.get_parameter(name).shape[0]):
            return self._convert(conversion, index, read_tensor)[name][0]
        stack = self._unsplit_stack.get(name)
        if stack is None:
            stack = self._convert(conversion, None, read_tensor)[name]
            self._unsplit_stack.clear()
            self._unsplit_stack[name] = stack
        if index == len(stack) - 1:
            self._unsplit_stack.clear()
        return stack[index]

    def keys_of(self, names: Iterable[str]) -> Iterator[str]:
        """The keys of the stored tensors that these parameters are made of."""
        for name in names:
            if name in self.inputs:
                for keys in self.inputs[name].keys.values():
                    yield from keys

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

    def _is_by_expert(self, conversion: ConversionInput, num_experts: int) -> bool:
        """Whether one expert can be converted without the others, to the same values.

        It can if each pattern has one tensor per expert, or a single tensor with one row per expert, and if no
        operation mixes experts.
        """
        operations = conversion.converter.operations
        shapes = [self.stored[keys[0]].shape for keys in conversion.keys.values()]
        lengths = {len(keys) for keys in conversion.keys.values()}
        if lengths == {1}:
            is_stacked = all(len(shape) > 2 and shape[0] == num_experts for shape in shapes)
            return is_stacked and all(map(_is_matrixwise, operations))
        names = [type(operation).__name__ for operation in operations]
        if names == ["ErnieFuseAndSplitTextVisionExperts"]:  # the experts of each target parameter, one after the other
            is_along_experts = (operations[0].stack_dim, operations[0].concat_dim) == (0, 1)
            return is_along_experts and lengths == {num_experts * len(conversion.converter.target_patterns)}
        if lengths != {num_experts} or "MergeModulelist" not in names:
            return False
        merge = names.index("MergeModulelist")
        is_merged = operations[merge].dim == 0 and all(name in _TENSORWISE for name in names[:merge])
        return is_merged and all(map(_is_matrixwise, operations[merge + 1 :]))

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
        model, num_experts = self.model, 1
        if expert is not None:
            model, num_experts = _OneExpert(model), len(model.get_parameter(conversion.first_parameter))
        for pattern, keys in conversion.keys.items():
            for key, row in _tensors_to_read(keys, expert, num_experts):
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
    inputs, unused = _matched_keys(model, stored, quantizer)
    return StreamedParameters(model, quantizer, stored, inputs, tuple(unused))


def keys_for(model: Any, keys: Iterable[str], names: Iterable[str]) -> set[str]:
    """Those of some keys, stored or not, that transformers would make one of these parameters of.

    Raises MappingUnavailableError if transformers does not provide the mapping from keys to parameters.
    """
    inputs, _ = _matched_keys(model, keys, None)
    return {key for name in names if name in inputs for made_of in inputs[name].keys.values() for key in made_of}


def _matched_keys(model: Any, keys: Iterable[str], quantizer: Any) -> tuple[dict[str, ConversionInput], list[str]]:
    try:
        with quiet():
            return _match_keys(model, keys, quantizer)
    except Exception as error:  # this interface is not public: if it has changed, the caller uses the public loader
        raise MappingUnavailableError(first_line(error)) from error


def _match_keys(model: Any, stored: Iterable[str], quantizer: Any) -> tuple[dict[str, ConversionInput], list[str]]:
    """The stored tensors that each parameter is made of, and the keys of tensors that no parameter is made of."""
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


def renaming(model: Any) -> Callable[[str], str]:
    """The mapping from the keys of checkpoints to a model's parameters, for one key at a time.

    Keys of older versions of transformers are among those that it knows. A key that it does not know stays as it is. So
    does every key if transformers does not provide the mapping.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        with quiet():
            mapping = get_model_conversion_mapping(model, None, None)
    except Exception:  # this interface is not public
        return lambda key: key
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state = model.state_dict()

    def renamed(key: str) -> str:
        try:
            return str(rename_source_key(key, renamings, converters, model.base_model_prefix, state)[0])
        except Exception:  # not every text is a key
            return key

    return renamed


def _targets(conversion: ConversionInput) -> list[str]:
    """The names of the parameters that a conversion makes.

    A converter has a target pattern for each. The names differ only where the pattern matches.
    """
    if conversion.converter is None:
        return [conversion.first_parameter]
    first, *further = conversion.converter.target_patterns
    return [conversion.first_parameter, *(conversion.first_parameter.replace(first, pattern) for pattern in further)]


def _tensors_to_read(keys: Sequence[str], expert: int | None, num_experts: int) -> list[tuple[str, int | None]]:
    """The keys of the tensors to read, and the row to read of each; None for all rows.

    Args:
        keys: of the tensors that match one pattern: one tensor per expert of each parameter, or a single one.
        expert: the only expert that is wanted; None for all.
        num_experts: of each parameter.
    """
    if expert is not None and len(keys) > 1:
        return [(key, None) for key in keys[expert::num_experts]]
    return [(key, expert) for key in keys]


def _without_values(tensor: StoredTensor, index: int | None) -> torch.Tensor:
    """Replaces `read_tensor` where only shape and dtype are wanted: an empty tensor on the meta device."""
    shape = tensor.shape if index is None else tensor.shape[1:]
    return torch.empty(shape, dtype=torch_dtype(tensor), device="meta")


def _is_matrixwise(operation: Any) -> bool:
    """Whether an operation on a stack of matrices, (matrices, n, m), treats each of them by itself."""
    dims = _MATRIXWISE.get(type(operation).__name__)
    return dims is not None and all(getattr(operation, dim) % 3 for dim in dims)


@dataclass(frozen=True, slots=True)
class _OneExpert:
    """A model whose stacks hold one expert: some operations compare a tensor with the parameter that it is made for."""

    model: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def get_parameter(self, name: str) -> torch.Tensor:
        """The parameter, with the first expert only."""
        parameter: torch.Tensor = self.model.get_parameter(name)
        return parameter[:1]
