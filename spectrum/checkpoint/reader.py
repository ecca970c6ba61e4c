"""START HERE. Open a model: find its files, and read its weights by the names that a trainer uses.

`open_checkpoint` takes these steps: find the files (`local`, `hub`), read the config (`config`) and the headers of the
weight files (`disk`), build the model without values (`meta_model`), match the stored tensors with its parameters
(`matching`), and describe the model and its weights (`matrices`). `Checkpoint.read` then reads one matrix at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from spectrum.checkpoint import hub, matching, meta_model
from spectrum.checkpoint.checkpoint import Checkpoint
from spectrum.checkpoint.config import read_config
from spectrum.checkpoint.disk.other_formats import adapter_warning
from spectrum.checkpoint.local import ResolvedModel, resolve_local
from spectrum.checkpoint.mapping import quantization
from spectrum.checkpoint.mapping.keys import renaming
from spectrum.checkpoint.mapping.parameters import LoadedParameters, ParameterSource
from spectrum.checkpoint.matrices import describe, find_holders
from spectrum.dtypes import WEIGHT_DTYPES
from spectrum.errors import CheckpointError
from spectrum.layer_types import WRAPPERS
from spectrum.records import LayerWeight, ModelInfo, Provenance
from spectrum.text import amount
from spectrum.version import __version__

# Parts of the names of parameters in wrapped modules, in modules with adapters, and of FSDP's flattened parameters.
_WRAPPED = (*WRAPPERS, "base_layer", "_flat_param")


def open_checkpoint(
    model: str,
    *,
    revision: str | None = None,
    model_class: str | None = None,
    trust_remote_code: bool = False,
    resolved: ResolvedModel | None = None,
    warn: Callable[[str], None] = lambda message: None,
    incomplete: bool = False,
) -> Checkpoint:
    """Open a model by its name.

    Raises CheckpointError or HubError for everything that would make a score wrong: damage, a parameter that is missing
    or has another shape, weights that are not floating-point numbers. The message names the file or the parameter.

    Args:
        model: a directory, or the id of a repository on the Hugging Face Hub.
        revision: of the repository; None for its default.
        model_class: the class that names the parameters; None for the checkpoint's own.
        trust_remote_code: whether Python files of the model may be run.
        resolved: what `hub.resolve` returns for this name, if it has been called.
        warn: receives a message if all weights are read on the Hub, because they cannot be read one by one.
        incomplete: whether parameters may be missing, and may have other shapes than the class declares.
    """
    resolved = resolved or hub.resolve(model, revision, remote_code=trust_remote_code)
    directory = resolved.directory
    config = read_config(directory, resolved.settings, trust_remote_code=trust_remote_code)
    method = quantization.method(config)
    mode = quantization.read_mode(directory, method)
    fingerprint = resolved.fingerprint  # before the tensors, so that headers are read once
    with resolved.headers.naming_other_weights():
        stored = resolved.headers.tensors()
    limit = meta_model.max_modules(sum(0 not in tensor.shape for tensor in stored.values()))
    can_fill = partial(_can_fill, resolved, config)
    unbuilt = meta_model.Unbuilt(directory, resolved.settings, config, trust_remote_code, limit, can_fill)
    meta, class_asked, name_warnings = _build(unbuilt, model_class)
    if mode == "loaded" and resolved.remote is not None:
        needed = amount(resolved.remote.num_bytes)
        warn(f"{directory} cannot be read weight by weight: all {needed} are read from the Hub")
    with resolved.headers.naming_other_weights(lambda others: matching.can_fill(directory, meta, others, mode)):
        matched = matching.match(unbuilt, meta, stored, mode, incomplete=incomplete)
    description = describe(meta, matched.holders, matched.specs)
    _check_weights(description.weights, directory)
    provenance = Provenance(
        revision=revision,
        commit=resolved.commit,
        fingerprint=fingerprint,
        class_asked=class_asked,
        versions=_versions(),
        info=description.info,
        cached_commit=_other_cached_commit(model, revision, resolved.commit),
    )
    warnings = (*_adapter_warnings(resolved), *_memory_warnings(matched.source), *name_warnings)
    return Checkpoint(
        directory=directory,
        provenance=provenance,
        weights=description.weights,
        warnings=warnings,
        missing=matched.missing,
        unused=matched.unused,
        quantization=method,
        remote=resolved.remote,
        _source=matched.source,
        _holders=matched.holders,
        _groups=description.groups,
        _norms=description.norms,
        _copies=_remote_copies(matched),
    )


def of_model(model: torch.nn.Module, name: str) -> Checkpoint:
    """Open a model that is in memory, under a name for results and messages.

    Raises CheckpointError if its parameters are not plain tensors in memory: if they are on the meta device, sharded,
    quantized, or wrapped by adapters.
    """
    meta_model.check_names(model, name)
    for parameter, value in meta_model.named_parameters(model):
        if any(part in _WRAPPED for part in parameter.split(".")):
            raise CheckpointError(f"{name} is wrapped, at {parameter}; scan it before that, or by its name or path")
        # Sharded parameters are DTensors, or empty until DeepSpeed gathers them.
        if value.is_meta or type(value.data) is not torch.Tensor or hasattr(value, "ds_id"):
            raise CheckpointError(f"{name} does not have {parameter} as a whole in memory; scan it by its name or path")
    source = LoadedParameters(dict(meta_model.named_parameters(model)))
    holders, specs = find_holders(model, source, name)
    description = describe(model, holders, specs)
    _check_weights(description.weights, name)
    provenance = Provenance(
        revision=None, commit=None, fingerprint=None, class_asked=None, versions=_versions(), info=description.info
    )
    return Checkpoint(
        directory=Path(name),
        provenance=provenance,
        weights=description.weights,
        warnings=(),
        _source=source,
        _holders=holders,
        _groups=description.groups,
        _norms=description.norms,
    )


def describe_model(
    model: str, *, revision: str | None, model_class: str | None, trust_remote_code: bool
) -> tuple[ModelInfo, tuple[str, ...], Callable[[str], str]]:
    """What a model consists of by its config alone, what a user should know of its names, and `conversion.renaming`.

    Shapes, dtypes and ties are those of the config; no weights are needed. If they are on this disk, their headers tell
    which of several classes the model's own is. The arguments are those of `open_checkpoint`. Raises CheckpointError or
    HubError if there is no such model, or if transformers cannot build it.
    """
    local = resolve_local(model)
    directory = local.directory if local else hub.config_snapshot(model, revision, remote_code=trust_remote_code)
    resolved = local or ResolvedModel(directory, directory.name)
    config = read_config(directory, resolved.settings, trust_remote_code=trust_remote_code)
    can_fill = partial(_can_fill, resolved, config)
    unbuilt = meta_model.Unbuilt(
        directory, resolved.settings, config, trust_remote_code, meta_model.MAX_MODULES, can_fill
    )
    meta, _, name_warnings = _build(unbuilt, model_class)
    source = LoadedParameters(dict(meta_model.named_parameters(meta)))
    specs = {name: source.spec(name) for name in source.tensors}
    holders = {name: name for name in specs} | {
        name: min(group) for group in meta_model.tied_groups(meta) for name in group
    }
    warnings = (*_adapter_warnings(resolved), *name_warnings)
    return describe(meta, holders, specs).info, warnings, renaming(meta)


def _build(unbuilt: meta_model.Unbuilt, class_name: str | None) -> tuple[Any, str | None, tuple[str, ...]]:
    """A model on the meta device, the class that was asked for, and warnings about its names.

    The class that was asked for is None for the model's own, which is the default.
    """
    model = meta_model.build_meta_model(unbuilt, class_name)
    meta_model.check_names(model, unbuilt.directory)
    own = None if class_name is None else meta_model.own_class(unbuilt)
    class_asked = None if own is not None and class_name == own.__name__ else class_name
    return model, class_asked, tuple(meta_model.name_warnings(unbuilt, model, class_asked))


def _can_fill(resolved: ResolvedModel, config: Any, model: Any) -> bool:
    """Whether a checkpoint has all parameters of a model on the meta device; True if its headers do not tell."""
    try:
        mode = quantization.read_mode(resolved.directory, quantization.method(config))
        stored = resolved.headers.tensors()
    except CheckpointError:
        return True
    return matching.can_fill(resolved.directory, model, stored, mode)


def _check_weights(weights: Sequence[LayerWeight], where: object) -> None:
    """Raises CheckpointError if there are no weights, or if one is of a dtype that needs a scale."""
    for weight in weights:
        if weight.dtype not in WEIGHT_DTYPES:
            raise CheckpointError(
                f"{where} holds {weight.parameter} as {weight.dtype}, which is not a weight by itself; "
                "use the original checkpoint"
            )
    if not weights:
        raise CheckpointError(f"{where} has no weight matrices")


def _other_cached_commit(repo: str, revision: str | None, commit: str | None) -> str | None:
    """The commit that the Hub's cache has for a revision if it is not the one that is scanned; None if it is."""
    on_disk = None if commit is None else hub.cached_snapshot(repo, revision)
    return None if on_disk is None or on_disk.name == commit else on_disk.name


def _remote_copies(matched: matching.Matched) -> dict[str, list[str]]:
    """For the holders of tied parameters on the Hub, the other copies that are stored.

    Only some of their rows are compared when the checkpoint is opened, and all when the holder is read.
    """
    source, copies = matched.source, dict[str, list[str]]()
    for name, holder in matched.holders.items():
        if name != holder and name in source and source.is_remote(name):
            copies.setdefault(holder, []).append(name)
    return copies


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("torch", "transformers")} | {"spectrum": __version__}


def _adapter_warnings(resolved: ResolvedModel) -> Iterator[str]:
    if resolved.has_adapter:
        yield adapter_warning(resolved.directory, resolved.commit)


def _memory_warnings(source: ParameterSource) -> Iterator[str]:
    if isinstance(source, LoadedParameters):
        yield "this checkpoint cannot be read weight by weight: the whole model is loaded, and takes its memory"
