"""The names that the tests' own Hub has for contents of files, in Git and in LFS, computed once per content."""

import hashlib
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

LFS = (".safetensors", ".bin")  # the files that the Hub keeps in LFS

_CHUNK = 1 << 20  # bytes
_HASHING = threading.Lock()


def blob_id(path: Path) -> str:
    """Git's name for a file's content, which the Hub gives as the ETag of a file that it does not keep in LFS."""
    return _digest(path, "sha1")


def sha256(path: Path) -> str:
    """The name in LFS for a file's content."""
    return _digest(path, "sha256")


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(path: Path) -> bytes:
    """What Git holds instead of a file in LFS."""
    size = path.stat().st_size
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(path)}\nsize {size}\n".encode()


def _digest(path: Path, algorithm: str) -> str:
    stat = path.stat()
    with _HASHING:  # so that several requests at once compute it once
        return _digest_of(path, algorithm, stat.st_size, stat.st_mtime_ns)


@cache
def _digest_of(path: Path, algorithm: str, size: int, changed: int) -> str:
    digest = hashlib.new(algorithm, b"blob %d\0" % size if algorithm == "sha1" else b"")
    for chunk in _chunks(path):
        digest.update(chunk)
    return digest.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK):
            yield chunk
