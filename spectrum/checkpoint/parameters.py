"""Which stored tensors make which parameter, and reading a parameter from these, one expert at a time.

Checkpoint keys are not parameter names: transformers renames, prefixes, fuses, transposes and dequantizes on loading.
The model's own mapping is applied here, and nothing else touches it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from spectrum.checkpoint.disk.tensors import read_tensor, torch_dtype
from spectrum.checkpoint.disk.weight_files import StoredTensor
from spectrum.checkpoint.isolation import nothing_fetched, quiet, why
from spectrum.errors import CheckpointError, first_line
from spectrum.records import Parameter


class MappingError(Exception):
    """This version of transformers does not hand out the mapping of this model."""


class ParameterSource(Protocol):
    """The values of a model's parameters, wherever they come from."""

    def __contains__(self, name: str) -> bool:
        """Whether the parameter of this name has values of its own."""
        ...

    def form(self, name: str) -> Parameter:
        """The shape and dtype in which the parameter is read."""
        ...

    def read(self, name: str, index: int | None) -> torch.Tensor:
        """The parameter; or, of a stack, element `index` of its first dimension alone."""
        ...


@dataclass(frozen=True, slots=True)
class ConversionInput:
    """The stored tensors that make one or more parameters.

    keys: by the pattern of the converter that they matched, in the order in which it takes them. converter:
    transformers' own, None where the one key is the parameter as it is.
    """

    target: str
    converter: Any
    keys: Mapping[str | None, tuple[str, ...]]

    def only_key(self) -> str:
        """The key of a source without a converter."""
        ((key,),) = self.keys.values()
        return key


@dataclass(frozen=True, slots=True)
class Streamed:
    """Parameters read from a checkpoint's files as they are asked for."""

    model: Any
    quantizer: Any
    stored: Mapping[str, StoredTensor]
    sources: Mapping[str, ConversionInput]
    unused: tuple[str, ...]
    # A stack whose experts cannot be converted singly, kept while they are asked for one by one.
    _whole: dict[str, torch.Tensor] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.sources

    def form(self, name: str) -> Parameter:
        """The shape and dtype in which the parameter is read, found without reading it."""
        source = self.sources[name]
        if source.converter is None:
            tensor = self.stored[source.only_key()]
            return Parameter(tensor.shape, tensor.dtype)
        for keys in source.keys.values():
            for key in keys[1:]:
                one, other = self.stored[keys[0]], self.stored[key]
                if (one.shape, one.dtype) != (other.shape, other.dtype):
                    raise CheckpointError(
                        f"{name} cannot be made: {other.file} holds {key} as {other.dtype} {list(other.shape)}, "
                        f"but {one.key} is {one.dtype} {list(one.shape)}"
                    )
        experts = self.model.get_parameter(name).shape[:1]
        single = self.model.get_parameter(name).ndim == 3 and self._by_expert(source, experts[0])
        made = self._convert(source, 0 if single else None, _without_values)[name]
        shape = (*experts, *made.shape[1:]) if single else tuple(made.shape)
        return Parameter(shape, str(made.dtype).removeprefix("torch."))

    def read(self, name: str, index: int | None) -> torch.Tensor:
        """The parameter; or, of a stack, element `index` of its first dimension alone."""
        source = self.sources[name]
        if source.converter is None:
            return read_tensor(self.stored[source.only_key()], index)
        if index is None:
            return self._convert(source, None, read_tensor)[name]
        if self._by_expert(source, self.model.get_parameter(name).shape[0]):
            return self._convert(source, index, read_tensor)[name][0]
        whole = self._whole.get(name)
        if whole is None:
            whole = self._convert(source, None, read_tensor)[name]
            self._whole.clear()
            self._whole[name] = whole
        if index == len(whole) - 1:
            self._whole.clear()
        return whole[index]

    def keys_of(self, names: Iterable[str]) -> Iterator[str]:
        """The keys of the stored tensors that make these parameters, as far as there are any."""
        for name in names:
            if name in self.sources:
                for keys in self.sources[name].keys.values():
                    yield from keys

    def _by_expert(self, source: ConversionInput, experts: int) -> bool:
        """Whether the converter's inputs can be cut to one expert: a list of them each, or rows of a stack each."""
        lists = {len(keys) for keys in source.keys.values()}
        return lists == {experts} or self._stacked(source, experts)

    def _stacked(self, source: ConversionInput, experts: int) -> bool:
        return all(len(keys) == 1 and self.stored[keys[0]].shape[:1] == (experts,) for keys in source.keys.values())

    def _convert(self, source: ConversionInput, expert: int | None, read: Any) -> dict[str, torch.Tensor]:
        """The parameters that a source makes; with `expert`, stacks of that one alone."""
        converter = copy.deepcopy(source.converter)
        for pattern, keys in source.keys.items():
            if expert is not None and len(keys) > 1:
                keys = keys[expert : expert + 1]
                row = None
            else:
                row = expert
            for key in keys:
                value = read(self.stored[key], row)
                converter.add_tensor(source.target, key, pattern, lambda v=value, r=row: v if r is None else v[None])
        try:
            with quiet():
                made = converter.convert(
                    source.target, model=self.model, config=self.model.config, hf_quantizer=self.quantizer
                )
        except Exception as error:  # shapes that do not go together, scales that are not there
            stored = ", ".join(keys[0] for keys in source.keys.values())
            raise CheckpointError(
                f"{source.target} cannot be made from what the checkpoint holds ({stored}, ...): {first_line(error)}"
            ) from error
        made = made[0] if isinstance(made, tuple) else made  # with the errors, in 5.0
        return {name: (value[0] if isinstance(value, list) else value).detach() for name, value in made.items()}


