"""An open checkpoint: the weights of a model under the names that a trainer sees, read one at a time."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from spectrum import hub, loading, mapping, quantization, shards, skeleton
from spectrum.errors import CheckpointError
from spectrum.layers import LayerWeight, Parameter, Provenance, display_order, layer_types
from spectrum.version import __version__

# In the names that parameters have under adapters, FSDP, activation checkpointing and torch.compile.
_OF_WRAPPERS = ("base_layer", "_fsdp_wrapped_module", "_flat_param", "_checkpoint_wrapped_module", "_orig_mod")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What `open_checkpoint` found: every weight to score, and how to read it. No weight is in memory.

    warnings: what a user should know before relying on the names.
    """

    directory: Path
    provenance: Provenance
    weights: tuple[LayerWeight, ...]
    warnings: tuple[str, ...]
    _values: mapping.Values
    _transposed: Mapping[str, int]

    def read(self, weight: LayerWeight, index: int) -> torch.Tensor:
        """Matrix `index` of a weight: (n, m), in its stored dtype.

        Raises CheckpointError where the file cannot be read any more.
        """
        value = self._values.read(weight.parameter, index if weight.count > 1 else None)
        groups = self._transposed.get(weight.parameter)
        if groups is not None:  # (in, out / groups, ...) -> (groups, out / groups, in / groups, ...)
            value = value.reshape(groups, -1, *value.shape[1:]).transpose(1, 2)
        return value.reshape(weight.matrix)


def open_checkpoint(
    model: str, *, revision: str | None = None, model_class: str | None = None, trust_remote_code: bool = False
) -> Checkpoint:
    """Find a model, check every header of its files, and match its tensors with the parameters of its class.

    Raises CheckpointError or HubError, naming file or parameter, for whatever would make a score wrong: damage, a
    parameter that the checkpoint lacks or holds in another shape, weights that are no floating-point numbers.
    """
    directory = hub.local_directory(model)
    commit = fingerprint = None
    if directory is None:
        directory = hub.snapshot(model, revision, remote_code=trust_remote_code)
        commit = directory.name
    config = skeleton.read_config(directory, trust_remote_code=trust_remote_code)
    method = quantization.method(config)
    way = quantization.way_to_read(directory, method)
    stored = shards.stored_tensors(directory)
    if commit is None:
        fingerprint = shards.fingerprint(directory)
    held = sum(0 not in tensor.shape for tensor in stored.values())
    meta = skeleton.meta_model(directory, config, model_class, held, trust_remote_code=trust_remote_code)
    skeleton.check_names(meta, directory)
    values, storage = _values(directory, meta, stored, way)
    parameters = dict(_described(meta, storage, values))
    weights = tuple(_weights(meta, storage, parameters, directory))
    if not weights:
        raise CheckpointError(f"{directory} has no weight matrices")
    provenance = _provenance(meta, parameters, weights)
    asked = model_class if model_class != skeleton.own_class(config) else None  # as if it had not been asked for
    provenance = replace(provenance, revision=revision, commit=commit, fingerprint=fingerprint, class_asked=asked)
    return Checkpoint(directory, provenance, weights, tuple(_warnings(meta, values)), values, _transposed(meta))


def of_model(model: torch.nn.Module, name: str) -> Checkpoint:
    """The weights of a model that is in memory, by the name that it goes by.

    Raises CheckpointError for one whose parameters are elsewhere, or are not its own: on the meta device, sharded,
    quantized, wrapped by adapters.
    """
    skeleton.check_names(model, name)
    for parameter, value in skeleton.parameters(model):
        if any(part in _OF_WRAPPERS for part in parameter.split(".")):
            raise CheckpointError(f"{name} is wrapped, at {parameter}; scan it before it is, or by its name or path")
        # Sharded ones are DTensors, or empty until they are needed.
        if value.is_meta or type(value.data) is not torch.Tensor or hasattr(value, "ds_id"):
            raise CheckpointError(f"{name} does not have {parameter} as a whole in memory; scan it by its name or path")
    values = loading.Loaded(dict(skeleton.parameters(model)))
    storage = _storage(Path(name), model, values)
    parameters = dict(_described(model, storage, values))
    weights = tuple(_weights(model, storage, parameters, Path(name)))
    if not weights:
        raise CheckpointError(f"{name} has no weight matrices")
    return Checkpoint(Path(name), _provenance(model, parameters, weights), weights, (), values, _transposed(model))


