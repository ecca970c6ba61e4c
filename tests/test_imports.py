"""Which module may import which, and that neither torch nor transformers is imported where nothing is scanned."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from spectrum.checkpoint.disk import fingerprint
from spectrum.records import LayerSnr, Provenance, ScanResult
from spectrum.scanning.store import ScanStore
from tests.helpers.paths import ROOT, TINY_LLAMA
from tests.helpers.records import PROVENANCE

# Downwards only. A folder is named by its path, a module at the top by its name; `spectrum` is the package itself.
FOUNDATION = {"records", "display", "layer_types", "dtypes", "files", "text", "errors", "version"}
ALLOWED: dict[str, set[str]] = {
    "version": set(),
    "dtypes": set(),
    "text": set(),
    "errors": {"text"},
    "layer_types": {"errors", "text"},
    "display": {"errors", "text"},
    "records": {"display", "text"},
    "files": {"errors", "text"},
    "checkpoint.disk": {*FOUNDATION, "torch"},
    "checkpoint.remote": {*FOUNDATION, "checkpoint.disk", "huggingface_hub", "torch"},
    "checkpoint.mapping": {*FOUNDATION, "checkpoint.disk", "huggingface_hub", "torch", "transformers"},
    "checkpoint": {
        *FOUNDATION,
        *("checkpoint.disk", "checkpoint.mapping", "checkpoint.remote", "huggingface_hub", "torch", "transformers"),
    },
    "compute": {*FOUNDATION, "torch"},
    "selection": {*FOUNDATION, "yaml"},
    "scanning": {
        *FOUNDATION,
        *("checkpoint", "checkpoint.disk", "compute", "accelerate", "filelock", "numpy", "torch", "tqdm"),
    },
    "trainers": {*FOUNDATION, "selection", "torch", "yaml"},
    "trainers.readers": {*FOUNDATION, "trainers"},
    "trainers.checking": {*FOUNDATION, "trainers", "trainers.readers"},
    "trainers.formats": {*FOUNDATION, "selection", "trainers", "yaml"},
    "verification": {
        *FOUNDATION,
        *("checkpoint", "checkpoint.disk", "checkpoint.remote", "selection", "trainers", "trainers.readers", "torch"),
    },
    "plots": {*FOUNDATION, "selection", "matplotlib", "numpy"},
    "plots.page": {*FOUNDATION, "plots", "selection", "trainers", "trainers.formats"},
    "api": {
        *FOUNDATION,
        *(
            "checkpoint",
            "checkpoint.remote",
            "compute",
            "plots",
            "plots.page",
            "scanning",
            "selection",
            "torch",
            "tqdm",
        ),
        *("trainers", "verification"),
    },
    "cli.console": {
        *FOUNDATION,
        *("checkpoint.remote", "compute", "scanning", "selection", "prompt_toolkit", "tqdm", "trainers"),
        "trainers.formats",
    },
    "cli": {
        *FOUNDATION,
        *("checkpoint", "checkpoint.remote", "cli.console", "scanning", "selection", "plots", "plots.page"),
        *("trainers", "trainers.checking", "trainers.formats", "trainers.readers", "verification"),
    },
    "spectrum": {"version", "api"},
    "__main__": {"cli"},
}


def modules() -> dict[str, ast.Module]:
    """All modules by their dotted names within the package, which itself is `spectrum`."""
    found = {}
    for path in (ROOT / "spectrum").rglob("*.py"):
        parts = path.relative_to(ROOT / "spectrum").with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__") or "spectrum"
        found[name] = ast.parse(path.read_text())
    return found


def is_folder(name: str) -> bool:
    return (ROOT / "spectrum" / name.replace(".", "/")).is_dir()


def place(name: str) -> str:
    """The folder that a module is in; a module at the top is a place of its own."""
    return name if is_folder(name) or "." not in name else name.rpartition(".")[0]


def imported(tree: ast.Module) -> Iterator[str]:
    """Absolute names of all that is imported, within functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(filter(None, ["spectrum"] * (node.level > 0) + [node.module or ""]))
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def arrows(tree: ast.Module) -> set[str]:
    """Imported modules of the package by their dotted names, others by their top-level package; no standard library."""
    found = set()
    for name in imported(tree):
        top, _, rest = name.partition(".")
        if top == "spectrum":
            while rest and not (is_folder(rest) or (ROOT / "spectrum" / f"{rest.replace('.', '/')}.py").is_file()):
                rest = rest.rpartition(".")[0]  # a name within the module
            found.add(rest or "spectrum")
        elif top not in sys.stdlib_module_names:
            found.add(top)
    return found


