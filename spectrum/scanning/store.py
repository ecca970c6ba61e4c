"""The cache of one model's scan: its files, its lock, its journals."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from spectrum.errors import ResultsError, first_line
from spectrum.files import read_untrusted, slug, write_atomically
from spectrum.records import ScanResult
from spectrum.scanning.journal import is_outdated
from spectrum.scanning.scan_json import MAX_BYTES, CachedScan, digest_of, read_scan, scores_json, sidecar_json


@dataclass(frozen=True, slots=True)
class ScanStore:
    """Where the scan of a model is cached."""

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
        """The scores that one process of a scan has found so far."""
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
        """The cached scan, None if there is none. Raises ResultsError if it is empty or malformed."""
        return read_scan(self.scan_path, self.sidecar_path, self.model)

    def save(self, result: ScanResult) -> Path:
        """Write a scan and its sidecar; return the scan's path.

        The sidecar is written first, and names the scores by their digest. So after a crash at any moment the files
        are those of the old scan, or it shows that they do not belong together. Raises ResultsError if a file cannot
        be written.
        """
        scores = scores_json(result)
        if result.provenance is not None:
            write_atomically(self.sidecar_path, sidecar_json(result, result.provenance, scores))
        write_atomically(self.scan_path, scores)
        return self.scan_path

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
        """Be the only run that scans this model into this directory; wait for another one.

        The operating system holds the lock, so it ends with the process. Raises ResultsError if the directory cannot
        be made.

        Args:
            info: told before a wait.
            warn: told if the file system has no locks.
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

    def tidy(self) -> None:
        """Remove journals that a scan left when it ended after it had written its results.

        Nothing is removed while another run scans.
        """
        if not self.journals():
            return
        with suppress(OSError, NotImplementedError), _lock(self.lock_path).acquire(timeout=0):
            self.remove_outdated_journals()

    def remove_outdated_journals(self) -> None:
        """Remove the journals of scans whose results are written. The caller holds the lock."""
        now = self.digest()
        for path in self.journals():
            if is_outdated(path, now):
                with suppress(OSError):
                    path.unlink()

    @property
    def _journal_prefix(self) -> str:
        return f"snr_results_{slug(self.model)}.journal-"


def _lock(path: Path) -> FileLock:
    # filelock's substitute for flock outlives its process: the next run would wait for ever.
    return FileLock(path, fallback_to_soft=False)
