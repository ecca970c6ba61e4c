"""The scan of a model: from the cache, or computed and saved."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spectrum.errors import SpectrumError
from spectrum.files import check_name, check_writable
from spectrum.layer_types import match_types
from spectrum.records import ScanResult
from spectrum.scanning import distributed, scan_json, store
from spectrum.scanning.assemble import assemble, layer_scores
from spectrum.scanning.job import Job, identity_of, open_requested, scores_of, settle, weights_of
from spectrum.scanning.request import ScanCallbacks, ScanOutcome, ScanRequest
from spectrum.scanning.reuse import added, as_cached, in_cache, same_weights, served, usable
from spectrum.scanning.store import locked, remove_outdated, tidy
from spectrum.text import duration, listed, plural

if TYPE_CHECKING:
    from spectrum.checkpoint.reader import Checkpoint


def obtain(request: ScanRequest, attendant: ScanCallbacks) -> ScanOutcome:
    """The scan, in the main process. Raises SpectrumError where it cannot be had, Interrupted in mid-scan."""
    check_name(request.model)
    obtained = _obtain(request, attendant)
    _tell_left_out(obtained.result, attendant)
    return obtained


def _check_any(result: ScanResult) -> None:
    if not result.layers:
        raise SpectrumError(f"every weight scanned holds NaN or infinity: {listed(result.left_out)}")


def _tell_left_out(result: ScanResult, attendant: ScanCallbacks) -> None:
    if result.left_out:
        attendant.warn(f"left out for NaN or infinity in their weights: {listed(result.left_out)}")


def _obtain(request: ScanRequest, attendant: ScanCallbacks) -> ScanOutcome:
    seen = store.written(request.results_dir, request.model)
    cached = None if request.rescan else usable(request, attendant.note)
    if cached is not None and (obtained := served(cached, request, attendant)) is not None:
        tidy(request)
        return obtained
    # What the cache has, but not all that is wanted.
    prepared = _prepare(request if cached is None else as_cached(request, cached), attendant)
    if cached is not None and not same_weights(cached.provenance, prepared.checkpoint.provenance):
        path = store.scan_path(request.results_dir, request.model)
        attendant.note(f"the cached scan {path} is of other weights than those found now; scanning all anew")
        cached, prepared = None, _prepare(request, attendant)
    with locked(request, attendant):
        # Whoever had it meanwhile may have put there what is wanted, or some of it.
        if not request.rescan and store.written(request.results_dir, request.model) != seen:
            request = replace(request, layer_types=request.layer_types or prepared.job.layer_types)
            cached = usable(request, attendant.note)
            if cached is not None and (obtained := served(cached, request, attendant)) is not None:
                remove_outdated(request)
                return obtained
            prepared, cached = _reduced(prepared, cached, request)
        try:
            scanned = _scan(prepared, attendant)
            obtained = scanned if cached is None else added(cached, scanned, request, attendant)
            scan_json.save(request.results_dir, obtained.result.whole)
            settle(request)
        except BaseException:
            distributed.leave()  # the others are in the midst of it, and wait for no dismissal
            raise
    return obtained


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A checkpoint that is open, and what of it is to be scanned."""

    started: float
    checkpoint: Checkpoint
    job: Job


def _prepare(request: ScanRequest, attendant: ScanCallbacks) -> _Prepared:
    started = time.monotonic()
    written = [path(request.results_dir, request.model) for path in (store.scan_path, store.sidecar_path)]
    check_writable([*written, *request.also_written])
    checkpoint = open_requested(request)
    for warning in checkpoint.warnings:
        attendant.warn(warning)
    asked = time.monotonic()
    batch_size, types = attendant.ask(request, checkpoint)
    started += time.monotonic() - asked
    return _Prepared(started, checkpoint, Job(request, identity_of(checkpoint), None, tuple(types), batch_size))


def _reduced(
    prepared: _Prepared, cached: ScanResult | None, request: ScanRequest
) -> tuple[_Prepared, ScanResult | None]:
    """What is left to scan beside a cached scan that was not there before; no cached scan where that is of others."""
    made = prepared.checkpoint.provenance
    if cached is not None and not same_weights(cached.provenance, made):
        cached = None
    left = request.layer_types or ()
    if cached is not None:
        _, left = in_cache(cached, left)
    job = replace(prepared.job, layer_types=tuple(match_types(left, made.info.layer_types)))
    return replace(prepared, job=job), cached


def _scan(prepared: _Prepared, attendant: ScanCallbacks) -> ScanOutcome:
    request, checkpoint, made = prepared.job.request, prepared.checkpoint, prepared.checkpoint.provenance
    job = replace(prepared.job, precedes=store.digest(request.results_dir, request.model))
    distributed.from_main(job)
    scores, where = scores_of(checkpoint, job, attendant)
    weights = weights_of(checkpoint, job)
    result = assemble(request.model, weights, layer_scores(weights, scores), made)
    if not result.layers:
        settle(request)
    _check_any(result)
    origin = (
        f"Scanned {plural(len(weights), 'layer')} of {result.model} ({made.info.model_class}) "
        f"{where} in {duration(time.monotonic() - prepared.started)}."
    )
    return ScanOutcome(result, store.scan_path(request.results_dir, result.model), origin)
