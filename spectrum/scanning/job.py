"""One scan, computed by one process or by many: lead or follow, resume, share the work, gather the scores.

An interrupted scan resumes here: scores that a journal holds are not computed again.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum.compute.batches import (
    BatchBudget,
    WeightBatch,
    arriving_order,
    common_budget,
    matrices_of,
    num_matrices,
    plan,
    share,
)
from spectrum.errors import CheckpointError, ProcessError
from spectrum.records import LayerWeight, MatrixScore
from spectrum.scanning import distributed
from spectrum.scanning.assemble import score_batches
from spectrum.scanning.journal import Journal, Matrix, read
from spectrum.scanning.request import Interrupted, ScanCallbacks, ScanRequest, open_checkpoint_of
from spectrum.scanning.store import ScanStore

if TYPE_CHECKING:
    import torch

    from spectrum.checkpoint.checkpoint import Checkpoint

# How many scores of a journal are computed again. Each of them exposes a journal that is forged throughout. A single
# false score among thousands does no more harm than a false weight.
_NUM_CHECKED = 3

# Two devices may put a singular value that is this near to the bulk edge on different sides of it. The distance is
# relative to the edge.
_AT_THE_EDGE = 1e-7

# All other scores of two devices differ by far less than this, relative to the score.
_SAME_SNR = 1e-6


@dataclass(frozen=True, slots=True)
class Job:
    """The scan that all processes of a run compute together. The main process sends it to the other processes.

    Args:
        request: the request for the scan.
        identity: what scores depend on; see `identity_of`.
        replaced_digest: the digest of the cached scores when the scan begins; None if there are none.
        layer_types: the types to scan.
        batch_size: matrices in a kernel call; None to fit a memory budget.
    """

    request: ScanRequest
    identity: dict[str, Any]
    replaced_digest: str | None
    layer_types: tuple[str, ...]
    batch_size: int | None

    def weights(self, checkpoint: Checkpoint) -> list[LayerWeight]:
        """The weights to score."""
        return [weight for weight in checkpoint.weights if weight.layer_type in self.layer_types]


@contextmanager
def lead() -> Iterator[None]:
    """In the main process: until the context ends, the other processes work on each job that this one sends."""
    distributed.join()
    try:
        yield
    finally:
        with suppress(ProcessError):  # a process that has ended needs no stop message
            distributed.broadcast(None)
        distributed.leave()


def follow(callbacks: ScanCallbacks) -> None:
    """In every other process: work on each job that the main process sends, until it sends None."""
    distributed.join()
    try:
        placeholder: Job | None = None  # what a process that is not the main one passes does not matter
        while (job := distributed.broadcast(placeholder)) is not None:
            checkpoint = open_checkpoint_of(job.request, callbacks.warn)
            if identity_of(checkpoint) != job.identity:
                raise CheckpointError(f"{checkpoint.directory} holds other weights here than for the main process")
            score_job(checkpoint, job, callbacks)
            remove_journals(job.request.store)
    finally:
        distributed.leave()


def score_job(checkpoint: Checkpoint, job: Job, callbacks: ScanCallbacks) -> tuple[dict[Matrix, MatrixScore], str]:
    """The scores of all matrices of a job, and a phrase that says where they were computed.

    Every process computes its share, and returns the scores of all matrices. Raises Interrupted on Ctrl-C and SIGTERM;
    the scores so far are kept in the journals.
    """
    from spectrum.compute.devices import devices_for

    num_processes = distributed.count()
    devices = devices_for(job.request.device, callbacks.warn, distributed.local_rank() if num_processes > 1 else None)
    journal = Journal(job.request.store.journal_path(distributed.rank()), job.identity, job.replaced_digest)
    try:
        scores = _resume(checkpoint, job, devices, journal, callbacks)
    finally:
        journal.close()
    return scores, f"in {num_processes} processes" if num_processes > 1 else f"on {', '.join(map(str, devices))}"


def remove_journals(store: ScanStore) -> None:
    """Remove the journals of all processes. Every process calls this.

    No journal is removed before all processes have called it. No process returns before all journals are removed.
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


@dataclass(frozen=True, slots=True)
class _Work:
    """The matrices of a job, and what this process needs to score its share of them.

    Args:
        checkpoint: the weights of the model.
        weights: those of the job.
        batch_size: matrices in a kernel call; None to fit the budget.
        budget: what limits a batch, the same in all processes, so that they plan the same batches.
        devices: where this process computes.
        num_sharing: how many processes share these devices.
        callbacks: how it reports.
    """

    checkpoint: Checkpoint
    weights: Sequence[LayerWeight]
    batch_size: int | None
    budget: BatchBudget
    devices: Sequence[torch.device]
    num_sharing: int
    callbacks: ScanCallbacks

    def batches_without(self, scored: Collection[Matrix]) -> list[WeightBatch]:
        """The batches of all processes, without the matrices that are scored already."""
        return plan(self.weights, self.batch_size, self.budget, scored)

    def compute(self, batches: Sequence[WeightBatch], journal: Journal | None) -> list[tuple[Matrix, MatrixScore]]:
        """The scores of this process's share of the batches. With a journal, they are also written to it."""
        own_share = share(batches, distributed.count())[distributed.rank()]
        if self.checkpoint.remote is not None:
            own_share = arriving_order(own_share)
        with self.checkpoint.fetching_ahead(matrices_of(own_share)):
            return self._score(own_share, journal)

    def _score(self, batches: Sequence[WeightBatch], journal: Journal | None) -> list[tuple[Matrix, MatrixScore]]:
        """The scores of these batches. With a journal, each is written to it at once, and the progress is shown."""
        from spectrum.compute.executor import score

        read, stop, callbacks = self.checkpoint.read, self.checkpoint.stop_reading, self.callbacks
        stream = score(batches, read, self.devices, callbacks.warn, self.num_sharing, stop)
        if journal is None:
            return score_batches(stream, lambda batch, scored: None)
        warned = False

        def keep(batch: WeightBatch, scored: list[tuple[Matrix, MatrixScore]]) -> None:
            nonlocal warned
            journal.append(scored)
            if journal.write_error is not None and not warned:
                warned = True
                callbacks.warn(journal.failure())
            progress.advance(batch)

        with callbacks.progress(batches) as progress:
            progress.start()
            return score_batches(stream, keep)


