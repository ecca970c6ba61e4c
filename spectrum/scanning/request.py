"""What a scan is asked for, how it reports, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum.compute.batches import WeightBatch, batch_cost, matrices
from spectrum.records import MatrixScore, ScanResult

if TYPE_CHECKING:
    from spectrum.checkpoint.reader import Checkpoint

Scored = Generator[tuple[WeightBatch, list[MatrixScore]], None, None]


@dataclass(frozen=True, slots=True)
class ScanRequest:
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
class ScanCallbacks:
    """How a scan asks and tells.

    note: takes a line for the user. warn: one that says what may make the result other than expected. ask: the batch
    size (None: as fits a budget) and the layer types to scan of a checkpoint. progress: passes on the scores of these
    batches as they come.
    """

    note: Callable[[str], None]
    warn: Callable[[str], None]
    ask: Callable[[ScanRequest, Checkpoint], tuple[int | None, list[str]]]
    progress: Callable[[Scored, Sequence[WeightBatch]], Scored]


@dataclass(frozen=True, slots=True)
class ScanOutcome:
    """A scan of the layer types that were asked for, its file, and a line that says where it is from."""

    result: ScanResult
    path: Path
    origin: str


class Interrupted(KeyboardInterrupt):
    """The user, or the machine's keeper, ends a scan; the message says what of it is kept."""


_FORM = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"


def under_bar(scored: Scored, batches: Sequence[WeightBatch], bar: Callable[..., Any], unit: str = "weights") -> Scored:
    """Scores as they come, under a bar of tqdm's, which is made of its arguments by `bar`."""
    count = matrices(batches)
    done = 0
    with bar(total=sum(map(batch_cost, batches)), bar_format=_FORM) as drawn:
        drawn.set_description_str(f"0/{count} {unit}")
        for batch, values in scored:
            done += len(values)
            drawn.set_description_str(f"{done}/{count} {unit}, {batch.members[0][0].layer_type}", refresh=False)
            drawn.update(batch_cost(batch))
            yield batch, values
        drawn.set_description_str(f"{count}/{count} {unit}", refresh=False)
