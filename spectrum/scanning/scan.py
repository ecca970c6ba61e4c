"""START HERE: a model's scan, from the cache or computed and saved.

If the cached scan has every requested layer type, it is used. Otherwise the checkpoint is opened, the caller chooses
what to scan, the cache is locked, the missing matrices are scored (`job`), and the result is saved (`store`).
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from spectrum.errors import ResultsError
from spectrum.files import check_writable
from spectrum.layer_types import match_types
from spectrum.records import ScanResult
from spectrum.scanning import distributed
from spectrum.scanning.assemble import assemble, layer_scores, refuse_without_scores, warn_of_left_out
from spectrum.scanning.job import Job, identity_of, remove_journals, score_job
from spectrum.scanning.journal import read
from spectrum.scanning.request import (
    ScanCallbacks,
    ScanOutcome,
    ScanRequest,
    check_device,
    check_request,
    open_checkpoint_of,
)
from spectrum.scanning.reuse import (
    add_to_cached,
    find_local,
    load_usable,
    outcome_from_cache,
    request_missing,
    same_weights,
    wanted_and_missing,
    warn_of_dropped_types,
)
from spectrum.text import duration, plural

if TYPE_CHECKING:
    from spectrum.checkpoint.checkpoint import Checkpoint
    from spectrum.checkpoint.local import ResolvedModel


def scan(request: ScanRequest, callbacks: ScanCallbacks) -> ScanOutcome:
    """The scan of a model. Only the main process calls this.

    Raises SpectrumError if the model cannot be scanned, Interrupted if a signal ends the scan.
    """
    check_request(request)
    outcome = _cached_or_computed(request, callbacks)
    refuse_without_scores(outcome.result)
    warn_of_left_out(outcome.result, callbacks.warn)
    return outcome


@dataclass(frozen=True, slots=True)
class _PreparedScan:
    """A scan that is ready to be computed.

    Args:
        started: when the scan began, by the monotonic clock, moved on by the waits for the user and for the lock.
        checkpoint: the open checkpoint.
        job: what of it to scan.
    """

    started: float
    checkpoint: Checkpoint
    job: Job


def _cached_or_computed(request: ScanRequest, callbacks: ScanCallbacks) -> ScanOutcome:
    store = request.store
    written_at = store.written_at()
    local = find_local(request)
    cached = None if request.rescan else load_usable(request, local, callbacks.info)
    if request.rescan:
        warn_of_dropped_types(request, callbacks.warn)
    if cached is not None and (outcome := outcome_from_cache(cached, request, callbacks)) is not None:
        check_device(request.device)  # it is not needed now, but the same command may scan another model next
        if request.download and local is None:
            callbacks.info("the cached scan is used, so nothing is downloaded; --rescan downloads the model first")
        store.remove_leftover_journals()
        return outcome
    prepared = _prepare(request if cached is None else request_missing(request, cached), local, callbacks)
    if cached is not None and not same_weights(cached.provenance, prepared.checkpoint.provenance):
        callbacks.info(f"the cached scan {store.scan_path} is of other weights than those found now; starting over")
        cached, prepared = None, _prepare(request, local, callbacks)
    asked_for_lock = time.monotonic()
    with store.locked(callbacks.info, callbacks.warn):
        prepared = replace(prepared, started=prepared.started + time.monotonic() - asked_for_lock)
        if request.rescan or store.written_at() == written_at:
            return _compute_and_save(prepared, cached, request, callbacks)
        return _after_another_run(prepared, request, callbacks)


def _after_another_run(prepared: _PreparedScan, request: ScanRequest, callbacks: ScanCallbacks) -> ScanOutcome:
    """The outcome if another run has cached a scan while this one waited for the lock.

    Only the layer types that the new cached scan lacks are computed. A cached scan of other weights is not used.
    """
    request = replace(request, layer_types=request.layer_types or prepared.job.layer_types)
    cached = load_usable(request, find_local(request), callbacks.info)
    if cached is not None and (outcome := outcome_from_cache(cached, request, callbacks)) is not None:
        request.store.remove_outdated_journals()
        return outcome
    if cached is not None and not same_weights(cached.provenance, prepared.checkpoint.provenance):
        cached = None
    return _compute_and_save(_skip_cached_types(prepared, cached, request), cached, request, callbacks)


def _prepare(request: ScanRequest, local: ResolvedModel | None, callbacks: ScanCallbacks) -> _PreparedScan:
    """Open the checkpoint, and let the caller choose what to scan."""
    started = time.monotonic()
    check_writable([request.store.scan_path, request.store.sidecar_path, *request.also_written])
    request.store.check_space(request.also_written)  # at least for something, before a download
    callbacks.wait(f"opening {request.model}")
    checkpoint = open_checkpoint_of(request, callbacks.warn, local)
    num_parameters = len(checkpoint.provenance.info.parameters)
    request.store.check_space(request.also_written, checkpoint.weights, num_parameters)
    for warning in checkpoint.warnings:
        callbacks.warn(warning)
    num_layers = Counter(weight.layer_type for weight in checkpoint.weights)
    allowed = match_types(request.layer_types or ["all"], checkpoint.provenance.info.layers_by_type())
    asked = time.monotonic()
    batch_size, chosen = callbacks.choose([(layer_type, num_layers[layer_type]) for layer_type in allowed])
    started += time.monotonic() - asked
    pinned = replace(request, revision=checkpoint.provenance.commit or request.revision)  # for the other processes
    job = Job(pinned, identity_of(checkpoint), replaced_digest=None, layer_types=tuple(chosen), batch_size=batch_size)
    return _PreparedScan(started, checkpoint, job)


def _skip_cached_types(prepared: _PreparedScan, cached: ScanResult | None, request: ScanRequest) -> _PreparedScan:
    """The prepared scan, of those requested layer types that are not cached."""
    layer_types = request.layer_types or ()
    if cached is not None:
        _, layer_types = wanted_and_missing(cached, layer_types)
    all_types = prepared.checkpoint.provenance.info.layers_by_type()
    job = replace(prepared.job, layer_types=tuple(match_types(layer_types, all_types)))
    return replace(prepared, job=job)


def _compute_and_save(
    prepared: _PreparedScan, cached: ScanResult | None, request: ScanRequest, callbacks: ScanCallbacks
) -> ScanOutcome:
    """Score what was prepared, add it to the cached scan if there is one, and save the result."""
    store = request.store
    try:
        outcome = _compute(prepared, callbacks)
        if cached is not None:
            outcome = add_to_cached(cached, outcome, request, callbacks.warn)
        if not outcome.result.whole.layers:  # there is nothing to save
            remove_journals(store)
            refuse_without_scores(outcome.result)
        _save(outcome.result.whole, prepared)
        remove_journals(store)
    except BaseException:
        distributed.leave()  # the other processes are mid-scan or waiting; this makes them fail too
        raise
    return outcome


def _save(result: ScanResult, prepared: _PreparedScan) -> None:
    """Save a scan. Raises ResultsError if that fails; the message then says where the scores are."""
    store = prepared.job.request.store
    try:
        store.save(result)
    except ResultsError as error:
        raise ResultsError(f"{error}; {_where_scores_are(result, prepared)}") from error


def _where_scores_are(result: ScanResult, prepared: _PreparedScan) -> str:
    """Where the scores of a scan are that cannot be saved. If the journals lack some, all are written elsewhere."""
    job, store = prepared.job, prepared.job.request.store
    scored = {matrix for weight in job.weights(prepared.checkpoint) for matrix in weight.matrices()}
    kept = scored & {matrix for path in store.journals() for matrix in read(path, job.identity)}
    if kept == scored:
        return "every score is in the journal: once that is mended, the same command saves the scan"
    if copy := store.save_elsewhere(result):
        return f"the scan is in {copy}: once that is mended, move its files into {store.results_dir}"
    return f"the scores of {len(kept)} of {len(scored)} matrices are kept; the same command resumes from there"


def _compute(prepared: _PreparedScan, callbacks: ScanCallbacks) -> ScanOutcome:
    """Score what was prepared, in all processes."""
    checkpoint, provenance, store = prepared.checkpoint, prepared.checkpoint.provenance, prepared.job.request.store
    job = replace(prepared.job, replaced_digest=store.digest())
    distributed.broadcast(job)
    scores, where = score_job(checkpoint, job, callbacks)
    weights = job.weights(checkpoint)
    result = assemble(store.model, weights, layer_scores(weights, scores), provenance)
    origin = (
        f"Scanned {plural(len(weights), 'layer')} of {result.model} ({provenance.info.model_class}) "
        f"{where} in {duration(time.monotonic() - prepared.started)}."
    )
    return ScanOutcome(result, store.scan_path, origin)
