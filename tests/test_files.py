"""A directory that disappears during a write is created again; something else in its place is an error."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spectrum.errors import ResultsError
from spectrum.files import beside, in_directory, write_atomically
from spectrum.scanning.journal import Journal, read
from tests.helpers.journals import IDENTITY, SCORES


def gone(monkeypatch: pytest.MonkeyPatch, directory: Path, call: str, times: int, *, before: bool) -> list[None]:
    """Move the directory away before or after the next calls of a Path method; the returned list grows with each."""
    original = getattr(Path, call)
    moves: list[None] = []

    def acting(path: Path, *args: object, **kwargs: object) -> object:
        made = None if before else original(path, *args, **kwargs)
        if len(moves) < times and directory.is_dir():
            moves.append(None)
            directory.rename(directory.with_name(f"gone-{len(moves)}"))
        return original(path, *args, **kwargs) if before else made

    monkeypatch.setattr(Path, call, acting)
    return moves


def keep_scores(directory: Path) -> None:
    path = directory / "scan.journal-0.jsonl"
    journal = Journal(path, IDENTITY)
    journal.append(SCORES)
    journal.close()
    assert journal.write_error is None
    assert read(path, IDENTITY) == dict(SCORES)


def write_text(directory: Path) -> None:
    write_atomically(directory / "file.yaml", "text")
    assert [path.name for path in directory.iterdir()] == ["file.yaml"]
    assert (directory / "file.yaml").read_text() == "text"


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize(
    ("write", "call"),
    [(keep_scores, "mkdir"), (write_text, "mkdir"), (write_text, "replace")],
    ids=["journal opened", "file opened", "file replaced"],
)
def test_a_directory_that_goes_in_mid_write_is_made_again(
    write: Callable[[Path], None], call: str, times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "cache"
    directory.mkdir()
    moves = gone(monkeypatch, directory, call, times, before=call == "replace")
    write(directory)
    assert len(moves) == times


def test_a_directory_that_goes_while_it_is_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir, calls = Path.mkdir, []

    def found_and_gone(path: Path, *args: object, **kwargs: object) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FileExistsError(path)
        mkdir(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", found_and_gone)
    assert in_directory(tmp_path / "cache", (tmp_path / "cache").is_dir)


def test_a_directory_that_goes_every_time_is_an_error_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moves = gone(monkeypatch, tmp_path / "cache", "mkdir", 100, before=False)
    with pytest.raises(FileNotFoundError):
        in_directory(tmp_path / "cache", (tmp_path / "cache" / "file").touch)
    assert 2 <= len(moves) <= 5


def test_a_file_in_the_place_of_a_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(FileExistsError):
        in_directory(tmp_path / "cache", (tmp_path / "cache" / "file").touch)


def test_what_an_editor_has_beside_a_file_is_not_swept(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    ours = beside(path)
    others = [tmp_path / f".list.yaml{end}" for end in (".swp", ".un~", ".mine", ".1234", ".1234.0f3a0f3a.more")]
    for file in (ours, *others):
        file.touch()
        os.utime(file, (0, 0))
    beside(path).touch()  # of a run that is still writing
    write_atomically(path, "text")
    assert not ours.exists()
    assert all(file.exists() for file in others)
    assert len(list(tmp_path.iterdir())) == len(others) + 2


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_not_replaced(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    make(path)
    with pytest.raises(ResultsError, match=f"cannot write {path}: "):
        write_atomically(path, "text")
    assert [file.name for file in tmp_path.iterdir()] == ["list.yaml"]
    assert not path.is_file()


@pytest.mark.parametrize("path", [".", "/"])
def test_a_path_without_a_name_is_an_error_that_says_so(path: str) -> None:
    with pytest.raises(ResultsError, match="it is a directory"):
        write_atomically(Path(path), "text")
