"""One scan, computed by one process or by many: lead or follow, resume, share the work, gather the scores.

An interrupted scan resumes here: scores that a journal holds are not computed again.
"""

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

from spectrum.compute.batches import WeightBatch, num_matrices, plan, share
from spectrum.errors import CheckpointError, ProcessError
from spectrum.records import LayerWeight, MatrixScore
from spectrum.scanning import distributed
from spectrum.scanning.assemble import score_batches
from spectrum.scanning.journal import Journal, Matrix, read
from spectrum.scanning.request import Interrupted, ScanCallbacks, ScanRequest
from spectrum.scanning.store import ScanStore

if TYPE_CHECKING:
    import torch

    from spectrum.checkpoint.hub import ResolvedModel
    from spectrum.checkpoint.reader import Checkpoint

# How many scores of a journal are computed again. A journal that is made up throughout is found out by any of them. A
# single false score among thousands does no more harm than a false weight.
_NUM_CHECKED = 3

# Two devices may put a singular value that is this near to the bulk edge on different sides of it.
_AT_THE_EDGE = 1e-7

# Otherwise the scores of two devices differ by far less than this.
_SAME_SNR = 1e-6

_M_MMAP_THRESHOLD = -3  # from malloc.h


@dataclass(frozen=True, slots=True)
class Job:
    """What all processes of a run score together. The main process sends it to the others.

    Args:
        request: what the user asked for.
        identity: what scores depend on; see `identity_of`.
        precedes: the digest of the results that are there as the scan begins; None if there are none.
        layer_types: the types to scan.
        batch_size: matrices in a kernel call; None to fit a memory budget.
    """

    request: ScanRequest
    identity: dict[str, Any]
    precedes: str | None
    layer_types: tuple[str, ...]
    batch_size: int | None

    @property
    def store(self) -> ScanStore:
        """Where the scan is cached."""
        return self.request.store

    def weights(self, checkpoint: Checkpoint) -> list[LayerWeight]:
        """The weights to score."""
        return [weight for weight in checkpoint.weights if weight.layer_type in self.layer_types]


@contextmanager
def lead() -> Iterator[None]:
    """In the main process: let the others follow until this ends."""
    distributed.join()
    try:
        yield
    finally:
        with suppress(ProcessError):  # a process that has ended needs no stop message
            distributed.broadcast(None)
        distributed.leave()


def follow(callbacks: ScanCallbacks) -> None:
    """In all other processes: work on each job that the main process sends, until it stops."""
    distributed.join()
    try:
        stop: Job | None = None
        while (job := distributed.broadcast(stop)) is not None:
            checkpoint = open_checkpoint_of(job.request)
            if identity_of(checkpoint) != job.identity:
                raise CheckpointError(f"{checkpoint.directory} holds other weights here than for the main process")
            score_job(checkpoint, job, callbacks)
            remove_journals(job.store)
    finally:
        distributed.leave()


def score_job(checkpoint: Checkpoint, job: Job, callbacks: ScanCallbacks) -> tuple[dict[Matrix, MatrixScore], str]:
    """The scores of all matrices of a job, and a phrase that says where they were computed.

    Every process computes its share, and returns the scores of all. Raises Interrupted on Ctrl-C and SIGTERM; what is
    scored by then is kept in the journals.
    """
    from spectrum.compute.devices import devices_for

    num_processes = distributed.count()
    devices = devices_for(job.request.device, callbacks.warn, distributed.local_rank() if num_processes > 1 else None)
    journal = Journal(job.store.journal_path(distributed.rank()), job.identity, job.precedes)
    try:
        scores = _resume(checkpoint, job, devices, journal, callbacks)
    finally:
        journal.close()
    return scores, f"in {num_processes} processes" if num_processes > 1 else f"on {', '.join(map(str, devices))}"


def remove_journals(store: ScanStore) -> None:
    """Remove the journals of all processes.

    Every process calls this. No journal is removed before all have called it, and no process returns before all
    journals are removed.
    """
    distributed.gather([])
    for path in [store.journal_path(distributed.rank()), *_journals_here(store)]:
        with suppress(OSError):
            path.unlink()
    distributed.gather([])


