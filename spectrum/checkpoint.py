"""An open checkpoint: the weights of a model under the names that a trainer sees, read one at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import spectrum
from spectrum import hub, runtime, shards
from spectrum.errors import CheckpointError
from spectrum.layers import LayerWeight, Parameter, Provenance, display_order, layer_type

_READABLE = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What `open_checkpoint` found: every weight to score, and how to read it. No weight is in memory."""

    directory: Path
    provenance: Provenance
    weights: tuple[LayerWeight, ...]
    _model: Any
    _sources: Mapping[str, runtime.Source]
    _stored: Mapping[str, shards.StoredTensor]

    def read(self, weight: LayerWeight, index: int) -> torch.Tensor:
        """Matrix `index` of a weight: (n, m), in its stored dtype.

        Raises CheckpointError where the file cannot be read any more.
        """
        source = self._sources[weight.parameter]
        row = index if weight.count > 1 else None
        if source.converter is None:
            (key,) = source.keys[None]
            return shards.read_tensor(self._stored[key], row).reshape(weight.matrix)
        made = runtime.converted(source, lambda key: shards.read_tensor(self._stored[key]), self._model)
        value = made[weight.parameter]
        return (value if row is None else value[row]).reshape(weight.matrix)


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
    skeleton = runtime.meta_model(directory, model_class, trust_remote_code=trust_remote_code)
    stored = shards.stored_tensors(directory)
    if commit is None:
        fingerprint = shards.fingerprint(directory)
    sources, _ = runtime.parameter_sources(skeleton, {key: tensor.shape for key, tensor in stored.items()})
    storage = _storage(skeleton, sources, stored, directory)
    parameters = {
        name: Parameter(tuple(parameter.shape), _dtype(sources[storage[name]], stored))
        for name, parameter in skeleton.named_parameters(remove_duplicate=False)
        if name in storage
    }
    weights = tuple(_weights(skeleton, storage, parameters, directory))
    if not weights:
        raise CheckpointError(f"{directory} has no weight matrices")
    head, embedding = runtime.head_and_embedding(skeleton)
    provenance = Provenance(
        revision=revision,
        commit=commit,
        fingerprint=fingerprint,
        model_class=type(skeleton).__name__,
        class_asked=model_class,
        versions={
            "spectrum": spectrum.__version__,
            "torch": version("torch"),
            "transformers": version("transformers"),
        },
        head=head,
        embedding=embedding,
        parameters=parameters,
        layer_types=tuple(display_order(weight.layer_type for weight in weights)),
    )
    return Checkpoint(directory, provenance, weights, skeleton, sources, stored)


def _storage(
    model: Any,
    sources: Mapping[str, runtime.Source],
    stored: Mapping[str, shards.StoredTensor],
    directory: Path,
) -> dict[str, str]:
    """The parameter whose stored values each parameter has: itself, or the one that it is tied to.

    Checks that nothing is missing and nothing has another shape: transformers would fill it with random numbers.
    """
    storage = {name: name for name, _ in model.named_parameters(remove_duplicate=False) if name in sources}
    for group in runtime.tied_groups(model):
        held = sorted(group & storage.keys())
        if held:
            same = held[:1] + [name for name in held[1:] if _equal(sources[held[0]], sources[name], stored)]
            storage |= dict.fromkeys(same, held[0])
            storage |= dict.fromkeys(group - storage.keys(), held[0])
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name not in storage:
            if runtime.may_be_missing(model, name):
                continue
            missing = [n for n, _ in model.named_parameters() if n not in storage]
            others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise CheckpointError(
                f"{directory} lacks the parameter {name}{others} of {type(model).__name__}; "
                "if it was saved from another class, name that with --model-class"
            )
        source = sources[storage[name]]
        if source.converter is None:
            (key,) = source.keys[None]
            if stored[key].shape != tuple(parameter.shape):
                raise CheckpointError(
                    f"{directory} holds {key} as {list(stored[key].shape)}, but {type(model).__name__} has {name} "
                    f"as {list(parameter.shape)}: the weights are not those of config.json"
                )
    return storage


def _equal(a: runtime.Source, b: runtime.Source, stored: Mapping[str, shards.StoredTensor]) -> bool:
    """Whether two parameters that the config ties hold the same stored values. transformers ties them only then."""
    if a.converter is not None or b.converter is not None:
        return False
    (first,), (second,) = a.keys[None], b.keys[None]
    if (stored[first].shape, stored[first].dtype) != (stored[second].shape, stored[second].dtype):
        return False
    return torch.equal(shards.read_tensor(stored[first]), shards.read_tensor(stored[second]))


def _dtype(source: runtime.Source, stored: Mapping[str, shards.StoredTensor]) -> str:
    return next(stored[key].dtype for keys in source.keys.values() for key in keys)


def _weights(
    model: Any, storage: Mapping[str, str], parameters: Mapping[str, Parameter], directory: Path
) -> list[LayerWeight]:
    """Weights to score in model order: every module's `weight`, and bare parameters that hold matrices."""
    weights = []
    for path, module in model.named_modules(remove_duplicate=False):
        for own, parameter in module.named_parameters(recurse=False):
            name = f"{path}.{own}" if path else own
            shape = tuple(parameter.shape)
            bare_matrices = len(shape) == 3 or (len(shape) == 2 and own.endswith("_weight"))
            if name not in storage or 0 in shape or not (own == "weight" or bare_matrices):
                continue
            dtype = parameters[name].dtype
            if dtype not in _READABLE:
                raise CheckpointError(
                    f"{directory} holds {name} as {dtype}, but config.json names no quantization; "
                    "scan the original checkpoint"
                )
            layer = path if own == "weight" and path else name
            matrix, count = _matrices(module, shape)
            weights.append(LayerWeight(layer, layer_type(layer), storage[name], shape, matrix, count, dtype))
    return weights


def _matrices(module: torch.nn.Module, shape: tuple[int, ...]) -> tuple[tuple[int, int], int]:
    """A parameter's shape as matrices: (n, m), and how many."""
    if len(shape) < 2:
        return (1, math.prod(shape)), 1
    if len(shape) == 3 and not isinstance(module, torch.nn.modules.conv._ConvNd):
        return (shape[1], shape[2]), shape[0]
    return (shape[0], math.prod(shape[1:])), 1
