"""How is a result displayed? As a table, in plain text and in a notebook, and as a picture."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple, Protocol, overload

from spectrum.errors import SpectrumError, short_traceback
from spectrum.text import Row, aligned, html


class Picture(Protocol):
    """A drawn picture."""

    def save(self, path: str | Path) -> Path:
        """Write the picture in the format that the suffix names, and return the path."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        """The picture as a notebook shows it."""


class Displayed:
    """A result with a title and a table."""

    __slots__ = ()

    @abstractmethod
    def _title(self) -> str: ...

    @abstractmethod
    def rows(self) -> Sequence[Row]:
        """The table, the head first."""

    def _legend(self) -> str:
        """What the columns mean; empty if they need no explanation."""
        return ""

    def __repr__(self) -> str:
        return "\n\n".join(filter(None, (self._title(), aligned(self.rows()), self._legend())))

    def _repr_html_(self) -> str:
        below = f"\n<p>{escape(text)}</p>" if (text := self._legend()) else ""
        picture = f"\n{image}" if _drawing is not None and (image := _drawing.small(self)) else ""
        return f"<p>{escape(self._title())}</p>\n{html(self.rows())}{below}{picture}"

    @overload
    def plot(self, path: None = None) -> Picture: ...

    @overload
    def plot(self, path: str | Path) -> Path: ...

    @short_traceback
    def plot(self, path: str | Path | None = None) -> Picture | Path:
        """Draw all scores as a heat map, by layer type and layer. The selected layers, if any, are outlined.

        Without a path, returns the picture: a notebook shows it as the value of a cell, and `save(path)` writes it.
        With a path, writes the file and returns the path. The suffix says the format: .png, .svg or .pdf for the
        picture, .html for a page on which a percentage can be chosen, and which needs no matplotlib.

        Raises SpectrumError if matplotlib is not installed, if the suffix is another one, or if there is no layer to
        draw, and ResultsError if the file cannot be written.
        """
        if _drawing is None:
            raise SpectrumError("nothing can draw this result yet; import spectrum.api first")
        return _drawing.picture(self) if path is None else _drawing.write(self, Path(path).expanduser())


class Drawing(NamedTuple):
    """The functions that draw results.

    Args:
        picture: draws the picture.
        write: draws into a file, in the format that the suffix names, and returns the path.
        small: draws a small picture as HTML, which may be empty.
    """

    picture: Callable[[Displayed], Picture]
    write: Callable[[Displayed, Path], Path]
    small: Callable[[Displayed], str]


_drawing: Drawing | None = None


def draw_with(drawing: Drawing) -> None:
    """Say which functions draw results: results cannot import them, since what draws them is above them.

    `spectrum.api` calls this, and every result that a user holds comes from there.
    """
    global _drawing
    _drawing = drawing
