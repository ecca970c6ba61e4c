"""From the keys of a checkpoint to the names of a model's parameters, as transformers renames and combines them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spectrum.checkpoint.mapping.isolation import quiet
from spectrum.errors import first_line


class MappingUnavailableError(Exception):
    """The installed version of transformers does not provide the mapping from keys to parameters for this model."""


@dataclass(frozen=True, slots=True)
class ConversionInput:
    """The stored tensors that one or more parameters are made of.

    Args:
        first_parameter: the first of the parameters. Its name matches the converter's first target pattern.
        converter: an object of transformers'; None if the parameter is the one stored tensor, unchanged.
        keys: the keys of the tensors, in the converter's order, by the source pattern of the converter that they match.
            Under None: the key of the parameter itself.
    """

    first_parameter: str
    converter: Any
    keys: Mapping[str | None, tuple[str, ...]]

    def only_key(self) -> str:
        """The key of the one stored tensor. Only for inputs without a converter."""
        ((key,),) = self.keys.values()
        return key


def match_keys(model: Any, keys: Iterable[str], quantizer: Any) -> tuple[dict[str, ConversionInput], list[str]]:
    """The stored tensors that each parameter is made of, and the keys of tensors that the model has no place for.

    A second copy of a parameter, which transformers passes over, is in neither. Raises MappingUnavailableError if
    transformers does not provide the mapping from keys to parameters.

    Args:
        model: on the meta device.
        keys: of the tensors.
        quantizer: the object of transformers' that dequantizes; None for a checkpoint that is not quantized.
    """
    try:
        with quiet():
            return _match_keys(model, keys, quantizer)
    except Exception as error:  # this interface is not public: if it has changed, the caller uses the public loader
        raise MappingUnavailableError(first_line(error)) from error


def keys_for(model: Any, keys: Iterable[str], names: Iterable[str]) -> set[str]:
    """Those of some keys, stored or not, that transformers would make one of these parameters of.

    Raises MappingUnavailableError if transformers does not provide the mapping from keys to parameters.
    """
    inputs, _ = match_keys(model, keys, None)
    return {key for name in names if name in inputs for made_of in inputs[name].keys.values() for key in made_of}


def _match_keys(model: Any, stored: Iterable[str], quantizer: Any) -> tuple[dict[str, ConversionInput], list[str]]:
    from transformers.core_model_loading import dot_natural_key, rename_source_key

    renamings, converters = _mapping(model, quantizer)
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
        converter, by_source = taken.setdefault(name, (by_pattern.get(pattern) if pattern else None, {}))
        if converter is None and by_source:
            continue  # the parameter is stored twice, and transformers takes the first
        by_source.setdefault(pattern, []).append(key)

    inputs: dict[str, ConversionInput] = {}
    for name, (converter, by_source) in taken.items():
        conversion = ConversionInput(name, converter, {pattern: tuple(keys) for pattern, keys in by_source.items()})
        inputs |= dict.fromkeys(_targets(conversion), conversion)
    return inputs, unused


def _mapping(model: Any, quantizer: Any) -> tuple[list[Any], list[Any]]:
    """The renamings and the converters that transformers has for a model."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    mapping = get_model_conversion_mapping(model, None, quantizer)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    return renamings, [entry for entry in mapping if isinstance(entry, WeightConverter)]


def renaming(model: Any) -> Callable[[str], str]:
    """The mapping from the keys of checkpoints to a model's parameters, for one key at a time.

    Keys of older versions of transformers are among those that it knows. A key that it does not know stays as it is. So
    does every key if transformers does not provide the mapping.
    """
    try:
        from transformers.core_model_loading import rename_source_key

        with quiet():
            renamings, converters = _mapping(model, None)
    except Exception:  # this interface is not public
        return lambda key: key
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
