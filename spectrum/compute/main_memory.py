"""How much main memory this process may still take: what is free, and what its groups and its own limits leave of it.

A process may be in a group of a container, a service manager or a cluster's queue (cgroup v1 or v2), which has a limit,
as has each group that this one is in: whoever goes beyond is killed. A limit of the process's own (RLIMIT_AS,
RLIMIT_DATA) makes allocations fail. Each of these can be unknown, and is then left out. Standard library only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_UNKNOWN = 8 << 30  # bytes: a small machine of today
_MOST_READ = 1 << 20  # bytes of any file: room for thousands of mounts

# The kernel writes the largest number that it can count to where a v1 group has no limit.
_NO_LIMIT = 1 << 60

# The process's own limits, as /proc/self/limits and /proc/self/status name them, and what counts towards them.
_OWN_LIMITS = (("Max address space", "VmSize:"), ("Max data size", "VmData:"))


class _Kind(NamedTuple):
    """A version of groups: its mounts' type, and its files.

    limits: beyond the one a process is killed, beyond the other it is held up. reclaimable: the line of memory.stat
    that has the files' pages of a group and all within it which are given up for whoever needs memory.
    """

    mounted_as: str
    limits: tuple[str, ...]
    used: str
    reclaimable: str


class _Mount(NamedTuple):
    """Where a hierarchy of groups, or a part of it, is seen. root: the path in it of the group at `point`."""

    root: str
    point: str


_V1 = _Kind("cgroup", ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Kind("cgroup2", ("memory.max", "memory.high"), "memory.current", "inactive_file")


def available(root: Path = Path("/")) -> int:
    """Bytes of main memory that this process can take without swapping, and within all limits that it is under.

    root: of the file system that has `proc` and `sys`. Never negative, and never fails: where nothing is known of the
    machine's memory, half of what it has in all counts as free.
    """
    known = [_free(root), *_left_by_groups(root), *_left_by_own_limits(root)]
    return max(0, min((size for size in known if size is not None), default=_UNKNOWN))


def _free(root: Path) -> int | None:
    """Bytes that are free on the machine, or would be without files' pages."""
    free = _field(_text(root / "proc/meminfo"), "MemAvailable:")
    if free is not None:
        return free << 10
    with suppress(AttributeError, OSError, ValueError):
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return pages * size // 2 if pages > 0 and size > 0 else None  # -1 where the system does not tell
    return None


def _left_by_own_limits(root: Path) -> Iterator[int]:
    """Bytes that each of the process's own limits leaves."""
    limits, status = (_text(root / "proc/self" / name) for name in ("limits", "status"))
    for limited, counted in _OWN_LIMITS:
        limit, used = _field(limits, limited), _field(status, counted)
        if limit is not None and used is not None:
            yield limit - (used << 10)


def _left_by_groups(root: Path) -> Iterator[int]:
    """Bytes that each limit of the process's groups leaves, and of all groups that these are in."""
    for kind, group in _groups(_text(root / "proc/self/cgroup")):
        mounts = list(_mounts(_text(root / "proc/self/mountinfo"), kind))
        below = [(mount, path) for mount in mounts if (path := _below(group, mount.root)) is not None]
        # A container may see the path that the group has outside, but only the group itself, as the root of a mount.
        for mount, path in below or [(mount, "") for mount in mounts]:
            top = root / mount.point.lstrip("/")
            directory = top / path
            for ancestor in (directory, *directory.parents):
                yield from _left_in(ancestor, kind)
                if ancestor == top:
                    break


def _left_in(directory: Path, kind: _Kind) -> Iterator[int]:
    """Bytes that each limit of a group leaves. Where the use is unknown, that is all of it."""
    limits = [limit for name in kind.limits if (limit := _number(directory / name)) is not None and limit < _NO_LIMIT]
    if limits:
        used = _number(directory / kind.used) or 0
        reclaimable = _field(_text(directory / "memory.stat"), kind.reclaimable) or 0
        yield min(limits) - max(0, used - reclaimable)


def _groups(text: str) -> Iterator[tuple[_Kind, str]]:
    """The process's groups that may limit memory, by the lines of /proc/self/cgroup: `hierarchy:controllers:path`."""
    for line in text.split("\n"):
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            yield _V2, path
        elif "memory" in controllers.split(","):
            yield _V1, path


def _mounts(text: str, kind: _Kind) -> Iterator[_Mount]:
    """Where a kind's groups are seen, by the lines of /proc/self/mountinfo.

    These are: number, parent's number, device, root, mount point, options, any more, `-`, type, source, more options.
    The last ones name the controllers of a v1 hierarchy.
    """
    for line in text.split("\n"):
        fields = line.split(" ")
        with suppress(ValueError, IndexError):
            kept = fields[fields.index("-") + 1] == kind.mounted_as
            if kept and (kind is _V2 or "memory" in fields[-1].split(",")):
                yield _Mount(_unescaped(fields[3]), _unescaped(fields[4]))


def _unescaped(path: str) -> str:
    """A path of mountinfo, where spaces and the like are octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), path)


def _below(group: str, mounted: str) -> str | None:
    """A group's path from the one that is mounted, None if it is not below that.

    Both may begin with `/..`, for what lies outside of the namespace that the process sees groups in.
    """
    if group == mounted:
        return ""
    start = mounted.rstrip("/") + "/"
    path = group.removeprefix(start)
    return None if path == group or ".." in path.split("/") else path.strip("/")


def _field(text: str, name: str) -> int | None:
    """The number that follows a name at the start of a line."""
    found = re.search(rf"^{re.escape(name)}[ \t]+([0-9]{{1,20}})", text, re.MULTILINE)
    return int(found[1]) if found else None


def _number(path: Path) -> int | None:
    """The number that a file consists of."""
    found = re.fullmatch(r"([0-9]{1,20})\s*", _text(path))
    return int(found[1]) if found else None


def _text(path: Path) -> str:
    """What a file holds, as far as that is of use; nothing where it cannot be read."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        return os.fsdecode(file.read(_MOST_READ))
    return ""
