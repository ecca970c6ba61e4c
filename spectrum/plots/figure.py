"""What all pictures share: the check before a scan, names, settings, and writing the file. No display is needed.

matplotlib is an optional dependency, so only functions import it. They do not use pyplot, which keeps global state. All
colours differ in lightness, so that a picture can also be read when it is printed in grey.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spectrum.errors import SpectrumError, short_traceback
from spectrum.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
LISTED = ".png, .svg or .pdf"

DPI = 160  # of a PNG
_MAX_PIXELS = 16_000  # of a PNG's longer side; a larger figure gets a lower resolution
_SCREEN_DPI = 110  # in a notebook, where text of 7 points is then 11 pixels high; the rest of the PNG is for sharpness


@dataclass(frozen=True, slots=True, repr=False)
class Picture:
    """A figure that a notebook shows as the value of a cell, on white, whatever the notebook's theme.

    Args:
        figure: matplotlib's figure. pyplot does not know it, so it is shown only once.
        name: what it shows, in words.
    """

    figure: Figure
    name: str

    def __repr__(self) -> str:
        return f"{self.name}: a notebook shows it, save(path) writes it"

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        with own_settings():
            return _content(self.figure, "png"), {"width": round(self.figure.get_figwidth() * _SCREEN_DPI)}

    @short_traceback
    def save(self, path: str | Path) -> Path:
        """Write the picture in the format that the suffix names, and return the path.

        Raises as `check_can_draw` does, and ResultsError if the file cannot be written.
        """
        check_can_draw(path)
        file = Path(path).expanduser()
        with own_settings():
            save(self.figure, file)
        return file


def check_can_draw(path: str | Path) -> None:
    """Check that a picture can be drawn. It is called before a long scan, not after it.

    Raises SpectrumError if matplotlib is not installed, or if the path does not end in .png, .svg or .pdf.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise SpectrumError(f"the name of a picture must end in {LISTED}; {path} does not")
    check_matplotlib()


def check_matplotlib() -> None:
    """Raises SpectrumError if matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise SpectrumError("pictures need matplotlib: pip install matplotlib") from error


def shown(name: str, max_length: int = 48) -> str:
    """A name in characters that the font has, at most this long.

    A longer name loses its middle, since towers and layers differ at its ends.
    """
    from matplotlib.font_manager import findfont, get_font

    available = get_font(findfont("DejaVu Sans")).get_charmap()  # this font comes with matplotlib
    text = "".join(c if ord(c) in available else "?" for c in name)
    head = max_length * 2 // 5
    return text if len(text) <= max_length else f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[head + 1 - max_length :]}"


def text_width(text: str, size: float = 7) -> float:
    """The width of a line of text, in inches. size: of the font, in points."""
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, size=size).get_extents().x1) / 72


def own_settings() -> AbstractContextManager[None]:
    """A context with our own settings instead of the user's. Identifiers in SVG are the same in each run."""
    import matplotlib.style

    text = {"font.size": 7, "text.parse_math": False, "legend.frameon": False, "svg.hashsalt": "spectrum"}
    lines = {"axes.spines.top": False, "axes.spines.right": False, "xtick.major.size": 2, "ytick.major.size": 2}
    return matplotlib.style.context(["default", text, lines])


def save(figure: Figure, path: Path) -> None:
    """Write a picture in the format that the suffix names, whole or not at all. Equal figures give equal bytes."""
    write_atomically(path, _content(figure, path.suffix.lower()[1:]))


def _content(figure: Figure, suffix: str) -> bytes:
    """The content of a picture's file. suffix: `png`, `svg` or `pdf`."""
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(suffix)
    content = io.BytesIO()
    figure.savefig(content, format=suffix, metadata=no_date, dpi=min(DPI, _MAX_PIXELS / max(figure.get_size_inches())))
    return content.getvalue()
