"""The directory of a zip file that torch has written: names, sizes and places of its records, which are uncompressed.

A file that two readers could read differently is refused, so every reader sees the same records.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from spectrum.checkpoint.disk.torch_values import ArchiveError, quoted

_MAX_DIRECTORY_BYTES = 16 << 20
_MAX_RECORDS = 200_000

# The parts of a zip file, as its specification (APPNOTE.TXT) lays them out.
_LOCAL = struct.Struct("<4s5H3L2H")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64 = struct.Struct("<4sLQL")
_LOCAL_SIGN, _ENTRY_SIGN, _END_SIGN = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_END64_SIGN, _LOCATOR64_SIGN = b"PK\6\6", b"PK\6\7"
_ALL_ONES_16, _ALL_ONES_32 = 0xFFFF, 0xFFFFFFFF  # stands for a number that does not fit: a wider field has it
_SIZES_FOLLOW, _IS_UTF8 = 1 << 3, 1 << 11
_WIDE_FIELD = 1  # the id, among the extra fields, of the one with wide numbers
_DAMAGED = "its directory is damaged"


@dataclass(frozen=True, slots=True)
class Record:
    """A record of a zip file, as its directory describes it.

    Args:
        name: decoded.
        stored_name: as the file has it.
        size: of its data, in bytes.
        checksum: of its data, CRC-32.
        header: the offset of its own header, which its data follows.
    """

    name: str
    stored_name: bytes
    size: int
    checksum: int
    header: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where bytes are in the file: their offset and their number."""

    offset: int
    size: int


def is_zip(stream: BinaryIO) -> bool:
    """Whether torch would read this as a zip file. It looks at the first bytes, so nothing can precede the archive."""
    stream.seek(0)
    return stream.read(len(_LOCAL_SIGN)) == _LOCAL_SIGN


def read_directory(stream: BinaryIO, size: int) -> tuple[list[Record], int]:
    """All records of a zip file in order, and the offset of its directory. The headers of the records are not read.

    Args:
        stream: the file.
        size: of the file, in bytes.
    """
    count, length, offset = _directory_place(stream, size)
    if count > _MAX_RECORDS or length > _MAX_DIRECTORY_BYTES:
        raise ArchiveError(f"its directory lists {count} records in {length} bytes, more than any model's")
    if not count:
        raise ArchiveError("it is an empty zip file")
    records = _parse_records(read_bytes(stream, offset, length), count)
    # torch ignores case when it looks up a name.
    if len({record.stored_name.lower() for record in records}) != count:
        raise ArchiveError("it has two records of one name")
    return records, offset


def read_places(stream: BinaryIO, records: Sequence[Record], end: int) -> list[Place]:
    """Where the data of each record is. The header of the record must agree with the directory.

    Raises ArchiveError if two records overlap, or if one reaches beyond `end`, where the directory begins.
    """
    places: dict[str, Place] = {}
    free = 0
    for record in sorted(records, key=lambda record: record.header):
        if record.header < free or (not places and record.header):
            raise ArchiveError(f"its record {quoted(record.name)} overlaps another, or does not begin where it should")
        offset = _data_offset(stream, record, end)
        free = offset + record.size
        if free > end:
            raise ArchiveError(f"its record {quoted(record.name)} reaches beyond the records")
        places[record.name] = Place(offset, record.size)
    return [places[record.name] for record in records]


def read_bytes(stream: BinaryIO, offset: int, length: int) -> bytes:
    """Read bytes of a file. Raises ArchiveError if it has become shorter."""
    stream.seek(offset)
    content = stream.read(length)
    if len(content) != length:
        raise ArchiveError("it became shorter while it was read")
    return content


def _directory_place(stream: BinaryIO, size: int) -> tuple[int, int, int]:
    """The number of records, and the length and the offset of the directory. The end records follow it."""
    end = size - _END.size
    if end < 0:
        raise ArchiveError("it is truncated")
    sign, disk, first_disk, here, count, length, offset, comment = _END.unpack(read_bytes(stream, end, _END.size))
    if sign != _END_SIGN or comment:
        raise ArchiveError("it is truncated, or something follows its end")
    _refuse_parts(disk, first_disk, here, count)
    if end >= _LOCATOR64.size:
        locator = read_bytes(stream, end - _LOCATOR64.size, _LOCATOR64.size)
        if locator.startswith(_LOCATOR64_SIGN):
            narrow = (count, length, offset)
            end -= _LOCATOR64.size + _END64.size
            count, length, offset = _wide_directory_place(stream, end, locator)
            if narrow != (min(count, _ALL_ONES_16), min(length, _ALL_ONES_32), min(offset, _ALL_ONES_32)):
                raise ArchiveError("its two end records disagree")
    if offset + length != end:
        raise ArchiveError("its directory is not where its end record puts it")
    return count, length, offset


