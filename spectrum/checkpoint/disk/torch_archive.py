"""Torch archives (`pytorch_model.bin`): which tensors a file holds, and where. Nothing in the file is executed.

There are two formats. Since torch 1.6, an archive is a zip file of uncompressed records: `data.pkl` describes the
tensors, and each `data/<key>` is a storage that tensors are views of. In the older format, five pickles follow one
another, and then the storages. torch itself is not used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from spectrum.checkpoint.disk import torch_zip
from spectrum.checkpoint.disk.torch_pickle import read_pickle
from spectrum.checkpoint.disk.torch_pickle_machine import MAX_BYTES
from spectrum.checkpoint.disk.torch_values import ArchiveError, Storage, Tensor, quoted, state_dict_tensors
from spectrum.dtypes import ITEM_BYTES

_MAGIC = 0x1950A86A20F9469CFC6C
_FORMAT_BEFORE_ZIP = 1001
_HEAD_BYTES = 23  # of a file in the older format, for its fingerprint
_FIRST_PICKLE_BYTES = 64
_NOT_AN_ARCHIVE = "it is not a torch archive"


@dataclass(frozen=True, slots=True)
class ArchivedTensor:
    """Where an archive keeps a tensor.

    Args:
        dtype: by torch's name.
        shape: of the tensor.
        stride: in elements.
        offset: of its first element in the file, in bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


def read_tensors(stream: BinaryIO) -> dict[str, ArchivedTensor]:
    """Every tensor of an archive by its name, in the file's order. No tensor's bytes are read.

    All bytes of each tensor are within the file. Raises ArchiveError unless this is a valid archive of one mapping of
    names to dense tensors, and OSError if the file cannot be read.
    """
    size = _size(stream)
    return _read_zip(stream, size) if torch_zip.is_zip(stream) else _read_older(stream, size)


def read_structure(stream: BinaryIO) -> bytes:
    """The names, sizes and checksums of an archive's records, or the first bytes of an archive in the older format.

    Raises ArchiveError if the archive has no valid directory, and OSError if the file cannot be read.
    """
    size = _size(stream)
    if torch_zip.is_zip(stream):
        records, _ = torch_zip.read_directory(stream, size)
        return "\n".join(f"{record.name} {record.size} {record.checksum}" for record in records).encode()
    head = torch_zip.read_bytes(stream, 0, min(size, _FIRST_PICKLE_BYTES))
    _skip_magic(head)
    return head[:_HEAD_BYTES]


def _size(stream: BinaryIO) -> int:
    return stream.seek(0, os.SEEK_END)


# The zip format.


def _read_zip(stream: BinaryIO, size: int) -> dict[str, ArchivedTensor]:
    records, end = torch_zip.read_directory(stream, size)
    places = _by_name_in_folder(records, torch_zip.read_places(stream, records, end))
    if "constants.pkl" in places:
        raise ArchiveError("it is a TorchScript program")
    if "data.pkl" not in places:
        raise ArchiveError("it lacks data.pkl, which says what it holds")
    _refuse_other_byte_order(stream, places.get("byteorder"))
    pickle = places["data.pkl"]
    if pickle.size > MAX_BYTES:
        raise ArchiveError(f"its data.pkl is over {MAX_BYTES >> 20} MiB long, longer than any model's")
    content = torch_zip.read_bytes(stream, pickle.offset, pickle.size)
    pickled = read_pickle(content, 0, ends_with_view=False)
    if pickled.end != len(content):
        raise ArchiveError("its data.pkl goes on after its end")
    offsets = {key: _place_of(storage, places).offset for key, storage in pickled.storages.items()}
    return _locate(state_dict_tensors(pickled.value), offsets)


