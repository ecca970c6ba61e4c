"""What a run says at its end. Records in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from spectrum.layers import Selection, TypeSelection


def summary_table(selection: Selection) -> str:
    """A row per layer type: its layers, how many are selected, and the range of their SNR."""
    header = ("layer type", "layers", "selected", "lowest SNR", "highest SNR")
    rows = [(kind.layer_type, str(len(kind.ranked)), str(kind.count), *_range(kind)) for kind in selection.types]
    layers = sum(len(kind.ranked) for kind in selection.types)
    chosen = sum(kind.count for kind in selection.types)
    return _aligned([header, *rows, ("total", str(layers), str(chosen), "", "")])


def written(paths: Sequence[tuple[str, Path]]) -> str:
    """The paths of what was written, one a line."""
    width = max(len(label) for label, _ in paths)
    return "\n".join(f"{label:<{width}}  {path}" for label, path in paths)


def duration(seconds: float) -> str:
    """A time span for people: `0.8 s`, `3 min 20 s`, `1 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def plural(count: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def listed(names: Sequence[str], limit: int = 5) -> str:
    """Names in a line: the first few, and how many more."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def _range(kind: TypeSelection) -> tuple[str, str]:
    if not kind.ranked:
        return "", ""
    return f"{kind.ranked[-1].snr:.4g}", f"{kind.ranked[0].snr:.4g}"


def _aligned(rows: Iterable[tuple[str, ...]]) -> str:
    """Columns of text, the first flush left, numbers flush right."""
    table = list(rows)
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = (
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    )
    return "\n".join(line.rstrip() for line in lines)
