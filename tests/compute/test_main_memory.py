"""How much memory a process may still take, from made-up `proc` and `sys` directories and under real limits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from spectrum.compute import main_memory
from spectrum.compute.devices import all_cores
from tests.helpers.command import Finished, assert_refused, run, tiny_llama
from tests.helpers.paths import ROOT

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="limits as Linux sets them")

FREE = 1 << 40  # bytes of free memory, more than all limits in these tests
MEMINFO = f"MemTotal: 9 kB\nMemFree: 7 kB\nMemAvailable:   {FREE >> 10} kB\nBuffers: 8 kB\n"
V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 master:2 - cgroup cgroup rw,memory\n"
OTHERS = (
    "22 27 0:21 / /proc rw,relatime - proc proc rw\n"
    "31 23 0:28 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n"
    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
    "33 31 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=memory\n"
)
NONE_V1 = 9223372036854771712


def tree(root: Path, files: Mapping[str, str]) -> Path:
    """A root directory with files in it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def grouped(root: Path, group: str, mounts: str, files: Mapping[str, str] | None = None) -> Path:
    """A machine with free memory, and a process in a group."""
    proc = {"proc/meminfo": MEMINFO, "proc/self/cgroup": group, "proc/self/mountinfo": mounts}
    return tree(root, proc | dict(files or {}))


def v2(directory: str, most: int | str, used: int, pages: int = 0, high: int | str = "max") -> dict[str, str]:
    """The files of a group, and some others."""
    return {
        f"{directory}/memory.max": f"{most}\n",
        f"{directory}/memory.high": f"{high}\n",
        f"{directory}/memory.current": f"{used}\n",
        f"{directory}/memory.stat": f"anon 5\nfile 6\nother_inactive_file 9999\ninactive_file {pages}\nactive_file 8\n",
        f"{directory}/memory.swap.max": "1\n",
        f"{directory}/memory.low": "1\n",
    }


def v1(directory: str, most: int | str, used: int, pages: int = 0) -> dict[str, str]:
    return {
        f"{directory}/memory.limit_in_bytes": f"{most}\n",
        f"{directory}/memory.usage_in_bytes": f"{used}\n",
        f"{directory}/memory.stat": f"cache 5\ninactive_file 3\nhierarchical_memory_limit 4\n"
        f"total_inactive_anon 6\ntotal_inactive_file {pages}\n",
        f"{directory}/memory.soft_limit_in_bytes": "1\n",
    }


# Free memory.


def test_without_limits_it_is_what_the_machine_has_free(tmp_path: Path) -> None:
    assert main_memory.available(tree(tmp_path, {"proc/meminfo": MEMINFO})) == FREE
    assert main_memory.available(grouped(tmp_path, "0::/\n", OTHERS + V2)) == FREE


@pytest.mark.parametrize(
    "meminfo", [None, "", "MemTotal: 900 kB\nMemFree: 800 kB\n", "MemAvailable: many kB\n", "\0\xff"]
)
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"SC_PHYS_PAGES": 1001, "SC_PAGE_SIZE": 4096}, 1001 * 4096 // 2),
        ({"SC_PHYS_PAGES": -1, "SC_PAGE_SIZE": 4096}, 8 << 30),
        (ValueError("unrecognized configuration name"), 8 << 30),
        (OSError(22, "Invalid argument"), 8 << 30),
        (None, 8 << 30),
    ],
)
def test_where_nothing_is_known_half_of_the_machine_s_memory_counts(
    meminfo: str | None,
    answer: dict[str, int] | Exception | None,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def sysconf(name: str) -> int:
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None
        return answer[name]

    if answer is None:  # Windows
        monkeypatch.delattr(os, "sysconf", raising=False)
    else:
        monkeypatch.setattr(os, "sysconf", sysconf, raising=False)
    root = tree(tmp_path, {} if meminfo is None else {"proc/meminfo": meminfo})
    assert main_memory.available(root) == expected
    grouped(root, "0::/a\n", V2, v2("sys/fs/cgroup/a", 1000, 400))
    assert main_memory.available(root) == 600


# Groups.


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (v2("a", 1000, 400), 600),
        (v2("a", 1000, 400, pages=150), 750),
        (v2("a", 1000, 400, pages=9000), 1000),
        (v2("a", 400, 1000), 0),
        (v2("a", 0, 0), 0),
        (v2("a", "max", 400), FREE),
        (v2("a", 2 * FREE, 400), FREE),
        (v2("a", "max", 400, pages=150, high=700), 450),
        (v2("a", 1000, 400, high=700), 300),
        (v2("a", 700, 400, high=1000), 300),
        (v2("a", 1000, 400, high=0), 0),
        # Every ancestor counts, and the mount point as well.
        (v2("a/b/c", 1000, 400) | v2("a/b", 900, 500) | v2("a", 5000, 600) | v2("", 7000, 700), 400),
        (v2("a/b/c", "max", 400) | v2("a/b", 5000, 500) | v2("a", 800, 600, pages=10), 210),
        (v2("a/b/c", 300, 100) | v2("a/b", 5000, 500) | v2("a", 800, 100), 200),
        (v2("", 1000, 300), 700),
        # Groups beside the process's own do not count, nor do groups below it.
        (v2("a/b/c", 1000, 300) | v2("a/b/c/d", 500, 400) | v2("a/x", 500, 400) | v2("x", 500, 400), 700),
    ],
)
def test_a_group_and_all_that_it_is_in_have_limits(files: dict[str, str], expected: int, tmp_path: Path) -> None:
    seen = {f"sys/fs/cgroup/{name.lstrip('/')}": text for name, text in files.items()}
    seen |= v2("sys/fs", 1, 1)  # above the mount
    group = "a/b/c" if any(name.startswith("a/b/c/") for name in files) else "a"
    assert main_memory.available(grouped(tmp_path, f"0::/{group}\n", OTHERS + V2, seen)) == expected