def _wide_directory_place(stream: BinaryIO, end: int, locator: bytes) -> tuple[int, int, int]:
    _, locator_disk, located, disks = _LOCATOR64.unpack(locator)
    if located != end or locator_disk or disks > 1:
        raise ArchiveError("its end record is not where its locator puts it")
    content = read_bytes(stream, end, _END64.size)
    sign, rest, _, _, disk, first_disk, here, count, length, offset = _END64.unpack(content)
    if sign != _END64_SIGN or rest != _END64.size - 12:  # the size leaves out the sign and itself
        raise ArchiveError("its end record is damaged")
    _refuse_parts(disk, first_disk, here, count)
    return count, length, offset


def _refuse_parts(disk: int, first_disk: int, here: int, count: int) -> None:
    if disk or first_disk or here != count:
        raise ArchiveError("it is one part of a zip file in several parts")


def _parse_records(directory: bytes, count: int) -> list[Record]:
    records = []
    at = 0
    for _ in range(count):
        record, at = _parse_record(directory, at)
        records.append(record)
    if at != len(directory):
        raise ArchiveError(_DAMAGED)
    return records


def _parse_record(directory: bytes, at: int) -> tuple[Record, int]:
    """The record whose entry begins at this offset, and the offset of the next entry."""
    if len(directory) - at < _ENTRY.size:
        raise ArchiveError(_DAMAGED)
    fields = _ENTRY.unpack_from(directory, at)
    sign, _, _, flags, method, _, _, checksum, packed, size, name_length, extra_length, comment_length, disk = fields[
        :14
    ]
    header = fields[-1]
    name_end = at + _ENTRY.size + name_length
    stored_name = directory[name_end - name_length : name_end]
    extra = directory[name_end : name_end + extra_length]
    after = name_end + extra_length + comment_length
    if sign != _ENTRY_SIGN or disk:
        raise ArchiveError(_DAMAGED)
    name = _decode_name(stored_name, flags)
    size, packed, header = _widen(extra, (size, packed, header))
    _refuse_packed(name, flags, method)
    if packed != size:
        raise ArchiveError(f"its record {quoted(name)} has two sizes")
    return Record(name, stored_name, size, checksum, header), after


def _decode_name(stored: bytes, flags: int) -> str:
    # Without the flag, readers differ in how they decode a name that is not ASCII.
    try:
        name = stored.decode("utf-8" if flags & _IS_UTF8 else "ascii")
    except UnicodeDecodeError:
        raise ArchiveError("it has a record whose name is not text") from None
    if "\0" in name:
        raise ArchiveError(f"its record {quoted(name)} has a name that some readers cut short")
    return name


def _refuse_packed(name: str, flags: int, method: int) -> None:
    if method or flags & ~(_SIZES_FOLLOW | _IS_UTF8):
        raise ArchiveError(f"its record {quoted(name)} is compressed or encrypted, which torch's are not")


def _widen(extra: bytes, values: Sequence[int]) -> list[int]:
    """The numbers of a header. Those that do not fit into 32 bits are in its extra field."""
    if _ALL_ONES_32 not in values:
        return list(values)
    wide = _wide_field(extra)
    if len(wide) < 8 * values.count(_ALL_ONES_32):
        raise ArchiveError(_DAMAGED)
    numbers = iter(struct.unpack_from(f"<{len(wide) // 8}Q", wide))
    return [next(numbers) if value == _ALL_ONES_32 else value for value in values]


def _wide_field(extra: bytes) -> bytes:
    """The part of a header's extra field that holds wide numbers."""
    at = 0
    while at + 4 <= len(extra):
        field_id, length = struct.unpack_from("<2H", extra, at)
        at += 4
        if field_id == _WIDE_FIELD:
            return extra[at : at + length]
        at += length
    return b""


def _data_offset(stream: BinaryIO, record: Record, end: int) -> int:
    """The offset of a record's data. Raises ArchiveError if the record's header disagrees with the directory."""
    name_end = record.header + _LOCAL.size + len(record.stored_name)
    if name_end > end:
        raise ArchiveError(f"its record {quoted(record.name)} reaches beyond the records")
    header = read_bytes(stream, record.header, name_end - record.header)
    sign, _, flags, method, _, _, _, packed, size, name_length, extra_length = _LOCAL.unpack_from(header)
    if sign != _LOCAL_SIGN or name_length != len(record.stored_name) or header[_LOCAL.size :] != record.stored_name:
        raise ArchiveError(f"its record {quoted(record.name)} is not where its directory puts it")
    _refuse_packed(record.name, flags, method)
    offset: int = name_end + extra_length
    if _ALL_ONES_32 in (size, packed):
        size, packed = _widen(read_bytes(stream, name_end, extra_length), (size, packed))
    not_yet_known = {0} if flags & _SIZES_FOLLOW else set()
    if not {size, packed} <= {record.size} | not_yet_known:
        raise ArchiveError(f"its record {quoted(record.name)} has two sizes")
    return offset
