"""The share of a scan that each process computes, and what it resumes from."""

from __future__ import annotations

import ctypes
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum.compute.batches import WeightBatch
from spectrum.errors import CheckpointError, ProcessError
from spectrum.records import LayerWeight, MatrixScore
from spectrum.scanning import distributed, store
from spectrum.scanning.journal import Journal, Matrix, read
from spectrum.scanning.request import Interrupted, ScanCallbacks, ScanRequest

if TYPE_CHECKING:
    import torch

    from spectrum.checkpoint.reader import Checkpoint


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


@dataclass(frozen=True, slots=True)
class Job:
    """What is scanned, as the main process tells the others. identity: for all to be sure that it is the same.

    precedes: the digest of the results that are there as the scan begins, None where there are none.
    """

    request: ScanRequest
    identity: dict[str, Any]
    precedes: str | None
    layer_types: tuple[str, ...]
    batch_size: int | None


@contextmanager
def lead() -> Iterator[None]:
    """What the main process obtains is done by all processes, which assist until this ends."""
    distributed.join()
    try:
        yield
    finally:
        with suppress(ProcessError):  # one that is gone needs no dismissal
            distributed.from_main(None)
        distributed.leave()


def follow(attendant: ScanCallbacks) -> None:
    """Do what the main process wants done, in all the others, until it wants no more."""
    distributed.join()
    try:
        nothing: Job | None = None
        while (job := distributed.from_main(nothing)) is not None:
            checkpoint = open_requested(job.request)
            if identity_of(checkpoint) != job.identity:
                raise CheckpointError(f"{checkpoint.directory} holds other weights here than for the main process")
            scores_of(checkpoint, job, attendant)
            settle(job.request)
    finally:
        distributed.leave()


def weights_of(checkpoint: Checkpoint, job: Job) -> list[LayerWeight]:
    """The weights of the layer types that a job is for."""
    return [weight for weight in checkpoint.weights if weight.layer_type in job.layer_types]


def scores_of(checkpoint: Checkpoint, job: Job, attendant: ScanCallbacks) -> tuple[dict[Matrix, MatrixScore], str]:
    """The scores of all matrices of a job, of which this process computes its share, and where that was done."""
    from spectrum.compute.batches import matrices, plan, share
    from spectrum.compute.devices import batch_budget, devices_for

    request, together = job.request, distributed.count()
    devices = devices_for(request.device, attendant.warn, distributed.local_rank() if together > 1 else None)
    path = store.journal_path(request.results_dir, request.model, distributed.rank())
    elsewhere = _other_journals(job, path)
    journal = Journal(path, job.identity, job.precedes)
    try:
        known = dict(distributed.gathered([*elsewhere.items(), *journal.known.items()]))
        # For all to plan the same.
        budget, gpu = distributed.from_main((batch_budget(devices), devices[0].type == "cuda"))
        weights = weights_of(checkpoint, job)
        planned = partial(plan, weights, job.batch_size, budget, gpu=gpu)
        every, left = planned(), planned(known)
        if request.rescan and not left:  # of a scan that came to its end: what is asked for now is another one
            known, left = {}, every
        total = matrices(every)
        if journal.foreign and not known and distributed.rank() == 0:
            attendant.note(f"{path} is of other weights, another class, other versions or another user; beginning anew")
        if matrices(left) < total and distributed.rank() == 0:
            done = total - matrices(left)
            attendant.note(f"going on with an interrupted scan: {done} of {total} matrices are scored")
        compute = partial(_computed, checkpoint=checkpoint, devices=devices, attendant=attendant)
        try:
            if checked := distributed.from_main(_some_of(known, weights)):
                again = planned({(w.parameter, i) for w in weights for i in range(w.count)}.difference(checked))
                anew = dict(distributed.gathered(compute(share(again, together)[distributed.rank()], None)))
                false = [name for name, index in checked if not _agree(known[name, index], anew[name, index])]
                if false:
                    known, left = {}, every
                    journal.begin_anew()
                    _remove_journals(request)
                    if distributed.rank() == 0:
                        attendant.warn(
                            f"the journal of an interrupted scan has another score of {false[0]} than its weight; "
                            "beginning anew"
                        )
            new = compute(share(left, together)[distributed.rank()], journal)
        except KeyboardInterrupt as error:
            left = planned({**known, **read(path, job.identity)})
            raise Interrupted(_kept(total - matrices(left), total)) from error
        known |= distributed.gathered(new)
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
    return both_nan or other.edge.nearest < _AT_THE_EDGE or math.isclose(one.snr, other.snr, rel_tol=_SAME)


def _computed(
    batches: Sequence[WeightBatch],
    journal: Journal | None,
    *,
    checkpoint: Checkpoint,
    devices: Sequence[torch.device],
    attendant: ScanCallbacks,
) -> list[tuple[Matrix, MatrixScore]]:
    """Scores of a process's own share, in the journal as soon as they are there; under a bar where there is one."""
    from spectrum.compute.executor import score

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
    if distributed.count() == 1:
        return 1
    from spectrum.compute.devices import identity, warm_up

    warm_up([device])  # what cannot be used cannot be identified
    mine = identity(device)
    return distributed.gathered([mine]).count(mine)


def _kept(scored: int, total: int) -> str:
    if not scored:
        return "nothing is scored yet"
    others = ", and what the other processes scored" if distributed.count() > 1 else ""
    return f"{scored} of {total} matrices are scored and kept{others}; the same command goes on from there"


def settle(request: ScanRequest) -> None:
    """Remove the journals, once the main process has come here from writing the results, and before it goes on."""
    distributed.gathered([])
    _remove_journals(request)


def _remove_journals(request: ScanRequest) -> None:
    """Remove all journals, and let no process go on before."""
    own = store.journal_path(request.results_dir, request.model, distributed.rank())
    for path in [own, *_journals_here(request)]:
        with suppress(OSError):
            path.unlink()
    distributed.gathered([])


def _journals_here(request: ScanRequest) -> list[Path]:
    """The journals on this machine, for one process of each to see to."""
    return store.journals(request.results_dir, request.model) if distributed.local_rank() == 0 else []


def _other_journals(job: Job, own: Path) -> dict[Matrix, MatrixScore]:
    """What was found by processes of an earlier run, of which there may have been more."""
    known: dict[Matrix, MatrixScore] = {}
    for path in _journals_here(job.request):
        if path != own:
            known |= read(path, job.identity)
    return known


def identity_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What scores depend on. Those of anything else are not gone on with."""
    made = checkpoint.provenance
    return {
        "weights": made.commit or made.fingerprint,
        "class": made.info.model_class,
        "score": SCORE_VERSION,
        "versions": dict(sorted(made.versions.items())),
    }


def open_requested(request: ScanRequest) -> Checkpoint:
    """The checkpoint that a request names."""
    _give_freed_memory_back()
    from spectrum.checkpoint.reader import open_checkpoint

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
