"""The scan of a model, however it is to be had: from the cache, from a journal, from the weights; by many processes.

Asking and telling is left to whoever wants the scan. torch is not imported before weights are read.
"""

from __future__ import annotations

import ctypes
import difflib
import math
import os
import random
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from spectrum import hub, processes, results, shards, tables
from spectrum.errors import (
    CheckpointError,
    DeviceError,
    LayerTypeError,
    ProcessError,
    ResultsError,
    SpectrumError,
    first_line,
)
from spectrum.journal import Journal, Matrix, is_outdated, read
from spectrum.layers import (
    LayerWeight,
    MatrixScore,
    Provenance,
    ScanResult,
    WeightBatch,
    assemble,
    display_order,
    layer_scores,
    match_types,
    merge,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from spectrum.checkpoint import Checkpoint

# Raised by any change to the score that moves a digit or adds to it: journals of other versions are not gone on with.
SCORE_VERSION = 2

# Scores of a journal that are computed once more. Whether a stranger made it up is seen in any of them; what a single
# false score among thousands would do, a false weight does too.
_CHECKED = 3

# How near a singular value is to the bulk edge where another device may see it on the other side. 1e-6 is far beyond
# what devices differ by otherwise.
_AT_THE_EDGE = 1e-7
_SAME = 1e-6

_M_MMAP_THRESHOLD = -3  # from malloc.h

Scored = Generator[tuple[WeightBatch, list[MatrixScore]], None, None]


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be scanned, and how.

    layer_types: types and patterns that are wanted; None for those that the cache has, or those that `ask` says.
    also_written: files that will be made of the scan's results. Whether they can be is found out before it.
    """

    model: str
    results_dir: Path
    revision: str | None
    model_class: str | None
    trust_remote_code: bool
    layer_types: Sequence[str] | None
    device: str
    rescan: bool
    also_written: Sequence[Path]


@dataclass(frozen=True, slots=True)
class Attendant:
    """How a scan asks and tells.

    note: takes a line for the user. warn: one that says what may make the result other than expected. ask: the batch
    size (None: as fits a budget) and the layer types to scan of a checkpoint. progress: passes on the scores of these
    batches as they come.
    """

    note: Callable[[str], None]
    warn: Callable[[str], None]
    ask: Callable[[Request, Checkpoint], tuple[int | None, list[str]]]
    progress: Callable[[Scored, Sequence[WeightBatch]], Scored]


@dataclass(frozen=True, slots=True)
class Obtained:
    """A scan, the layer types that were asked for (None: all), its file, and a line that says where it is from."""

    result: ScanResult
    wanted: Sequence[str] | None
    path: Path
    origin: str


@dataclass(frozen=True, slots=True)
class _Job:
    """What is scanned, as the main process tells the others. identity: for all to be sure that it is the same.

    precedes: the digest of the results that are there as the scan begins, None where there are none.
    """

    request: Request
    identity: dict[str, Any]
    precedes: str | None
    layer_types: tuple[str, ...]
    batch_size: int | None


class Interrupted(KeyboardInterrupt):
    """The user, or the machine's keeper, ends a scan; the message says what of it is kept."""


@contextmanager
def leading() -> Iterator[None]:
    """What the main process obtains is done by all processes, which assist until this ends."""
    processes.join()
    try:
        yield
    finally:
        with suppress(ProcessError):  # one that is gone needs no dismissal
            processes.from_main(None)
        processes.leave()


def obtain(request: Request, attendant: Attendant) -> Obtained:
    """The scan, in the main process. Raises SpectrumError where it cannot be had, Interrupted in mid-scan."""
    results.check_name(request.model)
    obtained = _obtain(request, attendant)
    _tell_left_out(obtained.result, attendant)
    return obtained


def singular_values(request: Request, layer: str, index: int | None) -> tuple[LayerWeight, int, np.ndarray]:
    """A layer, which of its matrices, and the singular values of that, ascending.

    index: of a stack's matrices; None for the first. Raises SpectrumError where there is none, or it is not finite.
    """
    from spectrum.devices import devices_for, problem_of, warm_up
    from spectrum.snr import singular_values

    checkpoint = _open(request)
    weights = {weight.name: weight for weight in checkpoint.weights}
    if layer not in weights:
        close = difflib.get_close_matches(layer, weights, 1)
        raise LayerTypeError(f"{request.model} has no layer {layer!r}{f'; the nearest is {close[0]}' if close else ''}")
    weight, number = weights[layer], index or 0
    if number >= weight.count:
        raise LayerTypeError(
            f"{layer} has {tables.plural(weight.count, 'matrix', 'matrices')}, so there is no {layer}[{number}]"
        )
    device = devices_for(request.device, _unheard, None)[0]
    warm_up([device])
    try:
        values = singular_values(checkpoint.read(weight, number).to(device)[None])[0].cpu().numpy()
    except (MemoryError, RuntimeError) as error:
        problem = problem_of(error)
        if problem is None:
            raise
        elsewhere = "" if device.type == "cpu" else "; --device cpu may do it"
        raise DeviceError(f"{device} {problem} {layer}, {list(weight.matrix)}{elsewhere}") from error
    if not all(map(math.isfinite, values)):
        raise CheckpointError(f"{layer} holds NaN or infinity, so it has no singular values")
    return weight, number, values


def of_model(
    model: torch.nn.Module, layer_types: Sequence[str], batch_size: int | None, device: str, attendant: Attendant
) -> ScanResult:
    """The scan of a model that is in memory, by default where it is. Raises SpectrumError where it cannot be had."""
    import torch
    from accelerate.utils import extract_model_from_parallel
    from torch.distributed.fsdp import FullyShardedDataParallel

    from spectrum.batching import plan
    from spectrum.checkpoint import of_model
    from spectrum.devices import batch_budget, devices_for
    from spectrum.scanning import score

    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise CheckpointError("the model is sharded by FSDP; scan it before it is, or by its name or path")
    unwrapped = extract_model_from_parallel(model, keep_torch_compile=False)
    unwrapped = getattr(unwrapped, "_orig_mod", unwrapped)  # of torch.compile
    name = str(getattr(unwrapped, "name_or_path", "") or type(unwrapped).__name__)
    checkpoint = of_model(unwrapped, name)
    types = match_types(layer_types, checkpoint.provenance.layer_types)
    weights = [weight for weight in checkpoint.weights if weight.layer_type in types]
    place = next(unwrapped.parameters()).device
    devices = [place] if device == "auto" and place.type == "cuda" else devices_for(device, attendant.warn, None)
    for gpu in {parameter.device for parameter in unwrapped.parameters() if parameter.is_cuda}:
        torch.cuda.synchronize(gpu)  # the lanes' streams do not wait for what is queued there
    batches = plan(weights, batch_size, batch_budget(devices), gpu=devices[0].type == "cuda")
    scores: dict[Matrix, MatrixScore] = {}
    for batch, values in attendant.progress(score(batches, checkpoint.read, devices, attendant.warn), batches):
        scores |= zip([(weight.parameter, i) for weight, i in batch.members], values, strict=True)
    result = assemble(name, weights, layer_scores(weights, scores), checkpoint.provenance)
    _check_any(result)
    _tell_left_out(result, attendant)
    return result


def _check_any(result: ScanResult) -> None:
    if not result.layers:
        raise SpectrumError(f"every weight scanned holds NaN or infinity: {tables.listed(result.left_out)}")


def _tell_left_out(result: ScanResult, attendant: Attendant) -> None:
    if result.left_out:
        attendant.warn(f"left out for NaN or infinity in their weights: {tables.listed(result.left_out)}")


def assist(attendant: Attendant) -> None:
    """Do what the main process wants done, in all the others, until it wants no more."""
    processes.join()
    try:
        nothing: _Job | None = None
        while (job := processes.from_main(nothing)) is not None:
            checkpoint = _open(job.request)
            if _identity(checkpoint) != job.identity:
                raise CheckpointError(f"{checkpoint.directory} holds other weights here than for the main process")
            _scores(checkpoint, job, attendant)
            _settle(job.request)
    finally:
        processes.leave()


def _obtain(request: Request, attendant: Attendant) -> Obtained:
    seen = results.written(request.results_dir, request.model)
    cached = None if request.rescan else _usable(request, attendant.note)
    if cached is not None and (obtained := _served(cached, request, attendant)) is not None:
        _tidy(request)
        return obtained
    # What the cache has, but not all that is wanted.
    prepared = _prepare(request if cached is None else _as_cached(request, cached), attendant)
    if cached is not None and not _same_weights(cached.provenance, prepared.checkpoint.provenance):
        path = results.scan_path(request.results_dir, request.model)
        attendant.note(f"the cached scan {path} is of other weights than those found now; scanning all anew")
        cached, prepared = None, _prepare(request, attendant)
    with _alone(request, attendant):
        # Whoever had it meanwhile may have put there what is wanted, or some of it.
        if not request.rescan and results.written(request.results_dir, request.model) != seen:
            request = replace(request, layer_types=request.layer_types or prepared.job.layer_types)
            cached = _usable(request, attendant.note)
            if cached is not None and (obtained := _served(cached, request, attendant)) is not None:
                _remove_outdated(request)
                return obtained
            prepared, cached = _reduced(prepared, cached, request)
        try:
            scanned = _scan(prepared, attendant)
            obtained = scanned if cached is None else _added(cached, scanned, request, attendant)
            results.save(request.results_dir, obtained.result)
            _settle(request)
        except BaseException:
            processes.leave()  # the others are in the midst of it, and wait for no dismissal
            raise
    return obtained


def _served(cached: ScanResult, request: Request, attendant: Attendant) -> Obtained | None:
    """A cached scan, where it has all that is wanted."""
    wanted, missing = _in_cache(cached, request.layer_types)
    if missing:
        return None
    known = len(cached.provenance.layer_types) if cached.provenance else 0
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
            f"{made.model_class}; --rescan makes one of the checkpoint's own class"
        )
    of_class = f" ({made.model_class})" if made is not None else ""
    origin = f"{tables.plural(len(cached.layers), 'layer')} of {request.model}{of_class}, from the cached scan."
    return Obtained(cached, wanted, results.scan_path(request.results_dir, request.model), origin)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A checkpoint that is open, and what of it is to be scanned."""

    started: float
    checkpoint: Checkpoint
    job: _Job


def _prepare(request: Request, attendant: Attendant) -> _Prepared:
    started = time.monotonic()
    written = [path(request.results_dir, request.model) for path in (results.scan_path, results.sidecar_path)]
    results.check_writable([*written, *request.also_written])
    checkpoint = _open(request)
    for warning in checkpoint.warnings:
        attendant.warn(warning)
    asked = time.monotonic()
    batch_size, types = attendant.ask(request, checkpoint)
    started += time.monotonic() - asked
    return _Prepared(started, checkpoint, _Job(request, _identity(checkpoint), None, tuple(types), batch_size))


def _reduced(prepared: _Prepared, cached: ScanResult | None, request: Request) -> tuple[_Prepared, ScanResult | None]:
    """What is left to scan beside a cached scan that was not there before; no cached scan where that is of others."""
    made = prepared.checkpoint.provenance
    if cached is not None and not _same_weights(cached.provenance, made):
        cached = None
    left = request.layer_types or ()
    if cached is not None:
        _, left = _in_cache(cached, left)
    job = replace(prepared.job, layer_types=tuple(match_types(left, made.layer_types)))
    return replace(prepared, job=job), cached


def _scan(prepared: _Prepared, attendant: Attendant) -> Obtained:
    request, checkpoint, made = prepared.job.request, prepared.checkpoint, prepared.checkpoint.provenance
    job = replace(prepared.job, precedes=results.digest(request.results_dir, request.model))
    processes.from_main(job)
    scores, where = _scores(checkpoint, job, attendant)
    weights = _weights(checkpoint, job)
    result = assemble(request.model, weights, layer_scores(weights, scores), made)
    if not result.layers:
        _settle(request)
    _check_any(result)
    origin = (
        f"Scanned {tables.plural(len(weights), 'layer')} of {result.model} ({made.model_class}) "
        f"{where} in {tables.duration(time.monotonic() - prepared.started)}."
    )
    return Obtained(result, job.layer_types, results.scan_path(request.results_dir, result.model), origin)


def _unheard(message: str) -> None:
    """For a picture it does not matter which device makes it."""


def _weights(checkpoint: Checkpoint, job: _Job) -> list[LayerWeight]:
    return [weight for weight in checkpoint.weights if weight.layer_type in job.layer_types]


def _scores(checkpoint: Checkpoint, job: _Job, attendant: Attendant) -> tuple[dict[Matrix, MatrixScore], str]:
    """The scores of all matrices of a job, of which this process computes its share, and where that was done."""
    from spectrum.batching import matrices, plan, share
    from spectrum.devices import batch_budget, devices_for

    request, together = job.request, processes.count()
    devices = devices_for(request.device, attendant.warn, processes.local_rank() if together > 1 else None)
    path = results.journal_path(request.results_dir, request.model, processes.rank())
    elsewhere = _other_journals(job, path)
    journal = Journal(path, job.identity, job.precedes)
    try:
        known = dict(processes.gathered([*elsewhere.items(), *journal.known.items()]))
        # For all to plan the same.
        budget, gpu = processes.from_main((batch_budget(devices), devices[0].type == "cuda"))
        weights = _weights(checkpoint, job)
        planned = partial(plan, weights, job.batch_size, budget, gpu=gpu)
        every, left = planned(), planned(known)
        if request.rescan and not left:  # of a scan that came to its end: what is asked for now is another one
            known, left = {}, every
        total = matrices(every)
        if journal.foreign and not known and processes.rank() == 0:
            attendant.note(f"{path} is of other weights, another class, other versions or another user; beginning anew")
        if matrices(left) < total and processes.rank() == 0:
            done = total - matrices(left)
            attendant.note(f"going on with an interrupted scan: {done} of {total} matrices are scored")
        compute = partial(_computed, checkpoint=checkpoint, devices=devices, attendant=attendant)
        try:
            if checked := processes.from_main(_some_of(known, weights)):
                again = planned({(w.parameter, i) for w in weights for i in range(w.count)}.difference(checked))
                anew = dict(processes.gathered(compute(share(again, together)[processes.rank()], None)))
                false = [name for name, index in checked if not _agree(known[name, index], anew[name, index])]
                if false:
                    known, left = {}, every
                    journal.begin_anew()
                    _remove_journals(request)
                    if processes.rank() == 0:
                        attendant.warn(
                            f"the journal of an interrupted scan has another score of {false[0]} than its weight; "
                            "beginning anew"
                        )
            new = compute(share(left, together)[processes.rank()], journal)
        except KeyboardInterrupt as error:
            left = planned({**known, **read(path, job.identity)})
            raise Interrupted(_kept(total - matrices(left), total)) from error
        known |= processes.gathered(new)
    finally:
        journal.close()
    return known, f"in {together} processes" if together > 1 else f"on {', '.join(map(str, devices))}"


def _some_of(known: Mapping[Matrix, MatrixScore], weights: Sequence[LayerWeight]) -> list[Matrix]:
    """A few of the scores that a journal has of some weights, which nobody can tell beforehand. Rows all score 1."""
    wanted = [(w.parameter, i) for w in weights if min(w.matrix) > 1 for i in range(w.count)]
    held = [matrix for matrix in dict.fromkeys(wanted) if matrix in known]
    return random.SystemRandom().sample(held, min(_CHECKED, len(held)))


def _agree(one: MatrixScore, other: MatrixScore) -> bool:
    """Whether two scores can be of the same matrix, on different devices."""
    both_nan = math.isnan(one.snr) and math.isnan(other.snr)
    return both_nan or other.edge.gap < _AT_THE_EDGE or math.isclose(one.snr, other.snr, rel_tol=_SAME)


def _computed(
    batches: Sequence[WeightBatch],
    journal: Journal | None,
    *,
    checkpoint: Checkpoint,
    devices: Sequence[torch.device],
    attendant: Attendant,
) -> list[tuple[Matrix, MatrixScore]]:
    """Scores of a process's own share, in the journal as soon as they are there; under a bar where there is one."""
    from spectrum.scanning import score

    new: list[tuple[Matrix, MatrixScore]] = []
    told = False
    stream = score(batches, checkpoint.read, devices, attendant.warn, _sharing(devices[0]))
    shown = stream if journal is None else attendant.progress(stream, batches)
    try:
        for batch, values in shown:
            scored = [((w.parameter, i), value) for (w, i), value in zip(batch.members, values, strict=True)]
            new += scored
            if journal is None:
                continue
            journal.append(scored)
            if journal.problem is not None and not told:
                told = True
                attendant.warn(
                    f"cannot write {journal.path}: {journal.problem}; what is scored from now on is not kept"
                )
    except KeyboardInterrupt:
        with suppress(KeyboardInterrupt):  # or it would wait for the decompositions that are under way
            stream.throw(KeyboardInterrupt)
        shown.close()
        raise
    return new


