"""START HERE. The weights of a repository that is not downloaded: where each file is, and reading parts of it.

The weight files that the Hub's cache has are read from there. All others are read by ranges (`fetcher`, `connection`),
into memory alone. `repository` knows what a repository holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from spectrum.checkpoint.disk.other_formats import ADAPTER_CONFIG
from spectrum.checkpoint.disk.tensors import part_bytes, read_file, read_part
from spectrum.checkpoint.disk.weight_files import (
    MAX_CONFIG_BYTES,
    MAX_INDEX_BYTES,
    LocatedWeights,
    StoredTensor,
    WeightFile,
    parse_weight_map,
    read_failure,
)
from spectrum.checkpoint.remote.answers import RepositoryFile
from spectrum.checkpoint.remote.fetcher import ByteRange, Fetcher
from spectrum.checkpoint.remote.repository import Repository, cached_file, preferred_weights
from spectrum.errors import CheckpointError
from spectrum.files import open_untrusted
from spectrum.text import amount

if TYPE_CHECKING:
    import torch

_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository: in the Hub's cache, or to be read by ranges.

    Args:
        file: the file.
        on_disk: where the Hub's cache has it; None if it does not.
        fetcher: reads it if the cache does not have it.
    """

    file: RepositoryFile
    on_disk: Path | None
    fetcher: Fetcher

    def __str__(self) -> str:
        return str(self.file)

    @property
    def name(self) -> str:
        """The name of the file in the repository."""
        return self.file.name

    @property
    def size(self) -> int:
        """In bytes, as the Hub lists it."""
        return self.file.size

    def read_header(self, offset: int, size: int) -> bytes:
        """A short part, or what the file has of it. Raises HubError if it cannot be read."""
        if self.on_disk is None:
            return self.fetcher.read_now(ByteRange(self.file, offset, max(0, min(size, self.size - offset))))
        try:
            with open_untrusted(self.on_disk) as stream:
                return read_part(stream, offset, size)
        except OSError as error:
            raise read_failure(self.on_disk, error) from error

    def read(self, offset: int, size: int) -> torch.Tensor:
        """A part, as uint8. Raises CheckpointError if it cannot be read."""
        if self.on_disk is None:
            return self.fetcher.read(ByteRange(self.file, offset, size))
        return read_file(self.on_disk, offset, size, self.name)

    def at_once(self, call: Callable[[WeightFile], _R], files: Sequence[WeightFile]) -> Sequence[_R]:
        """The results of a call for each file, made for many files at once. Raises what the first that fails raises."""
        return self.fetcher.at_once(call, files)


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """A model on the Hub whose weights are read by ranges.

    Args:
        config: the content of config.json.
        has_adapter: whether an adapter lies beside the weights.
        located: its weight files, each of them a HubFile.
        fetcher: reads them.
    """

    config: bytes
    has_adapter: bool
    located: LocatedWeights
    fetcher: Fetcher

    @property
    def num_bytes(self) -> int:
        """Of all weight files together."""
        return sum(file.size for file in self.located.files if isinstance(file, HubFile))


def open_remote(repository: Repository, fetcher: Fetcher) -> RemoteModel:
    """Open a model on the Hub. Reads its config and, if there is one, the index of its shards.

    Raises CheckpointError if a shard is missing or the index is damaged, HubError if a file cannot be read.
    """
    config = _content(repository, "config.json", MAX_CONFIG_BYTES, fetcher)
    name = preferred_weights(repository.files)
    weight_map: Mapping[str, str] = {}
    if name.endswith(".json"):
        weight_map = parse_weight_map(f"{repository.name}/{name}", _content(repository, name, MAX_INDEX_BYTES, fetcher))
    names = sorted(set(weight_map.values())) or [name]
    for shard in names:
        if shard not in repository.files:
            raise CheckpointError(f"{repository.where} lacks the shard {shard} that its index names: it is incomplete")
    files = tuple(_file(repository, name, fetcher) for name in names)
    return RemoteModel(config, ADAPTER_CONFIG in repository.files, LocatedWeights(files, weight_map), fetcher)


def byte_ranges(parts: Iterable[tuple[StoredTensor, int | slice | None]]) -> list[ByteRange]:
    """The ranges to fetch for these parts of tensors; none for what is on disk."""
    return [
        ByteRange(tensor.file.file, *part_bytes(tensor, rows))
        for tensor, rows in parts
        if isinstance(tensor.file, HubFile) and tensor.file.on_disk is None
    ]


def _file(repository: Repository, name: str, fetcher: Fetcher) -> HubFile:
    size = repository.size_of(name)
    file = RepositoryFile(repository.name, repository.commit, name, size)
    return HubFile(file, cached_file(repository, name), fetcher)


def _content(repository: Repository, name: str, limit: int, fetcher: Fetcher) -> bytes:
    """The content of a small file. Raises CheckpointError if it is longer than `limit` bytes."""
    file = _file(repository, name, fetcher)
    if file.size > limit:
        raise CheckpointError(f"{file} has {amount(file.size)}, more than any such file has")
    return file.read_header(0, file.size)