@pytest.mark.parametrize("controllers", ["memory", "cpu,memory", "memory,hugetlb"])
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (v1("job/step", 1000, 400, pages=150), 750),
        (v1("job/step", NONE_V1, 400), FREE),
        (v1("job/step", 2**63 - 1, 400), FREE),
        (v1("job/step", NONE_V1, 400) | v1("job", 900, 500) | v1("", NONE_V1, 600), 400),
        (v1("job/step", 700, 400) | v1("job", 900, 500, pages=1) | v1("", 2000, 1900), 100),
    ],
)
def test_a_group_of_version_1_has_limits(
    controllers: str, files: dict[str, str], expected: int, tmp_path: Path
) -> None:
    seen = {f"sys/fs/cgroup/{controllers}/{name.lstrip('/')}": text for name, text in files.items()}
    mounts = OTHERS + V1.replace("memory", controllers)
    groups = f"9:name=systemd:/a\n4:{controllers}:/job/step\n3:cpuset:/\n"
    assert main_memory.available(grouped(tmp_path, groups, mounts, seen)) == expected


def test_where_no_limit_of_version_1_is_known_its_large_number_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sysconf", raising=False)
    root = grouped(tmp_path, "4:memory:/a\n", V1, v1("sys/fs/cgroup/memory/a", NONE_V1, 400))
    (root / "proc/meminfo").unlink()
    assert main_memory.available(root) == 8 << 30


def test_only_the_hierarchy_of_memory_counts(tmp_path: Path) -> None:
    elsewhere = v1("sys/fs/cgroup/cpu/a", 10, 0) | v1("sys/fs/cgroup/systemd/a", 10, 0)
    groups = "9:name=memory:/a\n4:memory:/b\n3:cpu:/a\n"
    root = grouped(tmp_path, groups, OTHERS + V1, elsewhere | v1("sys/fs/cgroup/memory/a", 10, 0))
    assert main_memory.available(root) == FREE
    tree(root, v1("sys/fs/cgroup/memory/b", 1000, 1))
    assert main_memory.available(root) == 999


@pytest.mark.parametrize("tight", [1, 2])
def test_both_versions_count_where_both_are_mounted(tight: int, tmp_path: Path) -> None:
    mounts = OTHERS + V1 + V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    files = v1("sys/fs/cgroup/memory/a", 300 if tight == 1 else 900, 100) | v2(
        "sys/fs/cgroup/unified/b", 300 if tight == 2 else 900, 100
    )
    assert main_memory.available(grouped(tmp_path, "4:memory:/a\n0::/b\n", mounts, files)) == 200