def test_every_folder_imports_only_what_the_diagram_allows() -> None:
    drawn: dict[str, set[str]] = {}
    for name, tree in modules().items():
        drawn.setdefault(place(name), set()).update(map(place, arrows(tree)))
    assert drawn.keys() == ALLOWED.keys()
    assert {name: extra for name in drawn if (extra := drawn[name] - ALLOWED[name] - {name})} == {}


def test_the_diagram_has_no_cycle() -> None:
    # Raises CycleError, which names the cycle.
    TopologicalSorter(ALLOWED).prepare()


def test_no_modules_import_each_other() -> None:
    TopologicalSorter({name: arrows(tree) for name, tree in modules().items()}).prepare()


def test_a_folder_says_what_it_is_for_and_nothing_else() -> None:
    for name, tree in modules().items():
        if is_folder(name) and name != "spectrum":
            assert ast.get_docstring(tree), name
            assert len(tree.body) == 1, name


def test_no_module_is_long_and_no_folder_full() -> None:
    kinds = [path for kind in ("py", "js", "css", "html") for path in (ROOT / "spectrum").rglob(f"*.{kind}")]
    assert {path.suffix for path in kinds} == {".py", ".js", ".css", ".html"}
    sizes = {path: len(path.read_text().splitlines()) for path in kinds}
    assert {path.name: size for path, size in sizes.items() if size > 300} == {}
    counts = Counter((path.parent.name, path.suffix) for path in sizes if path.name != "__init__.py")
    assert {folder: count for folder, count in counts.items() if count > 10} == {}


def test_every_package_that_is_imported_is_declared() -> None:
    toml: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # which pytest brings
    project = toml.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["plot"]]
    declared = {normalized(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}
    packages = {name for tree in modules().values() for name in arrows(tree)} - modules().keys()
    distributions = packages_distributions()  # under Python 3.10 not of all, but of those whose names differ
    undeclared = {name for name in packages if declared.isdisjoint(map(normalized, distributions.get(name, [name])))}
    assert undeclared == set()


def normalized(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_only_the_command_line_prints() -> None:
    printing = {
        name
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing == {"cli.console.terminal"}


PROBE = """
import sys
from spectrum.cli.entry import main
try:
    status = main(sys.argv[1:])
except SystemExit as stop:
    status = stop.code
print(status, *sorted({"torch", "transformers", "matplotlib"} & sys.modules.keys()), file=sys.stderr)
"""


def cached(directory: Path, model: str, made: Provenance | None) -> list[str]:
    """A scan in the cache, and the arguments of a run that is served from it."""
    layers = tuple(LayerSnr(f"h.{i}.mlp", "mlp", float(i)) for i in range(4))
    ScanStore(directory, model).save(ScanResult(model, layers, (), ("mlp",), made))
    return ["--model-name", model, "--results-dir", str(directory), "--output-dir", str(directory / "out")]


@pytest.mark.parametrize(
    ("case", "status"),
    [
        ("help", 0),
        ("version", 0),
        ("usage error", 2),
        ("damaged cache", 1),
        ("reference's cache", 0),
        ("cache of a repository", 0),
        ("cache of a repository, with its page", 0),
        ("cache of a directory", 0),
    ],
)
def test_no_large_package_is_imported_where_nothing_is_scanned(tmp_path: Path, case: str, status: int) -> None:
    if case == "cache of a directory":
        made = replace(PROVENANCE, commit=None, fingerprint=fingerprint.fingerprint(TINY_LLAMA))
        arguments = cached(tmp_path, str(TINY_LLAMA), made)
    elif case in ("help", "version"):
        arguments = [f"--{case}"]
    elif case == "usage error":
        arguments = ["--top-percent", "0"]
    else:
        arguments = cached(tmp_path, "org/m", PROVENANCE if "repository" in case else None)
        if case == "damaged cache":
            ScanStore(tmp_path, "org/m").scan_path.write_text("")
        arguments += ["--plot", "scores.html"] if "page" in case else []

    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf-home"), "HF_HUB_OFFLINE": "1"}
    probe = [sys.executable, "-c", PROBE, *arguments]
    done = subprocess.run(probe, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)

    assert done.stderr.splitlines()[-1] == str(status), done.stderr
    # Served from the cache, not by a scan that failed.
    assert (tmp_path / "out").is_dir() == ("cache" in case and status == 0)
    assert (tmp_path / "scores.html").is_file() == ("page" in case)
