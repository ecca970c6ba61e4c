"""Which module may import which, and that neither torch nor transformers is imported where nothing is scanned."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from graphlib import TopologicalSorter
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

from spectrum import results, shards
from spectrum.layers import LayerSnr, Provenance, ScanResult
from tests.conftest import ROOT, TINY_LLAMA
from tests.test_layers import PROVENANCE

# Towards the centre only. `spectrum` is the package itself, the interface for those who import it.
ALLOWED: dict[str, set[str]] = {
    "version": set(),
    "tables": set(),
    "errors": {"tables"},
    "layers": {"errors", "tables"},
    "workspace": set(),
    "snr": {"workspace", "torch"},
    "batching": {"layers", "workspace"},
    "training": {"layers"},
    "confidence": {"layers", "tables"},
    "unfrozen": {"layers", "yaml"},
    "files": set(),
    "patterns": set(),
    "memory": set(),
    "pickles": set(),
    "zips": {"pickles"},
    "archives": {"pickles", "zips"},
    "results": {"errors", "layers", "files"},
    "selection": {"errors", "layers", "tables", "confidence", "results", "training", "unfrozen"},
    "comparison": {"errors", "tables", "selection"},
    "formats": {"errors", "layers", "tables", "selection", "unfrozen", "yaml"},
    "plots": {"errors", "results", "selection", "matplotlib", "numpy"},
    "consumers": {"errors", "files", "patterns", "yaml"},
    "freezing": {"errors", "tables", "consumers", "selection", "unfrozen", "torch"},
    "prompts": {"errors", "batching", "prompt_toolkit"},
    "shards": {"errors", "files", "archives", "torch"},
    "hub": {"errors", "files", "shards", "huggingface_hub"},
    "skeleton": {"errors", "files", "layers", "shards", "huggingface_hub", "torch", "transformers"},
    "outline": {"layers", "hub", "skeleton"},
    "checking": {"layers", "tables", "consumers", "outline"},
    "report": {"layers", "tables", "checking", "selection", "training"},
    "quantization": {"errors", "shards", "skeleton", "transformers"},
    "mapping": {"errors", "layers", "shards", "skeleton", "torch", "transformers"},
    "loading": {"errors", "layers", "shards", "skeleton", "torch"},
    "checkpoint": {
        *("version", "errors", "layers", "shards", "hub", "skeleton", "quantization", "mapping", "loading", "torch"),
    },
    "devices": {"errors", "memory", "torch"},
    "scanning": {"errors", "layers", "batching", "devices", "snr", "torch"},
    "journal": {"layers", "files"},
    "processes": {"errors", "accelerate", "torch"},
    "scans": {
        *("errors", "layers", "tables", "results", "journal", "processes", "batching", "shards", "hub", "checkpoint"),
        *("devices", "scanning", "snr", "accelerate", "filelock", "numpy", "torch"),
    },
    "progress": {"layers", "batching", "scans"},
    "api": {
        *("errors", "layers", "batching", "checkpoint", "processes", "scans", "progress", "selection", "freezing"),
        *("tables", "torch", "tqdm"),
    },
    "commands": {
        *("errors", "layers", "tables", "results", "selection", "confidence", "formats", "comparison", "consumers"),
        *("outline", "checking", "report", "plots", "scans"),
    },
    "cli": {
        *("version", "errors", "layers", "batching", "checkpoint", "prompts", "selection", "formats", "tables"),
        *("processes", "scans", "progress", "commands", "tqdm"),
    },
    "spectrum": {"version", "api"},
    "__main__": {"cli"},
}


def modules() -> dict[str, ast.Module]:
    trees = {path.stem: ast.parse(path.read_text()) for path in (ROOT / "spectrum").glob("*.py")}
    return {("spectrum" if name == "__init__" else name): tree for name, tree in trees.items()}


def imported(tree: ast.Module) -> Iterator[str]:
    """Absolute names of all that is imported, within functions and for type checkers too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(filter(None, ["spectrum"] * (node.level > 0) + [node.module or ""]))
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def arrows(tree: ast.Module) -> set[str]:
    """Imported modules of the package by their own names, others by their top-level package; no standard library."""
    found = set()
    for name in imported(tree):
        top, _, rest = name.partition(".")
        if top == "spectrum":
            module = rest.partition(".")[0]
            found.add(module if (ROOT / "spectrum" / f"{module}.py").is_file() else "spectrum")
        elif top not in sys.stdlib_module_names:
            found.add(top)
    return found


def test_every_module_imports_only_what_the_diagram_allows() -> None:
    drawn = {name: arrows(tree) for name, tree in modules().items()}
    assert drawn.keys() == ALLOWED.keys()
    assert {name: extra for name in drawn if (extra := drawn[name] - ALLOWED[name])} == {}


def test_the_diagram_has_no_cycle() -> None:
    # Raises CycleError, which names the cycle.
    TopologicalSorter({name: arrows(tree) for name, tree in modules().items()}).prepare()


def test_every_package_that_is_imported_is_declared() -> None:
    toml: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # which pytest brings
    project = toml.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [*project["dependencies"], *project["optional-dependencies"]["plot"]]
    declared = {normalized(re.split(r"[^\w.-]", requirement)[0]) for requirement in requirements}
    packages = {name for tree in modules().values() for name in arrows(tree)} - ALLOWED.keys()
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
    assert printing == {"cli"}


PROBE = """
import sys
from spectrum.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as stop:
    status = stop.code
print(status, *sorted({"torch", "transformers"} & sys.modules.keys()), file=sys.stderr)
"""


def cached(directory: Path, model: str, made: Provenance | None) -> list[str]:
    """A scan in the cache, and the arguments of a run that is served from it."""
    layers = tuple(LayerSnr(f"h.{i}.mlp", "mlp", float(i)) for i in range(4))
    results.save(directory, ScanResult(model, layers, (), ("mlp",), made))
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
        ("cache of a directory", 0),
    ],
)
def test_neither_torch_nor_transformers_is_imported_where_nothing_is_scanned(
    tmp_path: Path, case: str, status: int
) -> None:
    if case == "cache of a directory":
        made = replace(PROVENANCE, commit=None, fingerprint=shards.fingerprint(TINY_LLAMA))
        arguments = cached(tmp_path, str(TINY_LLAMA), made)
    elif case in ("help", "version"):
        arguments = [f"--{case}"]
    elif case == "usage error":
        arguments = ["--top-percent", "0"]
    else:
        arguments = cached(tmp_path, "org/m", PROVENANCE if case == "cache of a repository" else None)
        if case == "damaged cache":
            results.scan_path(tmp_path, "org/m").write_text("")

    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf-home"), "HF_HUB_OFFLINE": "1"}
    probe = [sys.executable, "-c", PROBE, *arguments]
    done = subprocess.run(probe, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60)

    assert done.stderr.splitlines()[-1] == str(status), done.stderr
    # Served from the cache, not by a scan that failed.
    assert (tmp_path / "out").is_dir() == ("cache" in case and status == 0)
