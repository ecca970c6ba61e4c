"""Torch's archives: which tensors a file holds and where in it their bytes lie. Nothing that the file says is run.

Two formats. Since torch 1.6, a zip file of records that are not compressed: `data.pkl` says what there is, `data/<key>`
are the storages that tensors are views of. Before, five pickles in a row, then the storages. Standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from spectrum.checkpoint.disk import torch_zip
from spectrum.checkpoint.disk.torch_pickle import MOST_BYTES, follow
from spectrum.checkpoint.disk.torch_values import ITEM_BYTES, ArchiveError, Storage, Tensor, named_tensors, shown

__all__ = ["ArchiveError", "ArchivedTensor", "structure", "tensors"]
_MAGIC = 0x1950A86A20F9469CFC6C
_FORMAT_BEFORE_ZIP = 1001
_HEAD_BYTES = 23  # of a file from before zip, as fingerprints have always taken them
_FIRST_PICKLE_BYTES = 64
_NO_ARCHIVE = "it is no archive of torch's"


@dataclass(frozen=True, slots=True)
class ArchivedTensor:
    """Where an archive keeps a tensor.

    dtype: by torch's name. shape, stride: in elements. offset: of its first element in the file, in bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


def tensors(stream: BinaryIO) -> dict[str, ArchivedTensor]:
    """Every tensor of an archive by its name, in the file's order. No tensor's bytes are read.

    Every span of them lies within the file as it is now. Raises ArchiveError for anything but a sound archive of a
    flat mapping of names to dense tensors, OSError as it comes.
    """
    size = _size(stream)
    return _zipped_tensors(stream, size) if torch_zip.is_zip(stream) else _older_tensors(stream, size)


def structure(stream: BinaryIO) -> bytes:
    """What an archive says of its records: names, sizes and checksums. One from before zip: how it begins.

    Raises ArchiveError where there is no sound directory, OSError as it comes.
    """
    size = _size(stream)
    if torch_zip.is_zip(stream):
        records, _ = torch_zip.directory(stream, size)
        return "\n".join(f"{record.name} {record.size} {record.checksum}" for record in records).encode()
    head = torch_zip.read(stream, 0, min(size, _FIRST_PICKLE_BYTES))
    _after_magic(head)
    return head[:_HEAD_BYTES]


def _size(stream: BinaryIO) -> int:
    return stream.seek(0, os.SEEK_END)


# The zip format.
def _zipped_tensors(stream: BinaryIO, size: int) -> dict[str, ArchivedTensor]:
    records, end = torch_zip.directory(stream, size)
    places = _by_name_within(records, torch_zip.places(stream, records, end))
    if "constants.pkl" in places:
        raise ArchiveError("it is a TorchScript program")
    if "data.pkl" not in places:
        raise ArchiveError("it lacks data.pkl, which says what it holds")
    _refuse_other_byte_order(stream, places.get("byteorder"))
    pickle = places["data.pkl"]
    if pickle.size > MOST_BYTES:
        raise ArchiveError(f"its data.pkl is over {MOST_BYTES >> 20} MiB long, which no model's is")
    content = torch_zip.read(stream, pickle.offset, pickle.size)
    pickled = follow(content, 0, ends_with_view=False)
    if pickled.end != len(content):
        raise ArchiveError("its data.pkl goes on after its end")
    offsets = {key: _place_of(storage, places).offset for key, storage in pickled.storages.items()}
    return _located(named_tensors(pickled.value), offsets)


def _place_of(storage: Storage, places: Mapping[str, torch_zip.Place]) -> torch_zip.Place:
    place = places.get(f"data/{storage.key}")
    if place is None:
        raise ArchiveError(f"it lacks the data of {shown(storage.key)}")
    # Torch counts whole elements, and writes all bytes that there are: the base of a view of other bytes may have more.
    if not 0 <= place.size - storage.size < storage.item_bytes:
        raise ArchiveError(
            f"the data of {shown(storage.key)} is {place.size} bytes long, not {storage.size} as its data.pkl says"
        )
    return place


