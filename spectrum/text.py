"""Text for people: tables, counts, times, and names that are safe to print."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape

Row = tuple[str, ...]

# Unicode categories of characters that a terminal may act on instead of showing them: controls, formats, surrogates,
# separators of lines and paragraphs.
_NOT_SHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")

_MAX_WORD = 300  # characters; the time to compare grows with the square of them


def aligned(rows: Sequence[Row]) -> str:
    """A table in plain text: the first column flush left, all others, which hold numbers, flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def html(rows: Sequence[Row]) -> str:
    """A table in HTML, aligned as by `aligned`. The first row is the head."""
    return f"<table>\n{_html_row('th', rows[0])}\n" + "\n".join(_html_row("td", row) for row in rows[1:]) + "\n</table>"


def _html_row(tag: str, row: Row) -> str:
    sides = ("left", *("right" for _ in row[1:]))
    cells = (f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>' for side, cell in zip(sides, row, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def plural(count: int, noun: str, plural_noun: str | None = None) -> str:
    """A count with its noun: `1 layer`, `2 layers`. `plural_noun` is needed where the plural is not noun + s."""
    return f"{count} {noun}" if count == 1 else f"{count} {plural_noun or noun + 's'}"


def listed(names: Sequence[str], limit: int = 5) -> str:
    """The first few names, and how many more there are: `a, b and 3 more`."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that a misspelt word most likely means, None if no name is close to it. Upper case does not matter."""
    folded = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), folded, 1) if len(word) <= _MAX_WORD else []
    return folded[close[0]] if close else None


def proposal(meant: str | None) -> str:
    """The end of a message about a misspelt word: `; did you mean X?`. It is empty if nothing is known to be meant."""
    return f"; did you mean {meant}?" if meant else ""


def duration(seconds: float) -> str:
    """A time span: `0.8 s`, `3 min 20 s`, `1 h 05 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def amount(num_bytes: int) -> str:
    """A number of bytes, in decimal units as disks are sold: `512 B`, `1.5 kB`, `140 GB`."""
    value, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}"


def visible(text: str) -> str:
    """Text with control characters written as escapes, except line breaks. Names in a model's files may hold them."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in _NOT_SHOWN and char != "\n" else char
        for char in text
    )


def in_line(text: str) -> str:
    """Text with all control characters written as escapes, even line breaks, so that it stays on one line."""
    return visible(text).replace("\n", "\\n")
