"""What a scan is asked for, how it reports, and what it returns.

A scan neither prints nor prompts: the caller passes callbacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from spectrum.compute.batches import WeightBatch, batch_cost, matrices
from spectrum.records import ScanResult
from spectrum.scanning.store import ScanStore

_BAR_FORMAT = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """What to scan, and how.

    Args:
        model: a local directory or a repository id.
        results_dir: where the scan is cached.
        revision: of a repository; None for its default.
        model_class: the transformers class that names the parameters; None for the checkpoint's own.
        trust_remote_code: whether code from the model's repository may run.
        layer_types: exact types and shell patterns; None for what the cache has, or what `choose` returns.
        device: `auto`, or a device's name as torch writes it.
        rescan: whether to ignore a cached scan.
        also_written: files that the caller writes after the scan. The scan checks first that they can be written.
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

    @property
    def store(self) -> ScanStore:
        """Where the scan is cached."""
        return ScanStore(self.results_dir, self.model)


class Progress(Protocol):
    """Follows a scan from batch to batch, as a context manager around it."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End, whether or not all is scored."""
        ...

    def start(self) -> None:
        """Show that nothing is scored yet."""
        ...

    def advance(self, batch: WeightBatch) -> None:
        """Count a batch that has been scored."""
        ...


@dataclass(frozen=True, slots=True)
class ScanCallbacks:
    """How a scan talks to its caller.

    Args:
        info: takes one line for the user.
        warn: takes one line about something that may make the result other than expected.
        choose: takes the layer types that may be scanned, each with its number of layers; returns the batch size
            (None to fit a memory budget) and the types to scan.
        progress: makes what follows the scan of these batches.
    """

    info: Callable[[str], None]
    warn: Callable[[str], None]
    choose: Callable[[Sequence[tuple[str, int]]], tuple[int | None, list[str]]]
    progress: Callable[[Sequence[WeightBatch]], Progress]


@dataclass(frozen=True, slots=True)
class ScanOutcome:
    """What a scan returns.

    Args:
        result: the scores of the layer types that were asked for.
        path: the file that they are cached in.
        origin: one line that says whether they were computed or cached.
    """

    result: ScanResult
    path: Path
    origin: str


class Interrupted(KeyboardInterrupt):
    """A signal ended a scan. The message says how much of it is kept."""


class ProgressBar:
    """A bar that moves by the work done, since weights differ in cost by orders of magnitude."""

    def __init__(self, batches: Sequence[WeightBatch], tqdm: Callable[..., Any], unit: str = "weights") -> None:
        self._work = sum(map(batch_cost, batches))
        self._total = matrices(batches)
        self._done = 0
        self._tqdm = tqdm
        self._unit = unit
        self._bar: Any = None

    def __enter__(self) -> ProgressBar:
        # Draws nothing: if an interrupt ended this method, nothing would close the bar.
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            if error_type is None:
                self._describe(refresh=False)
            self._bar.close()

    def start(self) -> None:
        """Draw the bar."""
        self._bar = self._tqdm(total=self._work, bar_format=_BAR_FORMAT)
        self._describe()

    def advance(self, batch: WeightBatch) -> None:
        """Move the bar by a batch that has been scored."""
        self._done += len(batch.members)
        self._describe(f", {batch.members[0][0].layer_type}", refresh=False)
        self._bar.update(batch_cost(batch))

    def _describe(self, detail: str = "", *, refresh: bool = True) -> None:
        self._bar.set_description_str(f"{self._done}/{self._total} {self._unit}{detail}", refresh=refresh)