def _resume(
    checkpoint: Checkpoint, job: Job, devices: Sequence[torch.device], journal: Journal, callbacks: ScanCallbacks
) -> dict[Matrix, MatrixScore]:
    """The scores that the journals hold, and those that are computed now."""
    from spectrum.compute.devices import batch_budget

    is_main = distributed.rank() == 0
    kept = dict(distributed.gather([*_other_journals(job, journal.path).items(), *journal.scores.items()]))
    num_sharing = distributed.num_sharing(devices[0])
    own_budget = batch_budget(devices, num_sharing, from_network=checkpoint.remote is not None)
    budget = common_budget(distributed.gather([own_budget]))
    work = _Work(checkpoint, job.weights(checkpoint), job.batch_size, budget, devices, num_sharing, callbacks)
    everything, rest = work.batches_without(()), work.batches_without(kept)
    if job.request.rescan and not rest:  # an earlier scan scored everything; this one is to score it again
        kept, rest = {}, everything
        journal.start_over()
        remove_journals(job.request.store)
    total = num_matrices(everything)
    if is_main and journal.is_foreign and not kept:
        callbacks.info(
            f"{journal.path} is of other weights, another class, other versions or another user; starting over"
        )
    if is_main and (num_kept := total - num_matrices(rest)):
        callbacks.info(f"resuming an interrupted scan: {num_kept} of {total} matrices are scored")
    if is_main and (notice := checkpoint.fetch_notice(matrices_of(rest))):
        callbacks.info(notice)
    try:
        wrong = _first_wrong_score(kept, work)
        if wrong is not None:
            kept, rest = {}, everything
            journal.start_over()
            remove_journals(job.request.store)
            if is_main:
                callbacks.warn(
                    f"the journal of an interrupted scan has a score of {wrong[0]} that its weight does not give; "
                    "starting over"
                )
        return kept | dict(distributed.gather(work.compute(rest, journal)))
    except KeyboardInterrupt as error:
        rest = work.batches_without({**kept, **read(journal.path, job.identity)})
        raise Interrupted(_what_is_kept(total - num_matrices(rest), total)) from error


def _first_wrong_score(kept: Mapping[Matrix, MatrixScore], work: _Work) -> Matrix | None:
    """Compute a few scores of journals again. The first matrix whose score differs; None if there is none."""
    checked = distributed.broadcast(_sample(kept, work.weights))
    if not checked:
        return None
    all_matrices = {matrix for weight in work.weights for matrix in weight.matrices()}
    batches = work.batches_without(all_matrices.difference(checked))
    recomputed = dict(distributed.gather(work.compute(batches, None)))
    return next((matrix for matrix in checked if not _same_score(kept[matrix], recomputed[matrix])), None)


def _sample(kept: Mapping[Matrix, MatrixScore], weights: Sequence[LayerWeight]) -> list[Matrix]:
    """A few matrices with kept scores, chosen at random, so that a forger cannot know which.

    Single rows are left out, since each of them scores 1.
    """
    wanted = [matrix for weight in weights if min(weight.matrix_shape) > 1 for matrix in weight.matrices()]
    held = [matrix for matrix in dict.fromkeys(wanted) if matrix in kept]
    return random.SystemRandom().sample(held, min(_NUM_CHECKED, len(held)))


def _same_score(kept: MatrixScore, recomputed: MatrixScore) -> bool:
    """Whether two scores can be of the same matrix, computed on two devices."""
    both_nan = math.isnan(kept.snr) and math.isnan(recomputed.snr)
    at_the_edge = recomputed.edge.nearest < _AT_THE_EDGE
    return both_nan or at_the_edge or math.isclose(kept.snr, recomputed.snr, rel_tol=_SAME_SNR)


def _what_is_kept(num_scored: int, total: int) -> str:
    elsewhere = ", and what the other processes scored" if distributed.count() > 1 else ""
    if not num_scored:
        return f"nothing is scored yet{elsewhere and ' by the main process'}"
    return f"{num_scored} of {total} matrices are scored and kept{elsewhere}; the same command resumes from there"


def _journals_here(store: ScanStore) -> list[Path]:
    """The journals on this machine. Empty unless this is the first process of the machine, which sees to them all."""
    return store.journals() if distributed.local_rank() == 0 else []


def _other_journals(job: Job, own: Path) -> dict[Matrix, MatrixScore]:
    """In the first process of a machine: the scores in all journals there but its own. Empty in all others.

    An earlier run may have had more processes.
    """
    scores: dict[Matrix, MatrixScore] = {}
    for path in _journals_here(job.request.store):
        if path != own:
            scores |= read(path, job.identity)
    return scores
