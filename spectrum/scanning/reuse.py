"""May the cached scan be used, and what does it lack?"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

from spectrum.checkpoint import hub
from spectrum.checkpoint.disk.weight_files import has_weights
from spectrum.checkpoint.local import ResolvedModel, resolve_local
from spectrum.errors import CheckpointError, LayerTypeError, SpectrumError
from spectrum.layer_types import match_types, possible_types
from spectrum.records import ModelInfo, Provenance, ScanResult, layer_name
from spectrum.scanning.assemble import merge
from spectrum.scanning.request import ScanCallbacks, ScanOutcome, ScanRequest
from spectrum.text import listed, nearest, plural, proposal

# A layer of one expert, where each expert is a module of its own.
_ONE_EXPERT = re.compile(r"\bexperts\.\d+\.")


def find_local(request: ScanRequest) -> ResolvedModel | None:
    """The local directory that a request names; None if its model is not the name of an existing local directory."""
    try:
        return resolve_local(request.model)
    except CheckpointError:
        return None  # the model is gone, but a cached scan may be enough


def load_usable(request: ScanRequest, local: ResolvedModel | None, info: Callable[[str], None]) -> ScanResult | None:
    """The cached scan, if it is of the requested weights; None otherwise.

    Args:
        request: the request for a scan.
        local: the model's local directory; None if it has none.
        info: is called with the reason why a cached scan is ignored.
    """
    cached = request.store.load()
    if cached is None:
        return None
    reason: str | None = "its two files do not belong together"
    if cached.consistent:
        reason = _why_stale(request, local, cached.result)
    if reason is None:
        return cached.result
    info(f"the cached scan {request.store.scan_path} is not used: {reason}; scanning again")
    return None


def refuse_unknown_layer(request: ScanRequest, layer: str) -> None:
    """Raises LayerTypeError if the cached scan shows that the model has no layer of this name.

    A cached scan that is missing, damaged or of other weights shows nothing; nor does one without provenance.
    """
    names: set[str] = set()
    with suppress(SpectrumError):
        cached = request.store.load()
        if cached is None or not cached.consistent or cached.result.info is None:
            return
        if _why_stale(request, find_local(request), cached.result) is None:
            names = {name for layers in _layers_by_type(cached.result).values() for name in layers}
            names |= {scanned.name for scanned in cached.result.layers}
    if names and layer not in names:
        raise no_such_layer(request.model, layer, names)


def no_such_layer(model: str, layer: str, names: Iterable[str]) -> LayerTypeError:
    """The error for a layer that the model does not have. names: of the layers that it has."""
    names = list(names)
    if of_type := next((name for name in names if name.endswith(f".{layer}")), None):
        return LayerTypeError(
            f"{layer!r} is not one layer of {model}; name one of those that end so, such as {of_type}"
        )
    return LayerTypeError(f"{model} has no layer {layer!r}{proposal(nearest(layer, names))}")


def outcome_from_cache(cached: ScanResult, request: ScanRequest, callbacks: ScanCallbacks) -> ScanOutcome | None:
    """The outcome of a request, from the cached scan alone; None if that lacks a requested layer type."""
    wanted, missing = wanted_and_missing(cached, request.layer_types)
    if missing:
        return None
    provenance = cached.provenance
    num_types = len(provenance.info.layer_types) if provenance is not None else 0
    if wanted is None and len(cached.scanned) < num_types:
        callbacks.warn(
            f"the cached scan has only {len(cached.scanned)} of the model's {num_types} layer types, so no layer of "
            "the others is selected; --layer-types all scans them too"
        )
    if wanted is not None and provenance is None and set(request.layer_types or ()) - set(cached.scanned):
        callbacks.info(
            "the cached scan does not say which layer types the model has; patterns match those in it (or --rescan)"
        )
    if provenance is not None and provenance.class_asked is not None and request.model_class is None:
        callbacks.warn(
            f"the cached scan was made with --model-class {provenance.class_asked}, and its names are those of "
            f"{provenance.info.model_class}; --rescan scans under the checkpoint's own class"
        )
    _warn_of_single_experts(cached, request, callbacks.warn)
    of_class = f" ({provenance.info.model_class})" if provenance is not None else ""
    result = cached if wanted is None else cached.only(wanted)
    origin = f"{plural(len(result.layers), 'layer')} of {request.model}{of_class}, from the cached scan."
    return ScanOutcome(result, request.store.scan_path, origin)


def request_missing(request: ScanRequest, cached: ScanResult) -> ScanRequest:
    """A request for the layer types that the cached scan lacks.

    Class and revision are those of the cached scan, unless the request names its own.
    """
    _, missing = wanted_and_missing(cached, request.layer_types)
    provenance = cached.provenance
    if provenance is None:
        return replace(request, layer_types=missing)
    return replace(
        request,
        layer_types=missing,
        model_class=request.model_class or provenance.class_asked,
        revision=_by_name(request.revision) or _by_name(provenance.revision) or provenance.commit,
    )


def add_to_cached(
    cached: ScanResult, scanned: ScanOutcome, request: ScanRequest, warn: Callable[[str], None]
) -> ScanOutcome:
    """The outcome of a scan of missing layer types, together with the cached scan."""
    result = merge(cached, scanned.result)
    _warn_of_other_names(cached, result, warn)
    if cached.provenance is not None and result.provenance is not None:
        # The user asked for the cached scan's revision and class; `request_missing` only repeated them.
        before = cached.provenance
        provenance = replace(
            result.provenance,
            revision=before.revision,
            class_asked=before.class_asked,
            cached_commit=before.cached_commit,
        )
        result = replace(result, provenance=provenance)
    wanted = match_types(request.layer_types or (), _layers_by_type(result))
    return replace(scanned, result=result.only(wanted))


def same_weights(first: Provenance | None, second: Provenance | None) -> bool:
    """Whether two scans are of the same weights under the same names. True if either has no provenance."""
    if first is None or second is None:
        return True
    identities = [(scan.commit, scan.fingerprint, scan.info.model_class) for scan in (first, second)]
    return identities[0] == identities[1]


def warn_of_dropped_types(request: ScanRequest, warn: Callable[[str], None]) -> None:
    """Warn if a scan of some layer types will replace a cached scan that has others."""
    dropped: list[str] = []
    with suppress(SpectrumError):  # a cached scan that cannot be read is no loss
        if request.layer_types is not None and (cached := request.store.load()) is not None:
            wanted = wanted_and_missing(cached.result, request.layer_types)[0] or ()
            dropped = [layer_type for layer_type in cached.result.scanned if layer_type not in wanted]
    if dropped:
        warn(
            f"this scan replaces the cached one, and drops {plural(len(dropped), 'layer type')} that it has: "
            f"{listed(dropped, 3)}; Ctrl-C and --layer-types all keep them"
        )


def wanted_and_missing(cached: ScanResult, patterns: Sequence[str] | None) -> tuple[list[str] | None, list[str]]:
    """The layer types that patterns name, and those of them that the cached scan lacks.

    Without patterns, all types that are cached are wanted. The first value is then None, and nothing is missing.
    """
    if patterns is None:
        return None, []
    if cached.info is not None:
        wanted = match_types(patterns, _layers_by_type(cached))
        return wanted, [layer_type for layer_type in wanted if layer_type not in cached.scanned]
    wanted, missing = [], []
    for pattern in patterns:
        try:
            wanted += match_types([pattern], _layers_by_type(cached))
        except SpectrumError:
            missing.append(pattern)  # the model may have such a type
    return [*wanted, *missing], missing


def _layers_by_type(scan: ScanResult) -> dict[str, list[str]]:
    """The names of the layers of each type, types in display order.

    The sidecar of an early version does not say which type a layer has. Of a type that is not scanned, the layers are
    then those whose paths allow it. Without a sidecar, the types are those that are scanned.
    """
    scanned = {layer_type: [layer.name for layer in layers] for layer_type, layers in scan.by_type().items()}
    if scan.info is None:
        return {layer_type: scanned.get(layer_type, []) for layer_type in scan.scanned}
    layers = {name: known or scanned.get(name, []) for name, known in scan.info.layers_by_type().items()}
    unknown = {layer_type for layer_type, known in layers.items() if not known}
    for path in map(layer_name, scan.info.parameters if unknown else ()):
        for layer_type in possible_types(path) & unknown:
            layers[layer_type].append(path)
    return layers


def _why_stale(request: ScanRequest, local: ResolvedModel | None, cached: ScanResult) -> str | None:
    """Why the cached scan is not of the requested weights; None if nothing speaks against it."""
    provenance = cached.provenance
    if provenance is None:
        return None
    if _encoded(cached.model) != _encoded(request.model):
        return f"it is of {cached.model!r}, whose files have the same name"
    if request.model_class not in (None, provenance.info.model_class, provenance.class_asked):
        return f"its names are those of {provenance.info.model_class}, not of {request.model_class}"
    if local is not None:
        if has_weights(local.directory) and local.fingerprint != provenance.fingerprint:
            return f"the weights in {local.directory} are not those that were scanned"
        return None
    if provenance.commit is None:  # a directory was scanned, which is gone
        return None if request.revision is None else "it is of a directory, not of a repository"
    asked, scanned = _by_name(request.revision), _by_name(provenance.revision)
    if asked not in (scanned, provenance.commit):
        return f"it is of {f'revision {scanned}' if scanned else 'the default revision'}"
    on_disk = hub.cached_snapshot(request.model, request.revision)
    if on_disk is not None and on_disk.name not in (provenance.commit, provenance.cached_commit):
        return f"it is of commit {provenance.commit[:8]}, the Hub's cache now has {on_disk.name[:8]}"
    return None


def _by_name(revision: str | None) -> str | None:
    """A revision; None for the default branch of the Hub, also by its name."""
    return None if revision == "main" else revision


def _encoded(model: str) -> bytes:
    """A model's name as bytes, to be compared. Another locale decodes the same bytes to another string."""
    with suppress(UnicodeEncodeError):
        return os.fsencode(model)
    return model.encode("utf-8", "surrogatepass")