def _provenance(
    model: torch.nn.Module, parameters: Mapping[str, Parameter], weights: Iterable[LayerWeight]
) -> Provenance:
    head, embedding = skeleton.head_and_embedding(model)
    return Provenance(
        revision=None,
        commit=None,
        fingerprint=None,
        model_class=type(model).__name__,
        class_asked=None,
        versions={name: version(name) for name in ("torch", "transformers")} | {"spectrum": __version__},
        head=head,
        embedding=embedding,
        parameters=parameters,
        layer_types=tuple(display_order(weight.layer_type for weight in weights)),
    )


def _values(
    directory: Path, model: Any, stored: Mapping[str, shards.StoredTensor], way: str
) -> tuple[mapping.Values, dict[str, str]]:
    """Where the parameters' values come from, and which of them each parameter has.

    They are streamed; the public loader stands in where transformers' mapping is not to be had, or does not place
    every key, and for methods of quantization that only a loaded model undoes.
    """
    if way != "loaded":
        quantizer = quantization.dequantizer(directory, model) if way == "dequantized" else None
        try:
            streamed = mapping.stream(model, stored, quantizer)
        except mapping.MappingError:
            quantization.refuse_leftovers(directory, stored)
        else:
            quantization.refuse_leftovers(directory, streamed.unused)
            if way == "dequantized":
                parameters = (name for name, _ in skeleton.parameters(model))
                quantization.check_scales(directory, stored, streamed.keys_of(parameters))
            try:
                return streamed, _storage(directory, model, streamed)
            except CheckpointError:
                if way == "dequantized" or not streamed.unused:
                    raise
        if way == "dequantized":
            raise CheckpointError(f"this transformers cannot stream the quantized {directory}; try a newer one")
    _refuse_mostly_missing(directory, model, stored)
    loaded = loading.load(directory, model, stored, dequantize=way == "loaded")
    return loaded, _storage(directory, model, loaded)


def _refuse_mostly_missing(directory: Path, model: Any, stored: Mapping[str, shards.StoredTensor]) -> None:
    """transformers would make up the rest, in memory. Packed weights are up to 8 in an element."""
    held = sum(math.prod(tensor.shape) for tensor in stored.values())
    if sum(parameter.numel() for parameter in model.parameters()) > 16 * held + 2**20:
        raise CheckpointError(f"{directory} lacks most of the parameters of {type(model).__name__}")


def _storage(directory: Path, model: Any, values: mapping.Values) -> dict[str, str]:
    """The parameter whose values each parameter has: itself, or the one that it is tied to.

    Checks that nothing is missing and nothing has another shape: transformers would fill it with random numbers.
    """
    storage = {name: name for name, _ in skeleton.parameters(model) if name in values}
    for group in skeleton.tied_groups(model):
        held = sorted(group & storage.keys())
        if held:
            same = held[:1] + [name for name in held[1:] if _equal(held[0], name, values)]
            storage |= dict.fromkeys(same, held[0])
            storage |= dict.fromkeys(group - storage.keys(), held[0])
    kind = type(model).__name__
    missing = [
        name for name, _ in skeleton.parameters(model) if name not in storage and not _may_be_missing(model, name)
    ]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{directory} lacks the parameter {missing[0]}{others} of {kind}; "
            "if it was saved from another class, name that with --model-class"
        )
    for name, parameter in skeleton.parameters(model):
        if name in storage:
            shape = values.form(storage[name]).shape
            if shape != tuple(parameter.shape):
                raise CheckpointError(
                    f"{directory} holds {name} as {list(shape)}, but {kind} has it as {list(parameter.shape)}: "
                    "the weights are not those of config.json"
                )
    return storage