def _sharing(device: torch.device) -> int:
    """How many processes of this run use this one's device."""
    if processes.count() == 1:
        return 1
    from spectrum.devices import identity, warm_up

    warm_up([device])  # what cannot be used cannot be identified
    mine = identity(device)
    return processes.gathered([mine]).count(mine)


def _kept(scored: int, total: int) -> str:
    if not scored:
        return "nothing is scored yet"
    others = ", and what the other processes scored" if processes.count() > 1 else ""
    return f"{scored} of {total} matrices are scored and kept{others}; the same command goes on from there"


def _settle(request: Request) -> None:
    """Remove the journals, once the main process has come here from writing the results, and before it goes on."""
    processes.gathered([])
    _remove_journals(request)


def _remove_journals(request: Request) -> None:
    """Remove all journals, and let no process go on before."""
    own = results.journal_path(request.results_dir, request.model, processes.rank())
    for path in [own, *_journals_here(request)]:
        with suppress(OSError):
            path.unlink()
    processes.gathered([])


def _journals_here(request: Request) -> list[Path]:
    """The journals on this machine, for one process of each to see to."""
    return results.journals(request.results_dir, request.model) if processes.local_rank() == 0 else []


def _other_journals(job: _Job, own: Path) -> dict[Matrix, MatrixScore]:
    """What was found by processes of an earlier run, of which there may have been more."""
    known: dict[Matrix, MatrixScore] = {}
    for path in _journals_here(job.request):
        if path != own:
            known |= read(path, job.identity)
    return known