def _place_of(storage: Storage, places: Mapping[str, torch_zip.Place]) -> torch_zip.Place:
    place = places.get(f"data/{storage.key}")
    if place is None:
        raise ArchiveError(f"it lacks the data of {quoted(storage.key)}")
    # torch counts whole elements but writes all bytes. If views differ in dtype, the end of a storage may be less than
    # one element.
    if not 0 <= place.size - storage.size < storage.item_bytes:
        raise ArchiveError(
            f"the data of {quoted(storage.key)} is {place.size} bytes long, not {storage.size} as its data.pkl says"
        )
    return place


def _refuse_other_byte_order(stream: BinaryIO, place: torch_zip.Place | None) -> None:
    if place is None:
        return
    order = torch_zip.read_bytes(stream, place.offset, min(place.size, 16))
    if order == b"big":
        raise ArchiveError("it was written on a big-endian machine")
    if order != b"little":
        raise ArchiveError("it does not say in which order its bytes are")


def _by_name_in_folder(
    records: Sequence[torch_zip.Record], places: Sequence[torch_zip.Place]
) -> dict[str, torch_zip.Place]:
    """The places of records by their names within the archive's folder, which torch takes from the first record."""
    folder = f"{records[0].name.partition('/')[0]}/"
    for record in records:
        if not record.name.startswith(folder):
            raise ArchiveError(f"its record {quoted(record.name)} is not in its folder {quoted(folder)}")
    return {record.name[len(folder) :]: place for record, place in zip(records, places, strict=True)}


# The older format.


def _read_older(stream: BinaryIO, size: int) -> dict[str, ArchivedTensor]:
    content = torch_zip.read_bytes(stream, 0, min(size, MAX_BYTES))
    at = _skip_magic(content)
    version, at = _read_plain_pickle(content, at)
    if version != _FORMAT_BEFORE_ZIP:
        raise ArchiveError("it has an unknown version of the older format")
    system, at = _read_plain_pickle(content, at)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ArchiveError("it was written on a big-endian machine, or does not say on which")
    pickled = read_pickle(content, at, ends_with_view=True)
    keys, at = _read_plain_pickle(content, pickled.end)
    return _locate(state_dict_tensors(pickled.value), _storage_offsets(stream, at, size, keys, pickled.storages))


def _skip_magic(content: bytes) -> int:
    """The offset of what follows the first pickle, which must be torch's magic number."""
    if not content.startswith(b"\x80"):
        raise ArchiveError(_NOT_AN_ARCHIVE)
    pickled = read_pickle(content, 0, ends_with_view=True)
    if pickled.value != _MAGIC:
        raise ArchiveError(_NOT_AN_ARCHIVE)
    return pickled.end


def _read_plain_pickle(content: bytes, at: int) -> tuple[object, int]:
    """The value that a pickle without tensors builds, and the offset of what follows the pickle."""
    pickled = read_pickle(content, at, ends_with_view=True)
    if pickled.storages:
        raise ArchiveError("it has tensors where none belong")
    return pickled.value, pickled.end


def _storage_offsets(
    stream: BinaryIO, at: int, size: int, keys: object, storages: Mapping[str, Storage]
) -> dict[str, int]:
    """The offset of each storage by its key. The storages fill the rest of the file.

    Args:
        stream: the file.
        at: the offset of the first storage. Each is preceded by its number of elements.
        size: of the file, in bytes.
        keys: of the storages, in the file's order.
        storages: those that tensors are views of.
    """
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
        if int.from_bytes(torch_zip.read_bytes(stream, start - 8, 8), "little") != storage.count:
            raise ArchiveError(f"the data of {quoted(storage.key)} has another length than its pickle says")
        offsets[storage.key] = start
    if at != size:
        raise ArchiveError("something follows its end")
    return offsets


def _locate(named: Mapping[str, Tensor], offsets: Mapping[str, int]) -> dict[str, ArchivedTensor]:
    """Where each tensor is in the file, given the offsets of the storages."""
    return {
        name: ArchivedTensor(
            dtype=tensor.dtype,
            shape=tensor.shape,
            stride=tensor.stride,
            offset=offsets[tensor.storage.key] + tensor.offset * ITEM_BYTES[tensor.dtype],
        )
        for name, tensor in named.items()
    }
