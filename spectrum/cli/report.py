"""What does a run print at its end? Records in, text out."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spectrum.records import ModelInfo
from spectrum.selection import margins
from spectrum.selection.margins import RankedType
from spectrum.selection.order import HIGHEST
from spectrum.selection.selection import Selection
from spectrum.text import aligned, in_line, plural, wrapped
from spectrum.trainers import memory

if TYPE_CHECKING:
    from spectrum.trainers.checking.report import CheckReport

_BARS = "▁▂▃▄▅▆▇█"
_MIN_BAR_COLUMNS, _MAX_BAR_COLUMNS = 8, 40  # columns of a bar chart
_SELECTED, _OTHER, _PLAIN = "\x1b[36m", "\x1b[2m", "\x1b[0m"


def summary(selection: Selection, columns: int | None, *, colours: bool = False) -> str:
    """The table of a selection, and what its columns mean. Rows may end with a bar chart of the type's scores.

    Args:
        selection: the selection.
        columns: the width to fit; None if any width will do.
        colours: whether the terminal shows colours and block characters. If so, and if there is room, there are bars.
    """
    rows, meanings = selection.rows(), [margins.legend(selection.types)]
    lines = aligned(rows).splitlines()
    width = max(map(len, lines)) + 2
    if colours and columns is not None and columns - width >= _MIN_BAR_COLUMNS:
        position = {layer.name: i for i, layer in enumerate(selection.result.layers)}
        most = min(columns - width, _MAX_BAR_COLUMNS)
        bars = ["by depth", *(_bars(ranked, position, most) for ranked in selection.types)]
        lines = [*(f"{line:<{width}}{bar}" for line, bar in zip(lines, bars, strict=False)), lines[-1]]
        meanings.append("by depth: scores from first to last layer, log scale; selected in colour")
    else:
        lines = aligned(rows, columns).splitlines()
    meaning = wrapped("\n".join(filter(None, meanings)), columns, "  ")
    return "\n\n".join(filter(None, ("\n".join(lines), meaning)))


def control(selection: Selection) -> str:
    """A line that says what a control selects; empty for the layers of highest SNR."""
    if selection.order == HIGHEST:
        return ""
    return f"Control: {selection.share()} of each layer type, in place of the top {selection.percent} percent."


def equivalent_percent(top_params: str, selection: Selection) -> str:
    """A line that says with which --top-percent a --top-params selects the same layers."""
    order = "" if selection.order == HIGHEST else f" --order {selection.order}"
    return f"At most {top_params} percent of all parameters: the same as --top-percent {selection.percent}{order}."


def training_plan_of(selection: Selection, gpus: int, columns: int | None) -> str:
    """The plan for training a selection, or a line that says why there is none."""
    info = selection.result.info
    if info is None or not info.knows_modules():
        text = "This scan does not record parameter sizes, so training memory is unknown; --rescan finds out."
        return wrapped(text, columns, "  ")
    return training_plan(selection.trained(), info, gpus, columns)


def training_plan(trained: Collection[str], info: ModelInfo, gpus: int, columns: int | None = None) -> str:
    """The plan for training: how many parameters train, with and without embeddings, and how much memory it takes.

    Args:
        trained: the names of the parameters that train.
        info: the model.
        gpus: the number of GPUs if training is sharded.
        columns: the width to fit; None if any width will do.
    """
    owners = info.owners(name for name in (info.head, info.embedding) if name is not None)
    rest = [name for name in trained if info.owner(name) not in owners]
    total, count, without = map(info.num_elements, (info.parameters, trained, rest))
    text = f"{count:,} of {total:,} parameters train, {_percent(count, total)}"
    if without < count:
        text += f"; without input embedding and output head {_percent(without, total)}"
        if 2 * without < count:
            ends = _percent(count - without, count)
            text += f"\ninput embedding and output head are {ends} of what trains; --no-embeddings leaves them frozen"
    elif owners:
        extra = info.num_elements([*trained, *owners])
        text += f"; with input embedding and output head {_percent(extra, total)}"
    sizes, everything = (memory.parameter_sizes(names, info) for names in (trained, info.parameters))
    return f"{wrapped(text, columns, '  ')}\n\n{_memory(sizes, everything, gpus, columns)}"


def check_summary(check: CheckReport, title: str, columns: int | None) -> str:
    """The result of a check: the problems of a list, notes on it and, where rules differ, what each of them matches.

    Args:
        check: the findings.
        title: the first line.
        columns: the width to fit; None if any will do.
    """
    findings = [f"problem: {in_line(text)}" for text in check.problems] or ["ok: every entry does what it says"]
    findings += [f"note: {in_line(text)}" for text in check.notes]
    parts = [wrapped(text, columns, "  ") for text in (in_line(title), "\n".join(findings))]
    if check.rules_differ:
        rows = [(rule, str(check.num_matching[rule]), str(len(names))) for rule, names in check.trained.items()]
        parts.append(aligned([("rule", "entries that match", "tensors that train"), *rows], columns))
    return "\n\n".join(parts)


def failure(name: str, problems: Sequence[str], *, quiet: bool) -> str | None:
    """The error of a command that found problems; None if it found none.

    Args:
        name: what has the problems.
        problems: one line for each.
        quiet: whether no report is printed, so that the error has the first of them.
    """
    if not problems:
        return None
    first = f"{', the first' if len(problems) > 1 else ''}: {problems[0]}" if quiet else ""
    return f"{name}: {plural(len(problems), 'problem')}{first}"


def written(paths: Sequence[tuple[str, Path]], columns: int | None) -> str:
    """The paths of the files that were written, after their labels. columns: the width to fit; None if any will do.

    A path is never wrapped, so that it can be copied. If one does not fit beside its label, each has its own line.
    """
    width = max(len(label) for label, _ in paths)
    shown = [(label, in_line(str(path))) for label, path in paths]
    if columns is not None and any(width + 2 + len(path) > columns for _, path in shown):
        return "\n".join(f"{label}:\n  {path}" for label, path in shown)
    return "\n".join(f"{label:<{width}}  {path}" for label, path in shown)


def next_steps(use: str, list_file: Path, check: Sequence[str], columns: int | None) -> str:
    """What to do with the list.

    Args:
        use: how trainers use the list; `LIST` stands for its path.
        list_file: the list's path.
        check: the words of the command that checks the list; empty if there is none.
        columns: the width to fit; None if any width will do.
    """
    text = wrapped(use.replace("LIST", in_line(repr(str(list_file)))), columns, "  ")
    if not check:
        return text
    label, command = "Check the list, or your config with it:", in_line(shlex.join(check))
    if columns is not None and len(label) + 1 + len(command) > columns:
        continued = command if 2 + len(command) <= columns else " \\\n    --check ".join(command.rsplit(" --check ", 1))
        return f"{text}\n{label}\n  {continued}"
    return f"{text}\n{label} {command}"


def _memory(
    trained: Sequence[memory.ParameterSize],
    everything: Sequence[memory.ParameterSize],
    gpus: int,
    columns: int | None,
) -> str:
    """A table of the memory per device, by sharding and optimizer: of training the selection, and of full training."""
    shardings = (memory.UNSHARDED, *(memory.SHARDINGS if gpus > 1 else ()))
    sizes = {
        sharding: [
            tuple(
                memory.bytes_per_device(sizes, everything, optimizer, sharding, gpus) for sizes in (trained, everything)
            )
            for optimizer in memory.OPTIMIZERS
        ]
        for sharding in shardings
    }
    unit, scale = ("GiB", 30) if max(max(pair) for row in sizes.values() for pair in row) >= 1 << 30 else ("MiB", 20)
    rows = [
        (
            sharding.name if sharding == memory.UNSHARDED else f"{sharding.name} of {gpus}",
            *(f"{_three_digits(own / 2**scale)} of {_three_digits(full / 2**scale)}" for own, full in row),
        )
        for sharding, row in sizes.items()
    ]
    title = f"Memory on each device for weights, gradients and optimizer states, in {unit}:"
    meaning = "A of B: A if the selected parameters train, B if all parameters train"
    return (
        f"{wrapped(title, columns)}\n{wrapped(meaning, columns)}\n{aligned([('', *memory.OPTIMIZERS), *rows], columns)}"
    )


def _three_digits(number: float) -> str:
    """A number with three significant digits, or all digits before the point if these are more."""
    return f"{number:.3g}" if number < 100 else f"{number:,.0f}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g} percent"


def _bars(ranked: RankedType, position: Mapping[str, int], width: int) -> str:
    """The scores of one layer type as bars, in model order and on a logarithmic scale. Selected layers are in colour.

    If there are more layers than columns, a bar shows the mean of several neighbours.

    Args:
        ranked: the layers.
        position: each layer's place in the model.
        width: the largest number of columns.
    """
    selected = {layer.name for layer in ranked.selected}
    layers = sorted(ranked.layers, key=lambda layer: position[layer.name])
    finite = [math.log(layer.snr) for layer in layers if 0 < layer.snr < math.inf]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    levels = [min(max(math.log(layer.snr), low), high) if layer.snr > 0 else low for layer in layers]
    step = math.ceil(len(layers) / width)
    drawn, colour = [], ""
    for start in range(0, len(layers), step or 1):
        mean = statistics.fmean(levels[start : start + step])
        height = 0.5 if high == low else (mean - low) / (high - low)
        own_colour = _SELECTED if any(layer.name in selected for layer in layers[start : start + step]) else _OTHER
        drawn.append(f"{'' if own_colour == colour else _PLAIN + own_colour}{_BARS[round(height * (len(_BARS) - 1))]}")
        colour = own_colour
    return "".join([*drawn, _PLAIN])