@pytest.mark.parametrize(
    ("group", "mounted", "directory", "expected"),
    [
        ("/docker/1/a", "/docker/1", "a", 600),  # the mount shows a part of the hierarchy
        ("/docker/1", "/docker/1", "", 600),
        ("/", "/", "", 600),  # a namespace: the container's group is the root
        ("/a", "/..", "", 600),  # the namespace began after the mount
        ("/../a", "/..", "a", 600),
        (
            "/docker/1/a",
            "/docker/2",
            "",
            600,
        ),  # the group is outside the mounted part, so only the mounted group is known
        ("/docker/12", "/docker/1", "", 600),
        ("/docker", "/docker/1", "", 600),
        ("/../other", "/", "", 600),
        ("/../../other", "/..", "", 600),
        ("/docker/1/a", "/docker/2", "docker/1/a", FREE),
        ("/docker/12", "/docker/1", "2", FREE),
        ("/../other", "/", "../other", FREE),
        ("/a (deleted)", "/", "", 600),
        ("/with:colon/a", "/", "with:colon/a", 600),
        ("//a", "/", "a", 600),
        ("/ü/a\\x2db c\u2028", "/ü", "a\\x2db c\u2028", 600),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_container_sees_a_part(
    version: int, group: str, mounted: str, directory: str, expected: int, tmp_path: Path
) -> None:
    line, files, number = (V1, v1, "4:memory") if version == 1 else (V2, v2, "0:")
    point = line.split()[4]
    mounts = line.replace(" / ", f" {mounted} ")
    root = grouped(tmp_path, f"{number}:{group}\n", OTHERS + mounts, files(f"{point[1:]}/{directory}", 1000, 400))
    assert main_memory.available(root) == expected


def test_of_several_mounts_those_count_that_have_the_group(tmp_path: Path) -> None:
    mounts = V2.replace(" / /sys/fs/cgroup", " /pods/2 /mnt/two") + V2.replace(" / ", " /pods ")
    files = v2("sys/fs/cgroup/1", 1000, 400) | v2("mnt/two", 100, 0)
    root = grouped(tmp_path, "0::/pods/1\n", mounts, files)
    assert main_memory.available(root) == 600
    tree(root, v2("sys/fs/cgroup", 1000, 100) | {"proc/self/cgroup": "0::/pods\n"})
    assert main_memory.available(root) == 900
    (root / "proc/self/cgroup").write_text("0::/elsewhere\n")
    assert main_memory.available(root) == 100


def test_paths_of_mounts_may_hold_spaces_and_backslashes(tmp_path: Path) -> None:
    mounts = V2.replace(" / /sys/fs/cgroup", " /a\\134x2db\\040c /mnt/of\\040all\\011\u2028groups\\134")
    root = grouped(tmp_path, "0::/a\\x2db c/d\n", mounts, v2("mnt/of all\t\u2028groups\\/d", 1000, 400))
    assert main_memory.available(root) == 600


@ON_LINUX
def test_paths_may_be_no_text(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff\xfe")
    root = grouped(tmp_path, "", "", v2(f"cg/{name}/{name}", 1000, 400))
    (root / "proc/self/cgroup").write_bytes(b"0::/\xff\xfe\n")
    (root / "proc/self/mountinfo").write_bytes(b"30 23 0:26 / /cg/\xff\xfe rw - cgroup2 cgroup2 rw\n")
    assert main_memory.available(root) == 600


def test_mounts_may_have_no_source_and_many_tags(tmp_path: Path) -> None:
    mounts = "30 23 0:26 / /cg rw shared:9 master:3 propagate_from:2 unbindable - cgroup2  rw\n"
    assert main_memory.available(grouped(tmp_path, "0::/a\n", mounts, v2("cg/a", 1000, 400))) == 600


# Files that cannot be read.


@pytest.mark.parametrize(
    "text", ["", "\n", "max\n", "-1\n", "1e3\n", "1_000\n", "10 20\n", "\u0663\n", "9" * 5000, "\0"]
)
def test_a_limit_that_is_no_number_is_none_and_the_parents_count(text: str, tmp_path: Path) -> None:
    files = v2("sys/fs/cgroup/a/b", 10, 0) | v2("sys/fs/cgroup/a", 1000, 400)
    root = grouped(tmp_path, "0::/a/b\n", V2, files | {"sys/fs/cgroup/a/b/memory.max": text})
    assert main_memory.available(root) == 600


def test_a_limit_that_cannot_be_read_is_none_and_the_parents_count(tmp_path: Path) -> None:
    root = grouped(tmp_path, "0::/a/b/c\n", V2, v2("sys/fs/cgroup/a", 1000, 400))
    assert main_memory.available(root) == 600  # the files of the two groups below are missing
    (root / "sys/fs/cgroup/a/b/memory.max").mkdir(parents=True)
    assert main_memory.available(root) == 600


@pytest.mark.parametrize(
    ("lost", "expected"), [("memory.stat", 600), ("memory.current", 1000), ("memory.high", 750), ("memory.max", FREE)]
)
def test_a_group_s_files_may_be_missing(lost: str, expected: int, tmp_path: Path) -> None:
    root = grouped(tmp_path, "0::/a\n", V2, v2("sys/fs/cgroup/a", 1000, 400, pages=150))
    (root / "sys/fs/cgroup/a" / lost).unlink()
    assert main_memory.available(root) == expected


ODD = [
    "",
    "\n\n",
    "nonsense",
    "0",
    "0:",
    "0::",
    "::",
    "0::\0",
    "4:memory",
    "4:memory:",
    "\xff:\xfe",
    f"0::/{'a' * 5000}",
]
ODD_MOUNTS = ["", "\n", "a b c d e f g", "30 23 0:26 / /cg rw -", "30 23 0:26 / /cg rw - cgroup", "- - - - - - - -"]
ODD_MOUNTS += [V2.replace("/sys/fs/cgroup", point) for point in ("", "\0", r"\777", "/../..", "b" * 5000)]


@pytest.mark.parametrize("group", ODD)
@pytest.mark.parametrize("mounts", [V2, V1])
def test_odd_groups_take_no_limit_away_and_give_none(group: str, mounts: str, tmp_path: Path) -> None:
    assert main_memory.available(grouped(tmp_path, group, mounts)) == FREE
    with_one = f"{group}\n{'4:memory' if mounts is V1 else '0:'}:/a\n"
    point = mounts.split()[4][1:]
    files = (v1 if mounts is V1 else v2)(f"{point}/a", 1000, 400)
    assert main_memory.available(grouped(tmp_path, with_one, mounts, files)) == 600


@pytest.mark.parametrize("mounts", ODD_MOUNTS)
def test_odd_mounts_take_no_limit_away_and_give_none(mounts: str, tmp_path: Path) -> None:
    root = grouped(tmp_path / "root", "4:memory:/a\n0::/a\n", mounts)
    assert main_memory.available(root) == FREE
    grouped(root, "4:memory:/a\n0::/a\n", f"{mounts}\n{V2}", v2("sys/fs/cgroup/a", 1000, 400))
    assert main_memory.available(root) == 600


@pytest.mark.parametrize("name", ["meminfo", "self/cgroup", "self/mountinfo", "self/limits", "self/status"])
def test_no_more_is_read_of_a_file_than_is_of_use(name: str, tmp_path: Path) -> None:
    files = {"proc/self/limits": "Max address space 9000 9000 bytes\n", "proc/self/status": "VmSize: 1 kB\n"}
    root = grouped(tmp_path, "0::/a\n", V2, v2("sys/fs/cgroup/a", 1000, 400) | files)
    with (root / "proc" / name).open("ab") as file:
        file.truncate(1 << 40)  # a sparse file, too large for any memory
    assert main_memory.available(root) == 600


# The process's own limits.

LIMITS = (
    "Limit                     Soft Limit           Hard Limit           Units     \n"
    "Max cpu time              1                    1                    seconds   \n"
    "Max data size             {data:<20} unlimited            bytes     \n"
    "Max resident set          1                    1                    bytes     \n"
    "Max address space         {space:<20} 1                    bytes     \n"
)
STATUS = "Name:\tpython\nVmPeak:\t  9999 kB\nVmSize:\t     3 kB\nVmRSS:\t   1 kB\nVmData:\t     2 kB\n"


@pytest.mark.parametrize(
    ("space", "data", "expected"),
    [
        ("unlimited", "unlimited", FREE),
        (9000, "unlimited", 9000 - 3 * 1024),
        ("unlimited", 9000, 9000 - 2 * 1024),
        (9000, 7000, 7000 - 2 * 1024),
        (9000, 8999, 9000 - 3 * 1024),
        (3 * 1024, "unlimited", 0),
        (1, 1, 0),
        (0, 0, 0),
    ],
)
def test_a_process_has_limits_of_its_own(space: int | str, data: int | str, expected: int, tmp_path: Path) -> None:
    limits = LIMITS.format(space=space, data=data)
    files = {"proc/meminfo": MEMINFO, "proc/self/limits": limits, "proc/self/status": STATUS}
    assert main_memory.available(tree(tmp_path, files)) == expected
    (tmp_path / "proc/self/status").write_text("Name:\tpython\n")
    assert main_memory.available(tmp_path) == FREE


# Real limits.

PROBE = """
import resource, sys
from spectrum.compute import main_memory
free, name, most = main_memory.available(), sys.argv[1], int(sys.argv[2])
resource.setrlimit(getattr(resource, name), (most, resource.RLIM_INFINITY))
print(free, main_memory.available())
"""


@pytest.mark.slow
@ON_LINUX
@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_the_limits_that_a_process_sets_are_known(name: str) -> None:
    most = 300 << 20
    done = subprocess.run(
        [sys.executable, "-c", PROBE, name, str(most)], capture_output=True, text=True, timeout=60, check=True
    )
    free, left = map(int, done.stdout.split())
    assert 100 << 20 < left < most < free


Limited = Callable[..., Finished]

SCAN = ["--top-percent", "50", "--device", "cpu", "--batch-size", "auto", "--layer-types", "all"]
LANES = 8  # threads; with enough memory each would score a matrix
SCORES = "model_snr_results/snr_results_model.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 128 MiB, with three matrices that take 96 MiB each to score, and four of 72."""
    directory = tmp_path_factory.mktemp("large") / "model"
    sizes: dict[str, Any] = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16}
    return tiny_llama(directory, "bfloat16", **sizes, num_key_value_heads=16)


@pytest.fixture(scope="module")
def unlimited(model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The scores of a scan without a limit."""
    directory = tmp_path_factory.mktemp("unlimited")
    (directory / "model").symlink_to(model)
    with all_cores():
        done = run(directory, "--model-name", "model", *SCAN)
    assert done.status == 0, done.err
    return (directory / SCORES).read_bytes()


@pytest.fixture
def limited(model: Path, tmp_path: Path) -> Limited:
    """Scan the model with a program in a new process."""

    def scanned(*program: str | Path, **environment: str) -> Finished:
        (tmp_path / "model").symlink_to(model)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "SPECTRUM_", "TRANSFORMERS_"))}
        clean = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf-home"), "OMP_NUM_THREADS": str(LANES)}
        done = subprocess.run(
            [*map(str, program), "--model-name", "model", *SCAN],
            cwd=tmp_path,
            env=kept | clean | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return scanned


def assert_same_scores(directory: Path, expected: bytes) -> None:
    assert json.loads((directory / SCORES).read_bytes()) == json.loads(expected)


UNDER_A_LIMIT = (sys.executable, ROOT / "tests" / "robustness" / "limited_spectrum.py")


@pytest.mark.slow
@ON_LINUX
def test_a_scan_that_may_take_1000_mib_gives_the_same_scores(
    limited: Limited, unlimited: bytes, tmp_path: Path
) -> None:
    done = limited(*UNDER_A_LIMIT, LIMIT="1000")
    assert done.status == 0, done.err
    assert "Traceback" not in done.err
    assert_same_scores(tmp_path, unlimited)


@pytest.mark.slow
@ON_LINUX
def test_a_scan_that_has_no_memory_for_a_matrix_says_so(limited: Limited, tmp_path: Path) -> None:
    done = limited(*UNDER_A_LIMIT, LIMIT="220", OMP_NUM_THREADS="1")  # each thread takes memory too
    assert_refused(done, "no memory", "model.layers.0.mlp.")
    assert not (tmp_path / SCORES).exists()


GROUPS = {
    "/sys/fs/cgroup": ("memory.max", "memory.current"),
    "/sys/fs/cgroup/memory": ("memory.limit_in_bytes", "memory.usage_in_bytes"),
}


@pytest.fixture
def group() -> Iterator[tuple[Path, str]]:
    """A control group within another, and the paths of the outer one's files for its limit and for its use."""
    for top, files in GROUPS.items():
        outer = Path(top, f"spectrum-test-{os.getpid()}")
        limit, used = (outer / name for name in files)
        with suppress(OSError):
            (outer / "within").mkdir(parents=True)
            limit.open("r+").close()
            used.open().close()
            break
        _remove(outer)
    else:
        pytest.skip("no group with a limit of memory can be made here: it takes root, and a /sys/fs/cgroup to write to")
    yield outer / "within", f"{limit}:{used}"
    _remove(outer)


def _remove(outer: Path) -> None:
    for directory in (outer / "within", outer):
        with suppress(FileNotFoundError):
            directory.rmdir()


@pytest.mark.slow
@ON_LINUX
def test_a_scan_keeps_within_the_limit_of_a_group(
    group: tuple[Path, str], limited: Limited, unlimited: bytes, tmp_path: Path
) -> None:
    # Beside its imports, a scan takes 115 MiB if it knows of the limit. Else it takes 240 MiB, and is killed.
    within, files = group
    join = f'echo $$ > "{within}/cgroup.procs" && exec "$@"'
    done = limited("/bin/sh", "-c", join, "sh", *UNDER_A_LIMIT, GROUP=files, LIMIT="180")
    assert done.status == 0, done.err
    assert_same_scores(tmp_path, unlimited)
