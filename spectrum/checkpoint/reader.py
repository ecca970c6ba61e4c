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

from spectrum.checkpoint import hub, meta_model, quantization
from spectrum.checkpoint.config import own_class, read_config
from spectrum.checkpoint.disk import weight_files
from spectrum.checkpoint.disk.fingerprint import fingerprint as fingerprint_of
from spectrum.checkpoint.disk.tensors import stored_tensors
from spectrum.checkpoint.matrices import described, transposed, weights_of
from spectrum.checkpoint.parameters import Loaded, MappingError, ParameterSource, load, stream
from spectrum.errors import CheckpointError
from spectrum.layer_types import display_order
from spectrum.records import LayerWeight, ModelInfo, Parameter, Provenance
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
    _values: ParameterSource
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
    config = read_config(directory, trust_remote_code=trust_remote_code)
    method = quantization.method(config)
    way = quantization.way_to_read(directory, method)
    stored = stored_tensors(directory)
    if commit is None:
        fingerprint = fingerprint_of(directory)
    held = sum(0 not in tensor.shape for tensor in stored.values())
    meta = meta_model.meta_model(directory, config, model_class, held, trust_remote_code=trust_remote_code)
    meta_model.check_names(meta, directory)
    values, storage = _values(directory, meta, stored, way)
    parameters = dict(described(meta, storage, values))
    weights = tuple(weights_of(meta, storage, parameters, directory))
    if not weights:
        raise CheckpointError(f"{directory} has no weight matrices")
    provenance = _provenance(meta, parameters, weights)
    asked = model_class if model_class != own_class(config) else None  # as if it had not been asked for
    provenance = replace(provenance, revision=revision, commit=commit, fingerprint=fingerprint, class_asked=asked)
    return Checkpoint(directory, provenance, weights, tuple(_warnings(meta, values)), values, transposed(meta))


def of_model(model: torch.nn.Module, name: str) -> Checkpoint:
    """The weights of a model that is in memory, by the name that it goes by.

    Raises CheckpointError for one whose parameters are elsewhere, or are not its own: on the meta device, sharded,
    quantized, wrapped by adapters.
    """
    meta_model.check_names(model, name)
    for parameter, value in meta_model.parameters(model):
        if any(part in _OF_WRAPPERS for part in parameter.split(".")):
            raise CheckpointError(f"{name} is wrapped, at {parameter}; scan it before it is, or by its name or path")
        # Sharded ones are DTensors, or empty until they are needed.
        if value.is_meta or type(value.data) is not torch.Tensor or hasattr(value, "ds_id"):
            raise CheckpointError(f"{name} does not have {parameter} as a whole in memory; scan it by its name or path")
    values = Loaded(dict(meta_model.parameters(model)))
    storage = _storage(Path(name), model, values)
    parameters = dict(described(model, storage, values))
    weights = tuple(weights_of(model, storage, parameters, Path(name)))
    if not weights:
        raise CheckpointError(f"{name} has no weight matrices")
    return Checkpoint(Path(name), _provenance(model, parameters, weights), weights, (), values, transposed(model))


def _provenance(
    model: torch.nn.Module, parameters: Mapping[str, Parameter], weights: Iterable[LayerWeight]
) -> Provenance:
    head, embedding = meta_model.head_and_embedding(model)
    return Provenance(
        revision=None,
        commit=None,
        fingerprint=None,
        class_asked=None,
        versions={name: version(name) for name in ("torch", "transformers")} | {"spectrum": __version__},
        info=ModelInfo(
            model_class=type(model).__name__,
            parameters=parameters,
            layer_types=tuple(display_order(weight.layer_type for weight in weights)),
            head=head,
            embedding=embedding,
        ),
    )


def _values(
    directory: Path, model: Any, stored: Mapping[str, weight_files.StoredTensor], way: str
) -> tuple[ParameterSource, dict[str, str]]:
    """Where the parameters' values come from, and which of them each parameter has.

    They are streamed; the public loader stands in where transformers' mapping is not to be had, or does not place
    every key, and for methods of quantization that only a loaded model undoes.
    """
    if way != "loaded":
        quantizer = quantization.dequantizer(directory, model) if way == "dequantized" else None
        try:
            streamed = stream(model, stored, quantizer)
        except MappingError:
            quantization.refuse_leftovers(directory, stored)
        else:
            quantization.refuse_leftovers(directory, streamed.unused)
            if way == "dequantized":
                parameters = (name for name, _ in meta_model.parameters(model))
                quantization.check_scales(directory, stored, streamed.keys_of(parameters))
            try:
                return streamed, _storage(directory, model, streamed)
            except CheckpointError:
                if way == "dequantized" or not streamed.unused:
                    raise
        if way == "dequantized":
            raise CheckpointError(f"this transformers cannot stream the quantized {directory}; try a newer one")
    _refuse_mostly_missing(directory, model, stored)
    loaded = load(directory, model, stored, dequantize=way == "loaded")
    return loaded, _storage(directory, model, loaded)