def stream(model: Any, stored: Mapping[str, StoredTensor], quantizer: Any) -> Streamed:
    """Match a checkpoint's keys with a model's parameters, by the model's own mapping.

    Raises MappingError where transformers does not hand that out.
    """
    try:
        with quiet():
            sources, unused = _sources(model, stored, quantizer)
    except Exception as error:  # not a public interface: whatever goes wrong, the public loader is the answer
        raise MappingError(first_line(error)) from error
    return Streamed(model, quantizer, stored, sources, tuple(unused))


def _sources(
    model: Any, stored: Mapping[str, StoredTensor], quantizer: Any
) -> tuple[dict[str, ConversionInput], list[str]]:
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
        _, held = taken.setdefault(name, (by_pattern.get(pattern) if pattern else None, {}))
        held.setdefault(pattern, []).append(key)

    sources: dict[str, ConversionInput] = {}
    for name, (converter, held) in taken.items():
        source = ConversionInput(name, converter, {pattern: tuple(found) for pattern, found in held.items()})
        sources |= dict.fromkeys(_targets(source), source)
    return sources, unused


def _targets(source: ConversionInput) -> list[str]:
    """Parameters that a source makes. It goes by the converter's first target; the others differ in that one part."""
    if source.converter is None:
        return [source.target]
    first, *others = source.converter.target_patterns
    return [source.target, *(source.target.replace(first, other) for other in others)]


def _without_values(tensor: StoredTensor, index: int | None) -> torch.Tensor:
    """A stand-in on the meta device for what would be read."""
    shape = tensor.shape if index is None else tensor.shape[1:]
    return torch.empty(shape, dtype=torch_dtype(tensor), device="meta")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Parameters of a loaded model."""

    parameters: Mapping[str, torch.Tensor]

    def __contains__(self, name: str) -> bool:
        return name in self.parameters

    def form(self, name: str) -> Parameter:
        """The parameter's shape and dtype."""
        value = self.parameters[name]
        return Parameter(tuple(value.shape), str(value.dtype).removeprefix("torch."))

    def read(self, name: str, index: int | None) -> torch.Tensor:
        """The parameter; or, of a stack, element `index` of its first dimension alone."""
        value = self.parameters[name].detach()
        return value if index is None else value[index]


def load(directory: Path, model: Any, stored: Mapping[str, StoredTensor], *, dequantize: bool = False) -> Loaded:
    """The parameters of a model's class and config, loaded from a checkpoint's tensors in the dtype of the config.

    All tensors are read by this package's own reader, and are in memory. transformers maps the files that it reads
    itself, and a mapped file that is cut ends the process. Raises CheckpointError where loading fails, or leaves a
    parameter to chance.
    """
    tensors = {key: read_tensor(tensor) for key, tensor in stored.items()}
    model_class = type(model)
    try:
        with quiet(), nothing_fetched():
            model, info = model_class.from_pretrained(
                None,
                config=model.config,
                state_dict=tensors,
                dtype="auto",
                device_map="cpu",
                output_loading_info=True,
            )
            if dequantize:
                model = model.dequantize()
    except Exception as error:  # anything, from missing packages to a full memory
        raise CheckpointError(f"transformers cannot load {directory}: {why(error)}") from error
    bad = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if bad:
        raise CheckpointError(
            f"{directory} lacks the parameter {bad[0]}{f' and {len(bad) - 1} more' if len(bad) > 1 else ''} of "
            f"{model_class.__name__}, or holds it in another shape; "
            "if it was saved from another class, name that with --model-class"
        )
    return Loaded(dict(model.named_parameters(remove_duplicate=False)))