def _refuse_other_byte_order(stream: BinaryIO, place: torch_zip.Place | None) -> None:
    if place is None:
        return
    order = torch_zip.read(stream, place.offset, min(place.size, 16))
    if order == b"big":
        raise ArchiveError("it was written on a big-endian machine")
    if order != b"little":
        raise ArchiveError("it does not say in which order its bytes are")


def _by_name_within(
    records: Sequence[torch_zip.Record], places: Sequence[torch_zip.Place]
) -> dict[str, torch_zip.Place]:
    """Places by their names within the archive's one folder, which torch takes from the first record."""
    folder = f"{records[0].name.partition('/')[0]}/"
    for record in records:
        if not record.name.startswith(folder):
            raise ArchiveError(f"its record {shown(record.name)} is not in its folder {shown(folder)}")
    return {record.name[len(folder) :]: place for record, place in zip(records, places, strict=True)}


# The format from before zip.
def _older_tensors(stream: BinaryIO, size: int) -> dict[str, ArchivedTensor]:
    content = torch_zip.read(stream, 0, min(size, MOST_BYTES))
    at = _after_magic(content)
    version, at = _plain(content, at)
    if version != _FORMAT_BEFORE_ZIP:
        raise ArchiveError("it is of a version of torch's format that is not known")
    system, at = _plain(content, at)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ArchiveError("it was written on a big-endian machine, or does not say on which")
    pickled = follow(content, at, ends_with_view=True)
    keys, at = _plain(content, pickled.end)
    return _located(named_tensors(pickled.value), _storage_offsets(stream, at, size, keys, pickled.storages))


def _after_magic(content: bytes) -> int:
    """Where what follows the first pickle begins."""
    if not content.startswith(b"\x80"):
        raise ArchiveError(_NO_ARCHIVE)
    pickled = follow(content, 0, ends_with_view=True)
    if pickled.value != _MAGIC:
        raise ArchiveError(_NO_ARCHIVE)
    return pickled.end


def _plain(content: bytes, at: int) -> tuple[object, int]:
    """What a pickle without tensors builds, and where what follows it begins."""
    pickled = follow(content, at, ends_with_view=True)
    if pickled.storages:
        raise ArchiveError("it has tensors where none belong")
    return pickled.value, pickled.end


def _storage_offsets(
    stream: BinaryIO, at: int, size: int, keys: object, storages: Mapping[str, Storage]
) -> dict[str, int]:
    """Offsets of storages, each with its number of elements before it, which fill the rest of the file."""
    if type(keys) is not list or len(keys) != len(storages):
        raise ArchiveError("it lists other storages than its tensors are views of")
    offsets: dict[str, int] = {}
    for key in keys:
        storage = storages.get(key) if type(key) is str else None
        if storage is None or storage.key in offsets:
            raise ArchiveError("it lists other storages than its tensors are views of")
        start = at + 8
        at = start + storage.size
        if at > size:
            raise ArchiveError("it is truncated")
        if int.from_bytes(torch_zip.read(stream, start - 8, 8), "little") != storage.count:
            raise ArchiveError(f"the data of {shown(storage.key)} has another length than its pickle says")
        offsets[storage.key] = start
    if at != size:
        raise ArchiveError("something follows its end")
    return offsets


def _located(named: Mapping[str, Tensor], offsets: Mapping[str, int]) -> dict[str, ArchivedTensor]:
    """Tensors where they are in the file, given the offsets of their storages."""
    return {
        name: ArchivedTensor(
            dtype=tensor.dtype,
            shape=tensor.shape,
            stride=tensor.stride,
            offset=offsets[tensor.storage.key] + tensor.offset * ITEM_BYTES[tensor.dtype],
        )
        for name, tensor in named.items()
    }
