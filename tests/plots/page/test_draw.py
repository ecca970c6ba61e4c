"""The suffix says what is drawn: a page, which needs nothing, or a picture."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import spectrum.api  # noqa: F401 - says what draws results
from spectrum.errors import ResultsError, SpectrumError
from spectrum.plots.page.draw import check_can_draw, draw
from spectrum.plots.page.page import PageSettings, page
from spectrum.records import LayerSnr, ScanResult
from spectrum.selection.selection import top_percent
from tests.helpers.paths import files_below
from tests.helpers.records import PROVENANCE, scan_of

SCAN = ScanResult("org/model", tuple(LayerSnr(f"h.{i}.mlp", "mlp", 1.0 + i) for i in range(4)), (), ("mlp",), None)


def data_of(text: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.mark.parametrize("suffix", [".html", ".HTML"])
def test_a_result_is_drawn_as_a_page(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"scores{suffix}"
    assert top_percent(SCAN, "25").plot(path) == path
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert data_of(path.read_text())["start"]["percent"] == "25"
    assert SCAN.plot(str(path)) == path
    assert data_of(path.read_text())["start"]["percent"] == "50"
    assert files_below(tmp_path) == [path.name]


def test_a_page_needs_no_matplotlib_and_a_picture_says_that_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [*(name for name in sys.modules if name.partition(".")[0] == "matplotlib"), "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    check_can_draw(tmp_path / "a.html")
    assert SCAN.plot(tmp_path / "a.html").is_file()
    with pytest.raises(SpectrumError, match="pictures need matplotlib"):
        check_can_draw(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["a.htm", "a", "html", ".html", "a.html.gz"])
def test_another_suffix_is_refused_with_all_that_there_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpectrumError, match=re.escape(f".html, .png, .svg or .pdf; {tmp_path / name} does not")):
        draw(SCAN, tmp_path / name)
    assert files_below(tmp_path) == []


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(ResultsError):
        SCAN.plot(tmp_path / "file" / "a.html")
    with pytest.raises(SpectrumError, match="there is no layer of org/model to draw"):
        replace(SCAN, layers=()).plot(tmp_path / "file.html")
    assert files_below(tmp_path) == ["file"]


def test_equal_selections_give_equal_pages() -> None:
    settings = PageSettings(("spectrum", "--model-name", "org/model"))
    assert page(top_percent(SCAN, "25"), settings) == page(top_percent(SCAN, "25"), settings)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["spectrum", "--model-name", "m"]),
        ({"revision": "v1"}, ["spectrum", "--model-name", "m", "--revision", "v1"]),
        ({"class_asked": "A"}, ["spectrum", "--model-name", "m", "--model-class", "A"]),
        ({"commit": None, "fingerprint": "f"}, ["spectrum", "--model-name", "m"]),
        ({"commit": None}, None),
    ],
)  # fmt: skip
def test_the_command_on_a_page_follows_from_the_scan(
    tmp_path: Path, changes: dict[str, Any], words: list[str] | None
) -> None:
    given = scan_of(PROVENANCE.info.parameters, "lm_head")
    assert given.provenance is not None
    path = replace(given, provenance=replace(given.provenance, **changes)).plot(tmp_path / "a.html")
    assert data_of(path.read_text())["command"] == words


def test_the_policy_allows_what_is_in_the_page_and_nothing_else() -> None:
    text = page(SCAN, PageSettings(None))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    allowed = dict(part.split(" ", 1) for part in policy[1].split("; "))
    assert allowed["default-src"] == "'none'"
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        inline = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digests = {f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in inline}
        assert inline
        assert set(allowed[directive].split()) == digests
    assert not re.search(r"<(?:link|img|iframe|object|embed)\b|\bsrc=|\bon\w+=|javascript:|@import|url\(", text)