def identity_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What scores depend on: the weights, the class, the versions. A journal of another identity is not resumed."""
    from spectrum.compute.snr import SCORE_VERSION

    provenance = checkpoint.provenance
    return {
        "weights": provenance.commit or provenance.fingerprint,
        "class": provenance.info.model_class,
        "score": SCORE_VERSION,
        "versions": dict(sorted(provenance.versions.items())),
    }


def open_checkpoint_of(request: ScanRequest, local: ResolvedModel | None = None) -> Checkpoint:
    """The checkpoint that a request names. Raises CheckpointError or HubError as `open_checkpoint` does.

    local: the model's directory, if it has been found already; its headers are then not read again.
    """
    _return_freed_memory()
    from spectrum.checkpoint.reader import open_checkpoint

    return open_checkpoint(
        request.model,
        revision=request.revision,
        model_class=request.model_class,
        trust_remote_code=request.trust_remote_code,
        resolved=local,
    )


def _resume(
    checkpoint: Checkpoint, job: Job, devices: Sequence[torch.device], journal: Journal, callbacks: ScanCallbacks
) -> dict[Matrix, MatrixScore]:
    """The scores that the journals hold, and those that are computed now."""
    from spectrum.compute.devices import batch_budget

    is_main, num_processes = distributed.rank() == 0, distributed.count()
    kept = dict(distributed.gather([*_other_journals(job, journal.path).items(), *journal.scores.items()]))
    # The main process's numbers, so that all processes plan the same batches.
    budget = distributed.broadcast(batch_budget(devices))
    weights = job.weights(checkpoint)
    plan_without = partial(plan, weights, job.batch_size, budget)
    everything, rest = plan_without(), plan_without(kept)
    if job.request.rescan and not rest:  # the journal is of a scan that was complete; this one is another
        kept, rest = {}, everything
    total, num_kept = num_matrices(everything), num_matrices(everything) - num_matrices(rest)
    if is_main and journal.foreign and not kept:
        callbacks.info(
            f"{journal.path} is of other weights, another class, other versions or another user; beginning anew"
        )
    if is_main and num_kept:
        callbacks.info(f"resuming an interrupted scan: {num_kept} of {total} matrices are scored")

    def compute(batches: Sequence[WeightBatch], into: Journal | None) -> list[tuple[Matrix, MatrixScore]]:
        own_share = share(batches, num_processes)[distributed.rank()]
        return _compute(own_share, into, checkpoint, devices, callbacks)

    try:
        if checked := distributed.broadcast(_sample(kept, weights)):
            all_matrices = {matrix for weight in weights for matrix in weight.matrices()}
            recomputed = dict(distributed.gather(compute(plan_without(all_matrices.difference(checked)), None)))
            wrong = [matrix for matrix in checked if not _agree(kept[matrix], recomputed[matrix])]
            if wrong:
                kept, rest = {}, everything
                journal.begin_anew()
                remove_journals(job.store)
                if is_main:
                    callbacks.warn(
                        f"the journal of an interrupted scan has another score of {wrong[0][0]} than its weight; "
                        "beginning anew"
                    )
        new = compute(rest, journal)
    except KeyboardInterrupt as error:
        rest = plan_without({**kept, **read(journal.path, job.identity)})
        raise Interrupted(_what_is_kept(total - num_matrices(rest), total)) from error
    return kept | dict(distributed.gather(new))


def _compute(
    batches: Sequence[WeightBatch],
    journal: Journal | None,
    checkpoint: Checkpoint,
    devices: Sequence[torch.device],
    callbacks: ScanCallbacks,
) -> list[tuple[Matrix, MatrixScore]]:
    """The scores of these batches.

    With a journal, each score is written to it at once, and the progress is shown.
    """
    from spectrum.compute.executor import score

    num_sharing = _num_sharing(devices[0])
    if journal is None:
        stream = score(batches, checkpoint.read, devices, callbacks.warn, num_sharing)
        return score_batches(stream, lambda batch, scored: None)
    warned = False

    def keep(batch: WeightBatch, scored: list[tuple[Matrix, MatrixScore]]) -> None:
        nonlocal warned
        journal.append(scored)
        if journal.problem is not None and not warned:
            warned = True
            callbacks.warn(f"cannot write {journal.path}: {journal.problem}; what is scored from now on is not kept")
        progress.advance(batch)

    with callbacks.progress(batches) as progress:
        progress.start()
        return score_batches(score(batches, checkpoint.read, devices, callbacks.warn, num_sharing), keep)


def _sample(kept: Mapping[Matrix, MatrixScore], weights: Sequence[LayerWeight]) -> list[Matrix]:
    """A few matrices whose scores a journal holds, chosen at random, so that no forger can know which.

    Single rows are left out: all of them score 1.
    """
    wanted = [matrix for weight in weights if min(weight.matrix_shape) > 1 for matrix in weight.matrices()]
    held = [matrix for matrix in dict.fromkeys(wanted) if matrix in kept]
    return random.SystemRandom().sample(held, min(_NUM_CHECKED, len(held)))


def _agree(kept: MatrixScore, recomputed: MatrixScore) -> bool:
    """Whether two scores, perhaps of different devices, can be of the same matrix."""
    both_nan = math.isnan(kept.snr) and math.isnan(recomputed.snr)
    at_the_edge = recomputed.edge.nearest < _AT_THE_EDGE
    return both_nan or at_the_edge or math.isclose(kept.snr, recomputed.snr, rel_tol=_SAME_SNR)


def _num_sharing(device: torch.device) -> int:
    """How many processes of this run use the device of this one."""
    if distributed.count() == 1:
        return 1
    from spectrum.compute.devices import unique_name, warm_up

    warm_up([device])  # a device that cannot be used cannot be identified
    own = unique_name(device)
    return distributed.gather([own]).count(own)


def _what_is_kept(num_scored: int, total: int) -> str:
    if not num_scored:
        return "nothing is scored yet"
    elsewhere = ", and what the other processes scored" if distributed.count() > 1 else ""
    return f"{num_scored} of {total} matrices are scored and kept{elsewhere}; the same command resumes from there"


def _journals_here(store: ScanStore) -> list[Path]:
    """The journals on this machine. Of its processes, one reads and removes them."""
    return store.journals() if distributed.local_rank() == 0 else []


def _other_journals(job: Job, own: Path) -> dict[Matrix, MatrixScore]:
    """The scores in the journals of an earlier run, which may have had more processes."""
    scores: dict[Matrix, MatrixScore] = {}
    for path in _journals_here(job.store):
        if path != own:
            scores |= read(path, job.identity)
    return scores


def _return_freed_memory() -> None:
    """Make glibc return the memory of large tensors to the system when they are freed.

    By default it keeps blocks of up to 32 MiB in a pool for each thread. Over a long scan that is more than the tensors
    themselves. Other C libraries do not have the setting.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 8 << 20)