def _identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """What scores depend on. Those of anything else are not gone on with."""
    made = checkpoint.provenance
    return {
        "weights": made.commit or made.fingerprint,
        "class": made.model_class,
        "score": SCORE_VERSION,
        "versions": dict(sorted(made.versions.items())),
    }


def _open(request: Request) -> Checkpoint:
    _give_freed_memory_back()
    from spectrum.checkpoint import open_checkpoint

    return open_checkpoint(
        request.model,
        revision=request.revision,
        model_class=request.model_class,
        trust_remote_code=request.trust_remote_code,
    )


def _give_freed_memory_back() -> None:
    """Have glibc return what large tensors took when they are freed.

    By default it keeps blocks of up to 32 MiB for later, in a pool for each thread: over a long scan that is more
    than the tensors themselves. Other C libraries do not have the setting.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 8 << 20)


@contextmanager
def _alone(request: Request, attendant: Attendant) -> Iterator[None]:
    """Be the only run that scans this model into this cache.

    The lock is the system's, and ends with the process that has it.
    """
    path = results.lock_path(request.results_dir, request.model)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResultsError(f"cannot lock {path}: {first_line(error)}") from error
    lock = _lock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            attendant.note(f"another run is scanning {request.model} into {request.results_dir}; waiting for it")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        attendant.warn(f"cannot lock {path}, so nothing keeps two scans of one model apart: {first_line(error)}")
    try:
        yield
    finally:
        lock.release()


def _lock(path: Path) -> FileLock:
    # What filelock has in place of flock outlives its process: the next run would wait for ever.
    return FileLock(path, fallback_to_soft=False)


def _tidy(request: Request) -> None:
    """Remove the journals of a scan that ended between writing its results and that, unless one is under way."""
    if not results.journals(request.results_dir, request.model):
        return
    lock = _lock(results.lock_path(request.results_dir, request.model))
    with suppress(OSError, NotImplementedError), lock.acquire(timeout=0):
        _remove_outdated(request)


def _remove_outdated(request: Request) -> None:
    """Remove the journals of scans whose results are there. The lock is held."""
    now = results.digest(request.results_dir, request.model)
    for path in results.journals(request.results_dir, request.model):
        if is_outdated(path, now):
            with suppress(OSError):
                path.unlink()


def _as_cached(request: Request, cached: ScanResult) -> Request:
    """A request for what a cached scan lacks: of the class and commit that it was made with, where none are given."""
    _, missing = _in_cache(cached, request.layer_types)
    made = cached.provenance
    if made is None:
        return replace(request, layer_types=missing)
    return replace(
        request,
        layer_types=missing,
        model_class=request.model_class or made.class_asked,
        revision=request.revision or made.revision or made.commit,
    )


def _added(cached: ScanResult, scanned: Obtained, request: Request, attendant: Attendant) -> Obtained:
    """Newly scanned layer types with those of the cache."""
    result = merge(cached, scanned.result)
    _tell_foreign(cached, result, attendant)
    if cached.provenance is not None and result.provenance is not None:
        # Recorded as made for what the cached scan was asked for, not for how it was added to.
        asked = cached.provenance
        provenance = replace(result.provenance, revision=asked.revision, class_asked=asked.class_asked)
        result = replace(result, provenance=provenance)
    wanted = match_types(request.layer_types or (), display_order([*result.scanned, *(scanned.wanted or ())]))
    return replace(scanned, result=result, wanted=wanted)


def _tell_foreign(cached: ScanResult, result: ScanResult, attendant: Attendant) -> None:
    """Another tool's scan may be of other names than this version of transformers gives the model."""
    if cached.provenance is not None or result.provenance is None:
        return
    known = result.provenance.parameters
    foreign = [layer.name for layer in cached.layers if not {layer.name, f"{layer.name}.weight"} & known.keys()]
    if foreign:
        attendant.warn(
            f"the cached scan has layers that {result.provenance.model_class} does not: {tables.listed(foreign, 2)}; "
            "--rescan makes one of the model as it is loaded now"
        )


