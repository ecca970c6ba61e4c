"""How much main memory this process may still allocate: the smallest of what the machine and each limit leave free.

There are two sorts of limits. A container, a service manager or a cluster's queue puts a process into a control group
(cgroup v1 or v2). Each group and each of its ancestors may have a limit, and a process that exceeds one is killed. The
process's own limits (RLIMIT_AS, RLIMIT_DATA) make allocations fail. A limit that cannot be read is left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_UNKNOWN = 8 << 30  # bytes of free memory to assume if nothing is known: what a small machine has
_MAX_READ = 1 << 20  # bytes to read of any file: enough for thousands of mounts

# A v1 group without a limit shows the kernel's largest number instead. No real limit is as large as this.
_NO_LIMIT = 1 << 60

# The process's own limits: the name in /proc/self/limits, and the name in /proc/self/status of what counts towards it.
_OWN_LIMITS = (("Max address space", "VmSize:"), ("Max data size", "VmData:"))


class _CgroupVersion(NamedTuple):
    """Where a version of control groups has its numbers: names of files in the directory of a group.

    Args:
        mounted_as: the type of its file systems, in /proc/self/mountinfo.
        limits: files with limits. Beyond the first a process is killed, beyond the second it is slowed down.
        used: the file with the memory in use.
        reclaimable: the line of memory.stat with the page cache that the kernel frees when memory is needed. It counts
            the group and all groups below it.
    """

    mounted_as: str
    limits: tuple[str, ...]
    used: str
    reclaimable: str


class _Mount(NamedTuple):
    """Where a hierarchy of groups, or a part of it, is mounted.

    Args:
        root: the path, within the hierarchy, of the group at `point`.
        point: the directory.
    """

    root: str
    point: str


_V1 = _CgroupVersion("cgroup", ("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _CgroupVersion("cgroup2", ("memory.max", "memory.high"), "memory.current", "inactive_file")


def available(root: Path = Path("/")) -> int:
    """Bytes of main memory that this process can take without swapping and within all its limits. Never negative.

    Never fails: if the system does not say how much memory is free, half of all memory counts as free.

    Args:
        root: the directory that holds `proc` and `sys`.
    """
    sizes = [_free(root), *_left_by_groups(root), *_left_by_own_limits(root)]
    return max(0, min((size for size in sizes if size is not None), default=_UNKNOWN))


def _free(root: Path) -> int | None:
    """Bytes that are free on the machine, page cache included; None if the system does not say."""
    free = _field(_text(root / "proc/meminfo"), "MemAvailable:")
    if free is not None:
        return free << 10
    with suppress(AttributeError, OSError, ValueError):
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return pages * size // 2 if pages > 0 and size > 0 else None  # -1 if the system does not say
    return None


def _left_by_own_limits(root: Path) -> Iterator[int]:
    """Bytes that each of the process's own limits leaves free."""
    limits, status = (_text(root / "proc/self" / name) for name in ("limits", "status"))
    for limited, counted in _OWN_LIMITS:
        limit, used = _field(limits, limited), _field(status, counted)
        if limit is not None and used is not None:
            yield limit - (used << 10)


def _left_by_groups(root: Path) -> Iterator[int]:
    """Bytes that the limits of the process's groups and of their ancestors leave free, for each group."""
    for version, group in _groups(_text(root / "proc/self/cgroup")):
        mounts = list(_mounts(_text(root / "proc/self/mountinfo"), version))
        below = [(mount, path) for mount in mounts if (path := _below(group, mount.root)) is not None]
        # In a container, the path may be that on the host, while only the group itself is mounted, as the root.
        for mount, path in below or [(mount, "") for mount in mounts]:
            top = root / mount.point.lstrip("/")
            directory = top / path
            for ancestor in (directory, *directory.parents):
                yield from _left_in(ancestor, version)
                if ancestor == top:
                    break


def _left_in(directory: Path, version: _CgroupVersion) -> Iterator[int]:
    """Bytes that the limits of one group leave free, if it has any. Unknown use counts as none."""
    limits = [
        limit for name in version.limits if (limit := _number(directory / name)) is not None and limit < _NO_LIMIT
    ]
    if limits:
        used = _number(directory / version.used) or 0
        reclaimable = _field(_text(directory / "memory.stat"), version.reclaimable) or 0
        yield min(limits) - max(0, used - reclaimable)


def _groups(text: str) -> Iterator[tuple[_CgroupVersion, str]]:
    """The groups that may limit memory, from /proc/self/cgroup, whose lines are `hierarchy:controllers:path`."""
    for line in text.split("\n"):
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0":
            yield _V2, path
        elif "memory" in controllers.split(","):
            yield _V1, path


def _mounts(text: str, version: _CgroupVersion) -> Iterator[_Mount]:
    """Where the groups of a version are mounted, from /proc/self/mountinfo.

    Its lines are: number, parent's number, device, root, mount point, options, optional fields, `-`, type, source, and
    options of the file system, which name the controllers of a v1 hierarchy.
    """
    for line in text.split("\n"):
        fields = line.split(" ")
        with suppress(ValueError, IndexError):
            kept = fields[fields.index("-") + 1] == version.mounted_as
            if kept and (version is _V2 or "memory" in fields[-1].split(",")):
                yield _Mount(_unescaped(fields[3]), _unescaped(fields[4]))


def _unescaped(path: str) -> str:
    """A path from mountinfo, in which spaces and some other characters are octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), path)


def _below(group: str, mounted: str) -> str | None:
    """A group's path relative to the mounted group; None if it is not below that.

    Both may begin with `/..`, for groups outside the process's namespace of groups.
    """
    if group == mounted:
        return ""
    start = mounted.rstrip("/") + "/"
    path = group.removeprefix(start)
    return None if path == group or ".." in path.split("/") else path.strip("/")


def _field(text: str, name: str) -> int | None:
    """The number after this name at the start of a line; None if there is none."""
    found = re.search(rf"^{re.escape(name)}[ \t]+([0-9]{{1,20}})", text, re.MULTILINE)
    return int(found[1]) if found else None


def _number(path: Path) -> int | None:
    """The number that a file consists of; None for any other content."""
    found = re.fullmatch(r"([0-9]{1,20})\s*", _text(path))
    return int(found[1]) if found else None


def _text(path: Path) -> str:
    """The start of a file, up to `_MAX_READ` bytes; empty if it cannot be read."""
    with suppress(OSError, ValueError), path.open("rb") as file:
        return os.fsdecode(file.read(_MAX_READ))
    return ""
