"""How is a scan or a selection drawn into a file? The suffix says it: a page, or a picture."""

from __future__ import annotations

from pathlib import Path

from spectrum.display import Displayed
from spectrum.errors import SpectrumError
from spectrum.plots import figure, heatmap
from spectrum.plots.page.page import PageSettings, write_page
from spectrum.records import ScanResult
from spectrum.selection.selection import Selection
from spectrum.text import command_words

PAGE = ".html"


def is_page(path: Path) -> bool:
    """Whether the suffix is that of a page."""
    return path.suffix.lower() == PAGE


def check_can_draw(path: Path) -> None:
    """Check that this file can be drawn. It is called before a long scan, not after it.

    Raises SpectrumError if the suffix is another one, or if a picture needs matplotlib and it is not installed.
    """
    if is_page(path):
        return
    if path.suffix.lower() not in figure.SUFFIXES:
        raise SpectrumError(f"the name of a drawing must end in {PAGE}, {figure.LISTED}; {path} does not")
    figure.check_matplotlib()


def draw(drawn: Displayed, path: Path, settings: PageSettings | None = None) -> Path:
    """Draw a scan or a selection, and return the path.

    Raises as `check_can_draw` does, SpectrumError if there is no layer to draw, and ResultsError if the file cannot be
    written.

    Args:
        drawn: the scan or the selection.
        path: the file.
        settings: of a page; None for those that follow from the scan.
    """
    check_can_draw(path)
    if not is_page(path):
        heatmap.heatmap(drawn, path)
    elif isinstance(drawn, ScanResult | Selection):
        write_page(drawn, settings or _settings(drawn), path)
    else:
        raise TypeError(f"neither a scan nor a selection: {drawn!r}")
    return path


def _settings(drawn: ScanResult | Selection) -> PageSettings:
    """The settings for a scan of which nothing else is known. A model in memory has no command that scans it."""
    scan = drawn if isinstance(drawn, ScanResult) else drawn.result
    provenance = scan.provenance
    if provenance is not None and provenance.commit is None and provenance.fingerprint is None:
        return PageSettings(command=None)
    asked = (None, None) if provenance is None else (provenance.revision, provenance.class_asked)
    return PageSettings(command=tuple(command_words(scan.model, *asked)))
