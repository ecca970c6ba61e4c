"""Where a scan is cached, and the lock on it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from spectrum.errors import ResultsError, first_line
from spectrum.files import read, slug
from spectrum.scanning.journal import is_outdated
from spectrum.scanning.request import ScanCallbacks, ScanRequest

# Scans of a trillion parameters take 10 MB. Parsed JSON takes many times its size.
MAX_BYTES = 64 << 20


def digest_of(text: bytes) -> str:
    """The digest by which results are known."""
    return hashlib.sha256(text).hexdigest()


def scan_path(results_dir: Path, model: str) -> Path:
    """The flat JSON of a scan."""
    return results_dir / f"snr_results_{slug(model)}.json"


def sidecar_path(results_dir: Path, model: str) -> Path:
    """What the flat JSON has no room for: the scan's provenance."""
    return results_dir / f"snr_results_{slug(model)}.meta.json"


def lock_path(results_dir: Path, model: str) -> Path:
    """What a run that scans the model into this directory locks."""
    return results_dir / f".snr_results_{slug(model)}.lock"


def journal_path(results_dir: Path, model: str, process: int) -> Path:
    """What one of the processes of a scan has found so far."""
    return results_dir / f"snr_results_{slug(model)}.journal-{process}.jsonl"


def journals(results_dir: Path, model: str) -> list[Path]:
    """The journals of all processes that scanned the model into this directory."""
    start = f"snr_results_{slug(model)}.journal-"
    try:
        names = os.listdir(results_dir)
    except OSError:
        return []
    return [results_dir / name for name in sorted(names) if name.startswith(start) and name.endswith(".jsonl")]


def written(results_dir: Path, model: str) -> int | None:
    """When the cached scan of a model was written, in nanoseconds; None where there is none."""
    try:
        return scan_path(results_dir, model).stat().st_mtime_ns
    except OSError:
        return None


def digest(results_dir: Path, model: str) -> str | None:
    """Digest of the cached scan of a model; None where there is none."""
    try:
        return digest_of(read(scan_path(results_dir, model), MAX_BYTES))
    except OSError:
        return None


@contextmanager
def locked(request: ScanRequest, attendant: ScanCallbacks) -> Iterator[None]:
    """Be the only run that scans this model into this cache.

    The lock is the system's, and ends with the process that has it.
    """
    path = lock_path(request.results_dir, request.model)
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


def tidy(request: ScanRequest) -> None:
    """Remove the journals of a scan that ended between writing its results and that, unless one is under way."""
    if not journals(request.results_dir, request.model):
        return
    lock = _lock(lock_path(request.results_dir, request.model))
    with suppress(OSError, NotImplementedError), lock.acquire(timeout=0):
        remove_outdated(request)


def remove_outdated(request: ScanRequest) -> None:
    """Remove the journals of scans whose results are there. The lock is held."""
    now = digest(request.results_dir, request.model)
    for path in journals(request.results_dir, request.model):
        if is_outdated(path, now):
            with suppress(OSError):
                path.unlink()
