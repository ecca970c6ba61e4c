"""Whether a cached scan may be used, and what it lacks."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from spectrum.checkpoint import hub
from spectrum.checkpoint.disk import fingerprint, weight_files
from spectrum.errors import CheckpointError, SpectrumError
from spectrum.layer_types import match_types
from spectrum.records import Provenance, ScanResult
from spectrum.scanning import scan_json, store
from spectrum.scanning.assemble import merge
from spectrum.scanning.request import ScanCallbacks, ScanOutcome, ScanRequest
from spectrum.text import listed, plural


def served(cached: ScanResult, request: ScanRequest, attendant: ScanCallbacks) -> ScanOutcome | None:
    """A cached scan, where it has all that is wanted."""
    wanted, missing = in_cache(cached, request.layer_types)
    if missing:
        return None
    known = len(cached.info.layer_types) if cached.info else 0
    if wanted is None and len(cached.scanned) < known:
        attendant.warn(
            f"the cached scan has {len(cached.scanned)} of the model's {known} layer types; only these are selected "
            "from, --layer-types all adds the rest"
        )
    if wanted is not None and cached.provenance is None and set(request.layer_types or ()) - set(cached.scanned):
        attendant.note(
            "the cached scan does not say which layer types the model has; patterns match those in it (or --rescan)"
        )
    made = cached.provenance
    if made is not None and made.class_asked is not None and request.model_class is None:
        attendant.warn(
            f"the cached scan was made with --model-class {made.class_asked}, and its names are those of "
            f"{made.info.model_class}; --rescan makes one of the checkpoint's own class"
        )
    of_class = f" ({made.info.model_class})" if made is not None else ""
    origin = f"{plural(len(cached.layers), 'layer')} of {request.model}{of_class}, from the cached scan."
    result = cached if wanted is None else cached.only(wanted)
    return ScanOutcome(result, store.scan_path(request.results_dir, request.model), origin)


def as_cached(request: ScanRequest, cached: ScanResult) -> ScanRequest:
    """A request for what a cached scan lacks: of the class and commit that it was made with, where none are given."""
    _, missing = in_cache(cached, request.layer_types)
    made = cached.provenance
    if made is None:
        return replace(request, layer_types=missing)
    return replace(
        request,
        layer_types=missing,
        model_class=request.model_class or made.class_asked,
        revision=request.revision or made.revision or made.commit,
    )


def added(cached: ScanResult, scanned: ScanOutcome, request: ScanRequest, attendant: ScanCallbacks) -> ScanOutcome:
    """Newly scanned layer types with those of the cache."""
    result = merge(cached, scanned.result)
    _tell_foreign(cached, result, attendant)
    if cached.provenance is not None and result.provenance is not None:
        # Recorded as made for what the cached scan was asked for, not for how it was added to.
        asked = cached.provenance
        provenance = replace(result.provenance, revision=asked.revision, class_asked=asked.class_asked)
        result = replace(result, provenance=provenance)
    wanted = match_types(request.layer_types or (), result.scanned)
    return replace(scanned, result=result.only(wanted))


def _tell_foreign(cached: ScanResult, result: ScanResult, attendant: ScanCallbacks) -> None:
    """Another tool's scan may be of other names than this version of transformers gives the model."""
    if cached.provenance is not None or result.provenance is None:
        return
    known = result.provenance.info.parameters
    foreign = [layer.name for layer in cached.layers if not {layer.name, f"{layer.name}.weight"} & known.keys()]
    if foreign:
        attendant.warn(
            f"the cached scan has layers that {result.provenance.info.model_class} does not: {listed(foreign, 2)}; "
            "--rescan makes one of the model as it is loaded now"
        )


def same_weights(a: Provenance | None, b: Provenance | None) -> bool:
    """Whether two scans are of the same weights under the same names; taken on trust where one does not say."""
    if a is None or b is None:
        return True
    return (a.commit, a.fingerprint, a.info.model_class) == (b.commit, b.fingerprint, b.info.model_class)


def usable(request: ScanRequest, note: Callable[[str], None]) -> ScanResult | None:
    """The cached scan, where there is one of the weights that are asked for."""
    cached = scan_json.load(request.results_dir, request.model)
    if cached is None:
        return None
    stale = "its two files do not belong together" if not cached.whole else _why_stale(request, cached.result)
    if stale is None:
        return cached.result
    path = store.scan_path(request.results_dir, request.model)
    note(f"the cached scan {path} is not used: {stale}; scanning again")
    return None


def _why_stale(request: ScanRequest, cached: ScanResult) -> str | None:
    """Why a cached scan is not one of the weights that are asked for; None where nothing speaks against it."""
    made = cached.provenance
    if made is None:
        return None
    if _in_utf8(cached.model) != _in_utf8(request.model):
        return f"it is of {cached.model!r}, whose files have the same name"
    if request.model_class not in (None, made.info.model_class, made.class_asked):
        return f"its names are those of {made.info.model_class}, not of {request.model_class}"
    try:
        directory = hub.local_directory(request.model)
    except CheckpointError:
        return None  # the cache is enough
    if directory is not None:
        if weight_files.has_weights(directory) and fingerprint.fingerprint(directory) != made.fingerprint:
            return f"the weights in {directory} are not those that were scanned"
        return None
    if made.commit is None:
        return None
    if request.revision not in (made.revision, made.commit):
        return f"it is of revision {made.revision or 'default'}"
    on_disk = hub.cached_snapshot(request.model, request.revision)
    if on_disk is not None and on_disk.name != made.commit:
        return f"it is of commit {made.commit[:8]}, the Hub's cache now has {on_disk.name[:8]}"
    return None


def _in_utf8(model: str) -> bytes:
    """A model's name, which Python decodes otherwise where the locale is another."""
    with suppress(UnicodeEncodeError):
        return os.fsencode(model)
    return model.encode("utf-8", "surrogatepass")


def in_cache(cached: ScanResult, wanted: Sequence[str] | None) -> tuple[list[str] | None, list[str]]:
    """The layer types that are meant, None for all, and those of them that a cached scan lacks."""
    if wanted is None:
        return None, []
    if cached.provenance is not None:
        types = match_types(wanted, cached.provenance.info.layer_types)
        return types, [name for name in types if name not in cached.scanned]
    missing = []
    types = []
    for pattern in wanted:
        try:
            types += match_types([pattern], cached.scanned)
        except SpectrumError:
            missing.append(pattern)  # the model may have it
    return [*types, *missing], missing
