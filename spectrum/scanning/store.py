"""The cache of one model's scan: its files, its lock, its journals."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from spectrum.errors import ResultsError, first_line
from spectrum.files import check_space, read_untrusted, slug, write_atomically
from spectrum.records import LayerWeight, ScanResult
from spectrum.scanning.journal import is_outdated
from spectrum.scanning.scan_json import MAX_BYTES, CachedScan, digest_of, read_scan, scores_json, sidecar_json

DEFAULT_RESULTS_DIR = "model_snr_results"

# About twice what is written at most, in bytes.
_BYTES_FOR_FILE = 32 << 10
_BYTES_FOR_MATRIX = 256  # in the journal and the lists of experts, without the parameter's name
_BYTES_FOR_PARAMETER = 1_000  # in the scores and the sidecar
_BYTES_FOR_LAYER = 500  # in a list


@dataclass(frozen=True, slots=True)
class ScanStore:
    """Where the scan of a model is cached.

    Args:
        results_dir: the directory of all scans.
        model: the model's name.
    """

    results_dir: Path
    model: str

    @property
    def scan_path(self) -> Path:
        """The scores, as flat JSON."""
        return self.results_dir / f"snr_results_{slug(self.model)}.json"

    @property
    def sidecar_path(self) -> Path:
        """The scan's provenance, which the flat JSON has no room for."""
        return self.results_dir / f"snr_results_{slug(self.model)}.meta.json"

    @property
    def lock_path(self) -> Path:
        """The file that a run locks while it scans the model into this directory."""
        return self.results_dir / f".snr_results_{slug(self.model)}.lock"

    def journal_path(self, process: int) -> Path:
        """The journal of process number `process`."""
        return self.results_dir / f"{self._journal_prefix}{process}.jsonl"

    def journals(self) -> list[Path]:
        """The journals of all processes that have scanned the model into this directory."""
        try:
            names = sorted(os.listdir(self.results_dir))
        except OSError:
            return []
        ours = (name for name in names if name.startswith(self._journal_prefix) and name.endswith(".jsonl"))
        return [self.results_dir / name for name in ours]

    def load(self) -> CachedScan | None:
        """The cached scan; None if there is none. Raises ResultsError if it is empty or malformed."""
        return read_scan(self.scan_path, self.sidecar_path, self.model)

    def save(self, result: ScanResult) -> None:
        """Write a scan and its sidecar. Raises ResultsError if a file cannot be written.

        The sidecar is written first, with the digest of the scores. After a crash, either both files are those of the
        old scan, or the digest shows that they do not belong together.
        """
        scores = scores_json(result)
        if result.provenance is not None:
            write_atomically(self.sidecar_path, sidecar_json(result, result.provenance, scores))
        write_atomically(self.scan_path, scores)

    def save_elsewhere(self, result: ScanResult) -> Path | None:
        """Write a scan and its sidecar into a new temporary directory, and return it. None if that fails too."""
        try:
            directory = Path(tempfile.mkdtemp(prefix="spectrum-"))
        except OSError:
            return None
        try:
            ScanStore(directory, self.model).save(result)
        except ResultsError:
            shutil.rmtree(directory, ignore_errors=True)
            return None
        return directory

    def check_space(
        self, also_written: Iterable[Path], weights: Sequence[LayerWeight] = (), num_parameters: int = 0
    ) -> None:
        """Check that the disks have room for what a scan writes. Raises ResultsError if one has not.

        Args:
            also_written: files that the caller writes after the scan.
            weights: those to score; none if they are not known yet.
            num_parameters: of the model.
        """
        needed = {self.results_dir: _BYTES_FOR_FILE + num_parameters * _BYTES_FOR_PARAMETER}
        for weight in weights:
            needed[self.results_dir] += weight.num_matrices * (len(weight.parameter) + _BYTES_FOR_MATRIX)
        for path in also_written:
            size = _BYTES_FOR_FILE + len(weights) * _BYTES_FOR_LAYER
            needed[path.parent] = needed.get(path.parent, 0) + size
        check_space(needed)

    def written_at(self) -> int | None:
        """When the cached scan was written, in nanoseconds; None if there is none."""
        try:
            return self.scan_path.stat().st_mtime_ns
        except OSError:
            return None

    def digest(self) -> str | None:
        """The digest of the cached scores; None if there are none."""
        try:
            return digest_of(read_untrusted(self.scan_path, MAX_BYTES))
        except OSError:
            return None

    @contextmanager
    def locked(self, info: Callable[[str], None], warn: Callable[[str], None]) -> Iterator[None]:
        """Hold the lock: within the context, no other run scans this model into this directory.

        If another run has the lock, wait for it. The operating system releases the lock when the process ends. Raises
        ResultsError if the directory cannot be created.

        Args:
            info: is called with a line before a wait.
            warn: is called with a line if the file system has no locks.
        """
        path = self.lock_path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ResultsError(f"cannot lock {path}: {first_line(error)}") from error
        lock = _lock(path)
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                info(f"another run is scanning {self.model} into {self.results_dir}; waiting for it")
                lock.acquire()
        except (OSError, NotImplementedError) as error:
            warn(f"cannot lock {path}, so nothing keeps two scans of one model apart: {first_line(error)}")
        try:
            yield
        finally:
            lock.release()

    def remove_leftover_journals(self) -> None:
        """Remove journals of scans that saved their results but ended before they had removed the journals.

        Do nothing while another run scans.
        """
        if not self.journals():
            return
        with suppress(OSError, NotImplementedError), _lock(self.lock_path).acquire(timeout=0):
            self.remove_outdated_journals()

    def remove_outdated_journals(self) -> None:
        """Remove the journals of scans whose results are saved. The caller holds the lock."""
        digest = self.digest()
        for path in self.journals():
            if is_outdated(path, digest):
                with suppress(OSError):
                    path.unlink()

    @property
    def _journal_prefix(self) -> str:
        return f"snr_results_{slug(self.model)}.journal-"


def _lock(path: Path) -> FileLock:
    # filelock's substitute for flock outlives its process: the next run would wait forever.
    return FileLock(path, fallback_to_soft=False)
