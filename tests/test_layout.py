"""Tests mirror the folders of the package, and what several of them need lies where all may import it from."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.paths import ROOT

TESTS = ROOT / "tests"


def test_every_folder_of_the_package_has_its_folder_of_tests() -> None:
    folders = {path.parent.relative_to(ROOT / "spectrum") for path in (ROOT / "spectrum").rglob("__init__.py")}
    untested = {str(folder) for folder in folders if not list((TESTS / folder).glob("test_*.py"))}
    assert untested == set()


def test_every_folder_of_tests_is_a_package() -> None:
    # Else two test modules of the same name could not be told apart.
    folders = {path.parent for path in TESTS.rglob("test_*.py")}
    assert {str(folder) for folder in folders if not (folder / "__init__.py").is_file()} == set()


def test_no_test_module_is_imported() -> None:
    found = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in TESTS.rglob("*.py")
        for name in imported(path)
        if name.startswith("tests.") and any(part.startswith("test_") or part == "conftest" for part in name.split("."))
    }
    assert found == set()


def test_fixtures_that_all_share_are_all_that_conftest_has() -> None:
    functions = [
        node for node in ast.parse((TESTS / "conftest.py").read_text()).body if isinstance(node, ast.FunctionDef)
    ]
    assert functions
    assert [node.name for node in functions if not any("fixture" in ast.unparse(d) for d in node.decorator_list)] == []


def imported(path: Path) -> Iterator[str]:
    """Dotted names of all modules that one imports, and of what it takes from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
            origin = ".".join([*package, *filter(None, [node.module])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)
