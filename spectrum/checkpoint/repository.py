"""Which files of a repository on the Hub are downloaded? And does the disk have room for them?"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from spectrum.checkpoint.disk.other_formats import SINGLE_FILES, WEIGHT_NAMES, no_weights_reason, not_a_model_reason
from spectrum.checkpoint.disk.weight_files import MAX_FILES, MAX_INDEX_BYTES
from spectrum.errors import CheckpointError, HubError
from spectrum.files import free_space, parse_json, read_untrusted
from spectrum.text import amount

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling


def first_files(where: str, names: Collection[str], *, remote_code: bool) -> list[str]:
    """The names of the files to download before the weight files: what says which model it is, and an index.

    Raises CheckpointError if there are no weights or no config. The arguments are those of `config_files`.
    """
    weights = [name for name in WEIGHT_NAMES if name in names]
    if not weights:
        raise CheckpointError(no_weights_reason(where, names))
    # transformers loads the first. If that is a weight file, it is downloaded later.
    index = [name for name in weights[:1] if name.endswith(".json")]
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
    adapter = [name for name in ("adapter_config.json",) if name in names]
    return ["config.json", *adapter, *(name for name in names if remote_code and name.endswith(".py"))]


def weight_files(folder: Path, names: Collection[str]) -> list[str]:
    """The names of a repository's weight files, given the directory that its index is in."""
    for stem in SINGLE_FILES:
        if stem in names:
            return [stem]
        index = folder / f"{stem}.index.json"
        if index.name in names:
            try:
                shards = set(parse_json(read_untrusted(index, MAX_INDEX_BYTES))["weight_map"].values()) & set(names)
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return []  # opening the checkpoint reports what is wrong with the index
            # huggingface_hub compares each with the names of all files of the repository, so there must not be many.
            return sorted(shards) if len(shards) <= MAX_FILES else []
    return []


def check_fits(where: str, folder: Path, files: Iterable[RepoSibling]) -> None:
    """Raises HubError if the disk of the Hub's cache has no room for those of these files that are not in the cache.

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


def _size_to_download(file: RepoSibling, folder: Path, blobs: Path) -> int:
    """How many bytes of a file the cache lacks. A blob has the name of the file's hash."""
    blob = blobs / (file.lfs.sha256 if file.lfs else file.blob_id or file.rfilename)
    if file.size is None or blob.exists() or (folder / file.rfilename).exists():
        return 0
    partial = blob.with_name(f"{blob.name}.incomplete")  # from it, some versions of huggingface_hub go on
    return max(0, file.size - (partial.stat().st_size if partial.exists() else 0))
