"""Text for people: tables and prose that fit a width, counts, times, and names that are safe to print."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape

Row = tuple[str, ...]

_GAP = "..."  # in place of the middle of a name
_MIN_NAME_COLUMNS = 12  # of a name in a table, however narrow the terminal is

# Unicode categories of characters that a terminal may act on instead of showing them: controls, formats, surrogates,
# separators of lines and paragraphs.
_NOT_SHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")

_MAX_WORD = 300  # characters; the time to compare grows with the square of them


def aligned(rows: Sequence[Row], columns: int | None = None) -> str:
    """A table in plain text: the first column flush left, all others, which hold numbers, flush right.

    Args:
        rows: the rows. The first one is the head.
        columns: the width that the table should fit. If it is too wide, the head takes several lines, and then names in
            the first column are cut in the middle. None if any width will do.
    """
    widths = _widths(rows)
    if columns is not None and _total(widths) > columns:
        rows = [*_broken_head(rows), *rows[1:]]
        widths = _widths(rows)
        if (excess := _total(widths) - columns) > 0:
            names = shortened([row[0] for row in rows], max(widths[0] - excess, _MIN_NAME_COLUMNS))
            rows = [(name, *row[1:]) for name, row in zip(names, rows, strict=True)]
            widths = _widths(rows)
    lines = (
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _widths(rows: Sequence[Row]) -> list[int]:
    return [max(map(len, cells)) for cells in zip(*rows, strict=True)]


def _total(widths: Sequence[int]) -> int:
    """The width of a table that has columns of these widths."""
    return sum(widths) + 2 * (len(widths) - 1)


def _broken_head(rows: Sequence[Row]) -> list[Row]:
    """The head of a table on several lines, so that only the cells below make a column wide."""
    head, *body = rows
    below = _widths(body) if body else [0] * len(head)
    cells = [_lines(cell, max(width, *map(len, cell.split(" ")))) for cell, width in zip(head, below, strict=True)]
    height = max(map(len, cells))
    return list(zip(*([""] * (height - len(lines)) + lines for lines in cells), strict=True))


def shortened(names: Sequence[str], width: int) -> list[str]:
    """Names of at most so many characters. The middle of a longer one is left out: `model.visual...attn.q_proj`.

    All are cut at the same place. If there is a place that keeps different names different, it is such a place.
    """
    kept = max(width - len(_GAP), 2)
    # The ends of paths differ more often than their beginnings.
    for head in sorted(range(1, kept), key=lambda head: abs(head - kept * 2 // 5)):
        cut = [name if len(name) <= width else f"{name[:head]}{_GAP}{name[head - kept :]}" for name in names]
        if len(set(cut)) == len(set(names)):
            return cut
    return [name if len(name) <= width else f"{name[: kept // 2]}{_GAP}{name[kept // 2 - kept :]}" for name in names]


def wrapped(text: str, columns: int | None, indent: str = "") -> str:
    """Text whose long lines are broken between words. A word that is longer than a line stays whole.

    Args:
        text: lines. Those that fit stay as they are, such as the rows of a table.
        columns: the width to fit. None if any width will do.
        indent: what each added line begins with.
    """
    if columns is None:
        return text
    return "\n".join(
        line if len(line) <= columns else f"\n{indent}".join(_lines(line, columns, len(indent)))
        for line in text.split("\n")
    )


def _lines(text: str, columns: int, indent: int = 0) -> list[str]:
    """The words of a text, on lines of at most so many columns. Lines after the first have `indent` columns less."""
    lines = [""]
    for word in text.split(" "):
        room = columns - (indent if len(lines) > 1 else 0)
        if lines[-1] and len(lines[-1]) + 1 + len(word) > room:
            lines.append(word)
        else:
            lines[-1] += f" {word}" if lines[-1] else word
    return lines


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


def command_words(model: str, revision: str | None, model_class: str | None) -> list[str]:
    """The first words of a command for a model. revision, model_class: None for the default."""
    options = {"--revision": revision, "--model-class": model_class}
    given = [word for name, value in options.items() if value is not None for word in (name, value)]
    return ["spectrum", "--model-name", model, *given]


def in_line(text: str) -> str:
    """Text with all control characters written as escapes, even line breaks, so that it stays on one line."""
    return visible(text).replace("\n", "\\n")
