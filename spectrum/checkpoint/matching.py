"""Which parameters does a checkpoint fill, and are they streamed or loaded as a whole?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spectrum.checkpoint import meta_model, unfilled
from spectrum.checkpoint.disk.weight_files import StoredTensor
from spectrum.checkpoint.mapping import conversion, parameters, quantization
from spectrum.checkpoint.mapping.keys import MappingUnavailableError
from spectrum.checkpoint.mapping.parameters import ParameterSource
from spectrum.checkpoint.matrices import fills, find_holders, missing_parameters
from spectrum.errors import CheckpointError
from spectrum.records import Parameter


@dataclass(frozen=True, slots=True)
class Matched:
    """How a checkpoint provides the parameters of a model.

    Args:
        source: of their values.
        holders: see `find_holders`.
        specs: see `find_holders`.
        missing: the parameters that it does not provide.
        unused: the keys of tensors that the model has no place for.
    """

    source: ParameterSource
    holders: Mapping[str, str]
    specs: Mapping[str, Parameter]
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


def match(
    unbuilt: meta_model.Unbuilt,
    model: Any,
    stored: Mapping[str, StoredTensor],
    mode: quantization.ReadMode,
    *,
    incomplete: bool = False,
) -> Matched:
    """Match the tensors of a checkpoint with the parameters of a model on the meta device.

    Parameters are streamed. Transformers loads the whole model only if its quantization asks for that, or if the
    installed version does not provide its mapping from keys to parameters.

    Raises CheckpointError if a parameter is missing or has another shape, or if the tensors cannot be read as weights.

    Args:
        unbuilt: what the model was built from.
        model: on the meta device.
        stored: the tensors of the checkpoint, by their keys.
        mode: how they are read.
        incomplete: whether parameters may be missing or have other shapes, if they are streamed.
    """
    directory = unbuilt.directory
    if mode != "loaded":
        try:
            return _match_streamed(unbuilt, model, stored, is_quantized=mode == "dequantized", incomplete=incomplete)
        except MappingUnavailableError as error:
            names = {name for name, _ in meta_model.named_parameters(model)}
            quantization.refuse_scales(directory, stored, used=stored, absent=names - stored.keys())
            if mode == "dequantized":
                raise CheckpointError(
                    f"this transformers cannot stream the quantized {directory}; try a newer one"
                ) from error
    unfilled.refuse_unloadable(directory, model, stored)
    loaded = parameters.load(directory, model, stored, dequantize=mode == "loaded")
    return Matched(loaded, *find_holders(model, loaded, directory))


def _match_streamed(
    unbuilt: meta_model.Unbuilt,
    model: Any,
    stored: Mapping[str, StoredTensor],
    *,
    is_quantized: bool,
    incomplete: bool,
) -> Matched:
    """Match parameters that are streamed. The mapping is transformers' own: what it does not fill, loading does not.

    Raises MappingUnavailableError if transformers does not provide that mapping.
    """
    directory = unbuilt.directory
    streamed = _stream(directory, model, stored, is_quantized=is_quantized)
    missing = missing_parameters(model, streamed)
    quantization.refuse_leftovers(directory, streamed, missing)
    if missing and incomplete and streamed.inputs:
        if reason := unfilled.misnamed_reason(directory, model, missing, streamed.unused):
            raise CheckpointError(reason)
    elif missing:
        others = _other_classes(unbuilt, model, stored, is_quantized=is_quantized)
        raise CheckpointError(unfilled.missing_reason(directory, model, missing, streamed.unused, others))
    if reason := unfilled.partitioned_reason(directory, model, streamed):
        raise CheckpointError(reason)
    if is_quantized:
        names = (name for name, _ in meta_model.named_parameters(model))
        quantization.check_scales(directory, stored, streamed.keys_of(names))
    holders, specs = find_holders(model, streamed, directory, any_shape=incomplete)
    return Matched(streamed, holders, specs, tuple(missing), streamed.unused)


def _stream(
    directory: Path, model: Any, stored: Mapping[str, StoredTensor], *, is_quantized: bool
) -> conversion.StreamedParameters:
    return conversion.stream(model, stored, quantization.dequantizer(directory, model) if is_quantized else None)


def _other_classes(
    unbuilt: meta_model.Unbuilt, model: Any, stored: Mapping[str, StoredTensor], *, is_quantized: bool
) -> Iterator[tuple[Any, conversion.StreamedParameters]]:
    """Models of other classes of the same family, each with the parameters that the checkpoint provides for it."""
    unbuilt = replace(unbuilt, trust_remote_code=False, limit=unfilled.MAX_MODULES, can_fill=lambda _: True)
    for name in unfilled.family(unbuilt.config):
        if name == type(model).__name__:
            continue
        try:
            other = meta_model.build_meta_model(unbuilt, name)
            yield other, _stream(unbuilt.directory, other, stored, is_quantized=is_quantized)
        except (CheckpointError, MappingUnavailableError):  # this class cannot be built from the config
            continue


def can_fill(directory: Path, model: Any, stored: Mapping[str, StoredTensor], mode: quantization.ReadMode) -> bool:
    """Whether tensors have all parameters of a model on the meta device; True if only loading them would tell."""
    if mode == "loaded":
        return True
    try:
        return fills(model, _stream(directory, model, stored, is_quantized=mode == "dequantized"))
    except MappingUnavailableError:
        return True
    except CheckpointError:  # stored tensors do not fit together
        return False
