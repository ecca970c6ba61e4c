"""The request for a scan, the callbacks by which it reports, and its outcome.

A scan neither prints nor prompts: the caller passes callbacks. `ProgressBar` is what callers pass for progress.
`check_request` finds what is wrong with a request at once. `open_checkpoint_of` opens the model that a request names.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from spectrum.checkpoint import hub
from spectrum.checkpoint.local import ResolvedModel, check_local
from spectrum.compute.batches import WeightBatch, batch_cost, num_matrices
from spectrum.compute.device_names import check_device_name, num_driver_gpus
from spectrum.files import check_name, check_writable
from spectrum.records import ScanResult
from spectrum.scanning.store import ScanStore

if TYPE_CHECKING:
    from spectrum.checkpoint.checkpoint import Checkpoint

_BAR_FORMAT = "{percentage:3.0f}%|{bar}| {desc} [{elapsed}<{remaining}]"

_M_MMAP_THRESHOLD = -3  # from malloc.h


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """What to scan, and how.

    Args:
        model: a local directory or a repository id.
        results_dir: where the scan is cached.
        revision: a repository's branch, tag or commit; None for its default.
        model_class: the transformers class that names the parameters; None for the checkpoint's own.
        trust_remote_code: whether code from the model's repository may run.
        layer_types: exact types and shell patterns; None for the types that are cached, else those that `choose`
            returns.
        device: `auto`, or a device's name as torch writes it.
        rescan: whether to ignore a cached scan.
        download: whether to download a repository's weights, rather than to read them on the Hub.
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
    download: bool
    also_written: Sequence[Path]

    @property
    def store(self) -> ScanStore:
        """Where the scan is cached."""
        return ScanStore(self.results_dir, self.model)


class Progress(Protocol):
    """Shows how far a scan has come. A scan is run in its context."""

    def __enter__(self) -> Progress: ...

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove or finish the display. The scan is complete, or has failed with the error."""
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
        warn: takes one line about something that may make the result unexpected.
        choose: takes the layer types that may be scanned, each with its number of layers; returns the batch size
            (None to fit a memory budget) and the types to scan.
        progress: takes the batches of a scan; returns the display of its progress.
        wait: takes one line that says what a wait of some seconds is for.
    """

    info: Callable[[str], None]
    warn: Callable[[str], None]
    choose: Callable[[Sequence[tuple[str, int]]], tuple[int | None, list[str]]]
    progress: Callable[[Sequence[WeightBatch]], Progress]
    wait: Callable[[str], None] = lambda message: None


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
    """A signal ended a scan. The message says how many of its scores are kept."""


class ProgressBar:
    """A bar that moves by the work done, since weights differ in cost by orders of magnitude.

    Args:
        batches: the batches of the scan.
        tqdm: makes the bar, from the arguments of `tqdm.tqdm`.
        unit: the name of the matrices that the bar counts.
    """

    def __init__(self, batches: Sequence[WeightBatch], tqdm: Callable[..., Any], unit: str = "weights") -> None:
        self._work = sum(map(batch_cost, batches))
        self._total = num_matrices(batches)
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


def check_request(request: ScanRequest) -> None:
    """Find mistakes in a request that need neither torch nor the network: in names, in paths, in a local model's files.

    If there is a cached scan, the model need not exist. Raises SpectrumError.
    """
    check_name(request.model)
    check_device_name(request.device)
    check_writable(request.also_written)
    if request.rescan or request.store.written_at() is None:
        check_local(request.model)
        check_writable([request.store.scan_path, request.store.sidecar_path])


def check_device(name: str) -> None:
    """Raises DeviceError if a name is not a device's, or is a GPU's that this machine does not have.

    The CUDA driver is asked first, which takes no import. If it does not know the GPU, torch decides, which may use
    GPUs of other makers.
    """
    check_device_name(name)
    device_type, _, index = name.partition(":")
    if device_type != "cuda" or ("torch" not in sys.modules and int(index or 0) < num_driver_gpus()):
        return
    from spectrum.compute.devices import devices_for

    devices_for(name, lambda warning: None)


def open_checkpoint_of(
    request: ScanRequest, warn: Callable[[str], None], local: ResolvedModel | None = None
) -> Checkpoint:
    """The checkpoint that a request names. Raises CheckpointError or HubError as `open_checkpoint` does.

    A name without a model, a missing file and an absent GPU are found before torch is imported, which takes seconds.

    Args:
        request: the model, and how it is opened.
        warn: receives a message if the Hub fails and is asked again, or if weights must be downloaded.
        local: the model's directory if it has been found already, so that its headers are not read again.
    """
    check_device(request.device)  # before a download, which may take hours
    resolved = local or hub.resolve(
        request.model,
        request.revision,
        remote_code=request.trust_remote_code,
        download=request.download,
        warn=warn,
    )
    resolved.check_files()
    _return_freed_memory()
    from spectrum.checkpoint.reader import open_checkpoint

    return open_checkpoint(
        request.model,
        revision=request.revision,
        model_class=request.model_class,
        trust_remote_code=request.trust_remote_code,
        resolved=resolved,
        warn=warn,
    )


def _return_freed_memory() -> None:
    """Make glibc return the memory of large tensors to the system when they are freed.

    By default it keeps blocks of up to 32 MiB in a pool for each thread. Over a long scan that is more than the tensors
    themselves. Other C libraries do not have the setting.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 8 << 20)
