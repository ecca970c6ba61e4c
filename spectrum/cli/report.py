"""What a run says at its end. Records in, text out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from spectrum.records import ModelInfo
from spectrum.selection.margins import RankedType
from spectrum.selection.selection import Selection
from spectrum.text import aligned, in_line
from spectrum.trainers import memory
from spectrum.trainers.check import CheckReport

_BARS = "▁▂▃▄▅▆▇█"
_NARROWEST, _WIDEST = 8, 40  # bars
_SELECTED, _OTHER, _PLAIN = "\x1b[36m", "\x1b[2m", "\x1b[0m"


def summary(selection: Selection, columns: int | None) -> str:
    """The selection's table; behind it the scores of each type by depth, those selected in colour.

    columns: of a terminal that has colour; None for plain text.
    """
    table = aligned(selection.rows())
    lines = table.splitlines()
    width = max(map(len, lines)) + 2
    if columns is None or columns - width < _NARROWEST:
        return table
    place = {layer.name: i for i, layer in enumerate(selection.result.layers)}
    bars = ["by depth", *(_bars(kind, place, min(columns - width, _WIDEST)) for kind in selection.types)]
    return "\n".join([*(f"{line:<{width}}{bar}" for line, bar in zip(lines, bars, strict=False)), lines[-1]])


def plan(trained: Collection[str], info: ModelInfo, devices: int) -> str:
    """How much trains, with and without embeddings, and the memory that it takes against training everything.

    trained: names of parameters. devices: how many share where training is sharded.
    """
    owners = info.owners(name for name in (info.head, info.embedding) if name is not None)
    rest = [name for name in trained if info.owner(name) not in owners]
    total, count, without = map(info.num_elements, (info.parameters, trained, rest))
    text = f"{count:,} of {total:,} parameters train, {_percent(count, total)}"
    if without < count:
        text += f"; without input embedding and output head {_percent(without, total)}"
        if 2 * without < count:
            share = _percent(count - without, count)
            text += f"\ninput embedding and output head are {share} of what trains; --no-embeddings leaves them frozen"
    elif owners:
        extra = info.num_elements([*trained, *owners])
        text += f"; with input embedding and output head {_percent(extra, total)}"
    sizes, everything = (memory.parameter_sizes(names, info) for names in (trained, info.parameters))
    return f"{text}\n\n{_memory(sizes, everything, devices)}"


def checked(found: CheckReport, title: str) -> str:
    """What is wrong with a list, what else there is to know, and what each rule makes of it."""
    header = ("rule", "entries that match", "parameters that train")
    rows = [(rule, str(found.matching[rule]), str(len(names))) for rule, names in found.trained.items()]
    told = [f"problem: {in_line(text)}" for text in found.problems]
    told += [f"note: {in_line(text)}" for text in found.notes]
    if not found.problems:
        told.insert(0, "ok: every entry does what it says")
    return "\n\n".join(filter(None, [in_line(title), "\n".join(told), aligned([header, *rows])]))


def written(paths: Sequence[tuple[str, Path]]) -> str:
    """The paths of what was written, one a line."""
    width = max(len(label) for label, _ in paths)
    return "\n".join(f"{label:<{width}}  {in_line(str(path))}" for label, path in paths)


def _memory(trained: Sequence[memory.ParameterSize], everything: Sequence[memory.ParameterSize], devices: int) -> str:
    sharded = memory.SHARDINGS if devices > 1 else ()
    header = ("", memory.UNSHARDED.name, *(f"{sharding.name} of {devices}" for sharding in sharded))
    sizes = {
        optimizer: [
            tuple(
                memory.bytes_per_device(sizes, everything, optimizer, sharding, devices)
                for sizes in (trained, everything)
            )
            for sharding in (memory.UNSHARDED, *sharded)
        ]
        for optimizer in memory.OPTIMIZERS
    }
    unit, scale = ("GiB", 30) if max(max(pair) for row in sizes.values() for pair in row) >= 1 << 30 else ("MiB", 20)
    rows = [
        (optimizer, *(f"{_figure(own / 2**scale)} of {_figure(full / 2**scale)}" for own, full in row))
        for optimizer, row in sizes.items()
    ]
    return (
        f"memory on each device for weights, gradients and optimizer states, selected of everything, in {unit}:\n"
        f"{aligned([header, *rows])}"
    )


def _figure(number: float) -> str:
    return f"{number:.3g}" if number < 100 else f"{number:,.0f}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} percent"


def _bars(kind: RankedType, place: Mapping[str, int], width: int) -> str:
    """A type's scores in model order as bars on a logarithmic scale; of many layers, the mean of some at a time."""
    selected = {layer.name for layer in kind.selected}
    layers = sorted(kind.layers, key=lambda layer: place[layer.name])
    finite = [math.log(layer.snr) for layer in layers if 0 < layer.snr < math.inf]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    levels = [min(max(math.log(layer.snr), low), high) if layer.snr > 0 else low for layer in layers]
    step = math.ceil(len(layers) / width)
    drawn, colour = [], ""
    for start in range(0, len(layers), step or 1):
        mean = statistics.fmean(levels[start : start + step])
        height = 0.5 if high == low else (mean - low) / (high - low)
        wanted = _SELECTED if any(layer.name in selected for layer in layers[start : start + step]) else _OTHER
        drawn.append(f"{'' if wanted == colour else _PLAIN + wanted}{_BARS[round(height * (len(_BARS) - 1))]}")
        colour = wanted
    return "".join([*drawn, _PLAIN])