def _refuse_mostly_missing(directory: Path, model: Any, stored: Mapping[str, weight_files.StoredTensor]) -> None:
    """transformers would make up the rest, in memory. Packed weights are up to 8 in an element."""
    held = sum(math.prod(tensor.shape) for tensor in stored.values())
    if sum(parameter.numel() for parameter in model.parameters()) > 16 * held + 2**20:
        raise CheckpointError(f"{directory} lacks most of the parameters of {type(model).__name__}")


def _storage(directory: Path, model: Any, values: ParameterSource) -> dict[str, str]:
    """The parameter whose values each parameter has: itself, or the one that it is tied to.

    Checks that nothing is missing and nothing has another shape: transformers would fill it with random numbers.
    """
    storage = {name: name for name, _ in meta_model.parameters(model) if name in values}
    for group in meta_model.tied_groups(model):
        held = sorted(group & storage.keys())
        if held:
            same = held[:1] + [name for name in held[1:] if _equal(held[0], name, values)]
            storage |= dict.fromkeys(same, held[0])
            storage |= dict.fromkeys(group - storage.keys(), held[0])
    kind = type(model).__name__
    missing = [
        name for name, _ in meta_model.parameters(model) if name not in storage and not _may_be_missing(model, name)
    ]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{directory} lacks the parameter {missing[0]}{others} of {kind}; "
            "if it was saved from another class, name that with --model-class"
        )
    for name, parameter in meta_model.parameters(model):
        if name in storage:
            shape = values.form(storage[name]).shape
            if shape != tuple(parameter.shape):
                raise CheckpointError(
                    f"{directory} holds {name} as {list(shape)}, but {kind} has it as {list(parameter.shape)}: "
                    "the weights are not those of config.json"
                )
    return storage


def _may_be_missing(model: Any, name: str) -> bool:
    """Whether transformers itself expects checkpoints without this parameter."""
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def _equal(first: str, second: str, values: ParameterSource) -> bool:
    """Whether two parameters that the config ties hold the same stored values. transformers ties them only then."""
    return values.form(first) == values.form(second) and torch.equal(
        values.read(first, None), values.read(second, None)
    )


def _warnings(model: Any, values: ParameterSource) -> Iterator[str]:
    if isinstance(values, Loaded):
        yield "this checkpoint cannot be read weight by weight: the whole model is loaded, and takes its memory"
    yield from meta_model.name_warnings(model)


# More than any published model has stored: they bound its modules, and are not counted here.
_TENSORS = 100_000


def describe_model(
    model: str, *, revision: str | None, model_class: str | None, trust_remote_code: bool
) -> tuple[ModelInfo, tuple[str, ...]]:
    """A model as its class and config have it, and what speaks against relying on its names. Ties are the config's.

    Raises CheckpointError or HubError where there is no such model, or none that transformers can build.
    """
    directory = hub.local_directory(model) or hub.config_snapshot(model, revision, remote_code=trust_remote_code)
    config = read_config(directory, trust_remote_code=trust_remote_code)
    meta = meta_model.meta_model(directory, config, model_class, _TENSORS, trust_remote_code=trust_remote_code)
    meta_model.check_names(meta, directory)
    # The first name of each group is the one that `named_parameters()` lists.
    order = {name: i for i, (name, _) in enumerate(meta_model.parameters(meta))}
    owners = {name: min(group, key=order.__getitem__) for group in meta_model.tied_groups(meta) for name in group}
    parameters = {}
    for path, own, module in meta_model.owned_parameters(meta):
        name = f"{path}.{own}" if path else own
        value = module.get_parameter(own)
        tied_to = owners.get(name, name)
        parameters[name] = Parameter(
            shape=tuple(value.shape),
            dtype=str(value.dtype).removeprefix("torch."),
            tied_to=None if tied_to == name else tied_to,
            module=meta_model.torch_class(module),
        )
    head, embedding = meta_model.head_and_embedding(meta)
    info = ModelInfo(
        model_class=type(meta).__name__,
        parameters=parameters,
        layer_types=(),
        head=head,
        embedding=embedding,
        modules=frozenset(path for path, _ in meta.named_modules(remove_duplicate=False) if path),
    )
    return info, tuple(meta_model.name_warnings(meta))
