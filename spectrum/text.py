"""Rows of text as a table, for terminals and for notebooks; counts and times in words. Standard library only."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from html import escape

Row = tuple[str, ...]


def aligned(rows: Sequence[Row]) -> str:
    """Columns of text, the first flush left, the others, numbers, flush right."""
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
    """An HTML table, the first row its head, aligned as `aligned` does."""
    return f"<table>\n{_html_row('th', rows[0])}\n" + "\n".join(_html_row("td", row) for row in rows[1:]) + "\n</table>"


def _html_row(tag: str, row: Row) -> str:
    sides = ("left", *("right" for _ in row[1:]))
    cells = (f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>' for side, cell in zip(sides, row, strict=True))
    return f"<tr>{''.join(cells)}</tr>"


def plural(count: int, noun: str, several: str | None = None) -> str:
    """`1 layer`, `2 layers`; `several` for a plural that is not made by an s."""
    return f"{count} {noun}" if count == 1 else f"{count} {several or noun + 's'}"


def listed(names: Sequence[str], limit: int = 5) -> str:
    """Names in a line: the first few, and how many more."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def duration(seconds: float) -> str:
    """A time span for people: `0.8 s`, `3 min 20 s`, `1 h 05 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def visible(text: str) -> str:
    """Text with what a terminal would obey instead of show, which names in a stranger's files may hold, spelt out."""
    obeyed = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in obeyed and c != "\n" else c for c in text
    )


def in_line(text: str) -> str:
    """The same, with line breaks spelt out too: no name makes a line of its own."""
    return visible(text).replace("\n", "\\n")