def _same_weights(a: Provenance | None, b: Provenance | None) -> bool:
    """Whether two scans are of the same weights under the same names; taken on trust where one does not say."""
    if a is None or b is None:
        return True
    return (a.commit, a.fingerprint, a.model_class) == (b.commit, b.fingerprint, b.model_class)


def _usable(request: Request, note: Callable[[str], None]) -> ScanResult | None:
    """The cached scan, where there is one of the weights that are asked for."""
    cached = results.load(request.results_dir, request.model)
    if cached is None:
        return None
    stale = "its two files do not belong together" if not cached.whole else _why_stale(request, cached.result)
    if stale is None:
        return cached.result
    path = results.scan_path(request.results_dir, request.model)
    note(f"the cached scan {path} is not used: {stale}; scanning again")
    return None


def _why_stale(request: Request, cached: ScanResult) -> str | None:
    """Why a cached scan is not one of the weights that are asked for; None where nothing speaks against it."""
    made = cached.provenance
    if made is None:
        return None
    if _in_utf8(cached.model) != _in_utf8(request.model):
        return f"it is of {cached.model!r}, whose files have the same name"
    if request.model_class not in (None, made.model_class, made.class_asked):
        return f"its names are those of {made.model_class}, not of {request.model_class}"
    try:
        directory = hub.local_directory(request.model)
    except CheckpointError:
        return None  # the cache is enough
    if directory is not None:
        if shards.has_weights(directory) and shards.fingerprint(directory) != made.fingerprint:
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


def _in_cache(cached: ScanResult, wanted: Sequence[str] | None) -> tuple[list[str] | None, list[str]]:
    """The layer types that are meant, None for all, and those of them that a cached scan lacks."""
    if wanted is None:
        return None, []
    if cached.provenance is not None:
        types = match_types(wanted, cached.provenance.layer_types)
        return types, [name for name in types if name not in cached.scanned]
    missing = []
    types = []
    for pattern in wanted:
        try:
            types += match_types([pattern], cached.scanned)
        except SpectrumError:
            missing.append(pattern)  # the model may have it
    return [*types, *missing], missing
