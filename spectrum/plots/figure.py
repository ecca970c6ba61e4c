"""Pictures of a scan: a heat map of its scores, the spectrum of one matrix. In files only, without a display.

matplotlib is an extra, imported within functions alone, and used by its objects: pyplot, and the state it keeps, have
no part in this. Colours grow lighter with what they stand for, so that a print in grey says the same.
"""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from spectrum.errors import SpectrumError
from spectrum.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI, _MOST_PIXELS = 160, 16_000  # of a PNG; of its longer side


def check(path: str | Path) -> None:
    """Find out before a long scan whether a picture can be drawn after it.

    Raises SpectrumError where matplotlib is not installed, or the path ends in neither .png, .svg nor .pdf.
    """
    if Path(path).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise SpectrumError(f"a picture's name has to end in .png, .svg or .pdf, not as {path} does")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise SpectrumError("pictures need matplotlib: pip install matplotlib") from error


def shown(name: str, longest: int = 48) -> str:
    """A name as the font can show it, its middle left out where it is long: the ends tell towers and layers apart."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()  # comes with matplotlib
    text = "".join(c if ord(c) in known else "?" for c in name)
    head = longest * 2 // 5
    return text if len(text) <= longest else f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[head + 1 - longest :]}"


def text_width(text: str, size: float = 7) -> float:
    """Width of a line of text, in inches."""
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, size=size).get_extents().x1) / 72


def own_settings() -> AbstractContextManager[None]:
    """Settings that are the user's in nothing; identifiers in SVG that do not change from run to run."""
    import matplotlib.style

    mine = {"font.size": 7, "text.parse_math": False, "legend.frameon": False, "svg.hashsalt": "spectrum"}
    lines = {"axes.spines.top": False, "axes.spines.right": False, "xtick.major.size": 2, "ytick.major.size": 2}
    return matplotlib.style.context(["default", mine, lines])


def save(figure: Figure, path: Path) -> None:
    """Write a picture as its suffix says: the same bytes for the same figure, as a whole or not at all."""
    kind = path.suffix.lower()[1:]
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    content = io.BytesIO()
    figure.savefig(content, format=kind, metadata=undated, dpi=min(DPI, _MOST_PIXELS / max(figure.get_size_inches())))
    write_atomically(path, content.getvalue())