def _described(model: Any, storage: Mapping[str, str], values: mapping.Values) -> Iterator[tuple[str, Parameter]]:
    """Every parameter that has values, as records know it. Of tied ones the first is the one that trainers see."""
    first: dict[str, str] = {}
    for path, own, module in skeleton.owned_parameters(model):
        name = f"{path}.{own}" if path else own
        if name in storage:
            seen = first.setdefault(storage[name], name)
            tied_to = seen if seen != name else None
            yield name, replace(values.form(storage[name]), tied_to=tied_to, module=skeleton.torch_class(module))


def _may_be_missing(model: Any, name: str) -> bool:
    """Whether transformers itself expects checkpoints without this parameter."""
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _equal(first: str, second: str, values: mapping.Values) -> bool:
    """Whether two parameters that the config ties hold the same stored values. transformers ties them only then."""
    return values.form(first) == values.form(second) and torch.equal(
        values.read(first, None), values.read(second, None)
    )


def _weights(
    model: Any, storage: Mapping[str, str], parameters: Mapping[str, Parameter], directory: Path
) -> list[LayerWeight]:
    """Weights to score in model order: every module's `weight`, and bare parameters that hold matrices."""
    found = []
    for path, own, module in skeleton.owned_parameters(model):
        name = f"{path}.{own}" if path else own
        if name in storage and _is_weight(path, own, module):
            found.append((path if own == "weight" and path else name, name, module))
    types = layer_types(layer for layer, _, _ in found)
    weights = []
    for layer, name, module in found:
        shape, dtype = parameters[name].shape, parameters[name].dtype
        if dtype not in quantization.READABLE:
            raise CheckpointError(
                f"{directory} holds {name} as {dtype}, which is no weight by itself; scan the original checkpoint"
            )
        matrix, count = _matrices(module, shape)
        weights.append(LayerWeight(layer, types[layer], storage[name], shape, matrix, count, dtype))
    return weights


def _is_weight(path: str, own: str, module: torch.nn.Module) -> bool:
    """Whether a module's own parameter holds weight matrices.

    So does its `weight`; of other names, `..._weight`, and the 3-D stacks of experts. The rest are biases, positions,
    decay rates and the like.
    """
    parameter = module.get_parameter(own)
    if parameter.numel() == 0:
        return False
    if own == "weight":
        return True
    of_experts = "expert" in path.lower() or "expert" in type(module).__name__.lower()
    named_weight = own.endswith("_weight")
    return (parameter.ndim == 3 and (named_weight or of_experts)) or (parameter.ndim == 2 and named_weight)


def _matrices(module: torch.nn.Module, shape: tuple[int, ...]) -> tuple[tuple[int, int], int]:
    """A parameter's shape as matrices: (n, m), and how many."""
    if len(shape) < 2:
        return (1, math.prod(shape)), 1
    if len(shape) == 3 and not isinstance(module, _ConvNd):
        return (shape[1], shape[2]), shape[0]
    if isinstance(module, _ConvTransposeNd):
        return (module.out_channels, math.prod(shape) // module.out_channels), 1
    return (shape[0], math.prod(shape[1:])), 1


def _transposed(model: Any) -> dict[str, int]:
    """Groups of the convolutions whose weights have the input channels first."""
    return {f"{path}.weight": m.groups for path, m in model.named_modules() if isinstance(m, _ConvTransposeNd)}


def _warnings(model: Any, values: mapping.Values) -> Iterator[str]:
    if isinstance(values, loading.Loaded):
        yield "this checkpoint cannot be read weight by weight: the whole model is loaded, and takes its memory"
    yield from skeleton.name_warnings(model)