def _warn_of_other_names(cached: ScanResult, result: ScanResult, warn: Callable[[str], None]) -> None:
    """Warn if the cached scan, made by another tool, has layer names that the model does not have here."""
    if cached.info is not None or result.info is None:
        return
    known = set(map(layer_name, result.info.parameters))
    strange = [layer.name for layer in cached.layers if layer.name not in known]
    if strange:
        warn(
            f"the cached scan has layers that {result.info.model_class} does not: {listed(strange, 2)}; "
            "--rescan scans the model as it is loaded now"
        )


def _warn_of_single_experts(cached: ScanResult, request: ScanRequest, warn: Callable[[str], None]) -> None:
    """Warn if a scan of another tool names experts one by one, but the model has them fused today.

    Transformers 4 had a module for each expert. Transformers 5 keeps the experts of most models in one parameter. The
    model's config tells, if it is at hand; this is the only case in which a cached scan takes the import of torch.
    """
    single = [layer.name for layer in cached.layers if _ONE_EXPERT.search(layer.name)]
    if cached.provenance is not None or not single:
        return
    start = f"the cached scan names experts one by one, as transformers 4 did ({listed(single, 1)})"
    info = _info_at_hand(request)
    if info is None:
        warn(
            f"{start}; transformers 5 keeps the experts of most models fused, and such names then match nothing: "
            "compare the list with the model (--check), or scan the model again (--rescan)"
        )
    elif lost := [name for name in single if name not in info.modules]:
        stack = next((layer for layer in info.parameters if re.search(r"\bexperts\.[a-z]", layer)), None)
        today = f"has them fused ({stack})" if stack else "has no such modules"
        warn(
            f"{start}; {info.model_class} {today}, so {plural(len(lost), 'name matches', 'names match')} "
            "nothing: --rescan scores the model as it is loaded now"
        )


def _info_at_hand(request: ScanRequest) -> ModelInfo | None:
    """What the requested model consists of by its config on this disk. None if there is none, or it cannot be used."""
    local = find_local(request)
    directory = local.directory if local is not None else hub.cached_snapshot(request.model, request.revision)
    if directory is None or not os.path.exists(directory / "config.json"):
        return None
    from spectrum.checkpoint.reader import describe_model

    with suppress(CheckpointError):
        return describe_model(
            str(directory),
            revision=None,
            model_class=request.model_class,
            trust_remote_code=request.trust_remote_code,
        )[0]
    return None
