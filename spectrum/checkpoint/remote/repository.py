"""What does a repository on the Hub hold? Which of its files are downloaded, and does the disk have room for them?"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spectrum.checkpoint.disk.other_formats import (
    ADAPTER_CONFIG,
    WEIGHT_NAMES,
    no_weights_reason,
    not_a_model_reason,
)
from spectrum.checkpoint.disk.weight_files import MAX_INDEX_BYTES, parse_weight_map
from spectrum.errors import CheckpointError, HubError
from spectrum.files import free_space, read_untrusted
from spectrum.text import amount

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling


@dataclass(frozen=True, slots=True)
class Repository:
    """What the Hub says of a repository.

    Args:
        name: its id.
        revision: that was asked for; None for the default.
        commit: that the revision stands for now.
        files: by their names.
    """

    name: str
    revision: str | None
    commit: str
    files: Mapping[str, RepoSibling]

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"{self.name} at revision {self.revision!r}" if self.revision else self.name

    def size_of(self, name: str) -> int:
        """The size of a file in bytes; 0 if the Hub does not tell it, see `no_ranges_reason`."""
        return self.files[name].size or 0


def preferred_weights(names: Collection[str]) -> str:
    """The name of the file that decides which weights transformers loads, given names among which there is one."""
    return next(name for name in WEIGHT_NAMES if name in names)


def no_ranges_reason(repository: Repository) -> str | None:
    """Why weights cannot be read by ranges, as the rest of a sentence about the repository; None if they can."""
    if ".safetensors" not in preferred_weights(repository.files):
        return "has no safetensors files"
    if any(file.size is None for file in repository.files.values()):
        return "is listed without the sizes of its files"
    return None


def cached_file(repository: Repository, name: str) -> Path | None:
    """Where the Hub's cache has a file, of this commit or with the same content of another; None if it does not."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.file_download import repo_folder_name

    found = try_to_load_from_cache(repository.name, name, revision=repository.commit)
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository.name, repo_type="model")
    path = Path(found) if isinstance(found, str) else folder / "blobs" / _blob_name(repository.files[name])
    try:
        is_whole = path.stat().st_size == repository.files[name].size
    except OSError:
        return None
    return path if is_whole else None


def snapshot_of(repository: Repository, names: Collection[str]) -> Path | None:
    """The snapshot of a repository in the Hub's cache, if it has all of these files; None if not."""
    folders = {path and path.parent for path in (cached_file(repository, name) for name in names)}
    folder = folders.pop() if len(folders) == 1 else None
    return folder if folder is not None and folder.name == repository.commit else None


def _blob_name(file: RepoSibling) -> str:
    """The name of a file's content in the cache: its hash."""
    return (file.lfs.sha256 if file.lfs else file.blob_id) or file.rfilename


def first_files(where: str, names: Collection[str], *, remote_code: bool) -> list[str]:
    """The names of the files to download before the weight files: what says which model it is, and an index.

    Raises CheckpointError if there are no weights or no config. The arguments are those of `config_files`.
    """
    if not any(name in names for name in WEIGHT_NAMES):
        raise CheckpointError(no_weights_reason(where, names))
    weights = preferred_weights(names)
    index = [weights] if weights.endswith(".json") else []  # a weight file is downloaded later
    return [*config_files(where, names, remote_code=remote_code), *index]


def config_files(where: str, names: Collection[str], *, remote_code: bool) -> list[str]:
    """The names of the files that say which model it is, and that an adapter lies beside its weights.

    Raises CheckpointError if there is no config.

    Args:
        where: the repository, for messages.
        names: of its files.
        remote_code: whether its Python files are wanted too.
    """
    if "config.json" not in names:
        reason = not_a_model_reason(where, names)
        raise CheckpointError(reason or f"{where} has no config.json, so it is not a transformers model")
    adapter = [name for name in (ADAPTER_CONFIG,) if name in names]
    return ["config.json", *adapter, *(name for name in names if remote_code and name.endswith(".py"))]


def weight_files(folder: Path, names: Collection[str]) -> list[str]:
    """The names of a repository's weight files, given the directory that its index is in."""
    name = preferred_weights(names)
    if not name.endswith(".json"):
        return [name]
    try:
        weight_map = parse_weight_map(folder / name, read_untrusted(folder / name, MAX_INDEX_BYTES))
    except (OSError, CheckpointError):
        return []  # opening the checkpoint reports what is wrong with the index
    return sorted(set(weight_map.values()) & set(names))


def check_fits(where: str, folder: Path, files: Iterable[RepoSibling]) -> int:
    """How many bytes of these files the Hub's cache lacks. Raises HubError if its disk has no room for them.

    Files of unknown size count as empty, and a disk whose free space is unknown has room.

    Args:
        where: the repository, for the message.
        folder: the snapshot in the cache that the files belong to.
        files: to download.
    """
    blobs = folder.parent.parent / "blobs"
    needed = sum(_size_to_download(file, folder, blobs) for file in files)
    free = free_space(folder)
    if free is not None and needed > free:
        raise HubError(
            f"{where} does not fit: {amount(needed)} are to be downloaded, and the disk of "
            f"{blobs.parent.parent} has {amount(free)} free; free some, or set HF_HOME to a directory on another disk"
        )
    return needed


def _size_to_download(file: RepoSibling, folder: Path, blobs: Path) -> int:
    """How many bytes of a file the cache lacks."""
    blob = blobs / _blob_name(file)
    if file.size is None or blob.exists() or (folder / file.rfilename).exists():
        return 0
    partial = blob.with_name(f"{blob.name}.incomplete")  # from it, some versions of huggingface_hub go on
    return max(0, file.size - (partial.stat().st_size if partial.exists() else 0))
