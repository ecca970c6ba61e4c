"""What a selection is: the top percent of each layer type, or as many as a share of all parameters takes."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from html import escape
from itertools import count
from pathlib import Path

from spectrum.errors import SelectionError
from spectrum.files import write_atomically
from spectrum.records import ScanResult
from spectrum.selection import entries, margins
from spectrum.selection.margins import RankedType
from spectrum.text import aligned, html, in_line

LONGEST_PERCENT = 24  # characters: it becomes part of a file's name
_PERCENT = re.compile(r"\d+(\.\d+)?|\.\d+", re.ASCII)


@dataclass(frozen=True, slots=True, repr=False)
class Selection:
    """The top `percent` (as the user typed it) of each layer type of a scan.

    embeddings: whether the input embedding and the output head train in any case; else they never do.
    """

    result: ScanResult
    types: tuple[RankedType, ...]
    percent: str
    embeddings: bool

    def layers(self) -> dict[str, list[str]]:
        """Names of the layers that train, by layer type, by descending SNR."""
        info = self.result.info
        return {
            kind.layer_type: [
                layer.name for layer in kind.selected if self.embeddings or not entries.is_embedding(layer.name, info)
            ]
            for kind in self.types
        }

    def embedding_parameters(self) -> tuple[str, ...]:
        """The output head and the input embedding, where they train in any case."""
        names = entries.embedding_names(self.result.info) if self.embeddings else ()
        return tuple(name for name in names if name is not None)

    def entries(self) -> dict[str, list[str]]:
        """The list for trainers, by layer type: names of modules or parameters, as prefix patterns."""
        known = entries.known_parameters(self.result)
        return entries.unfrozen_entries(self.layers(), known, self._tied(), self.embedding_parameters())

    def parameters(self) -> dict[str, list[str]]:
        """Names of the parameters that each layer has to train; of its weight alone where no more is known."""
        known = entries.known_parameters(self.result)
        return {
            name: entries.own_parameters(name, known) or [f"{name}.weight"]
            for names in self.layers().values()
            for name in names
        }

    def trained(self) -> list[str]:
        """Names of all parameters that train, embeddings first; of tied ones also the name that trainers see."""
        seen = self._tied()
        own = [name for names in self.parameters().values() for name in names]
        names = [*self.embedding_parameters(), *own]
        return list(dict.fromkeys([*names, *(seen[name] for name in names if name in seen)]))

    def _tied(self) -> dict[str, str]:
        return self.result.info.tied() if self.result.info is not None else {}

    def to_yaml(self, path: str | Path) -> Path:
        """Write the list as Axolotl reads it; return the path. Raises ResultsError where it cannot be written."""
        write_atomically(Path(path), entries.render_axolotl(self.entries(), self.embedding_parameters()))
        return Path(path)

    def __repr__(self) -> str:
        return f"{self._title()}\n\n{aligned(self.rows())}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self._title())}</p>\n{html(self.rows())}"

    def _title(self) -> str:
        embeddings = "with" if self.embeddings else "without"
        model = in_line(self.result.model)
        return f"Top {self.percent} percent of {model}, {embeddings} input embedding and output head"

    def rows(self) -> list[tuple[str, ...]]:
        """A row per layer type: its layers, how many are selected, the range of their SNR, the margin of the cut."""
        rows: list[tuple[str, ...]] = [("layer type", "layers", "selected", "lowest SNR", "highest SNR", "margin")]
        for kind in self.types:
            ends = (kind.ranked[-1].snr, kind.ranked[0].snr) if kind.ranked else ()
            lowest, highest = tuple(f"{snr:.4g}" for snr in ends) or ("", "")
            counts = str(len(kind.ranked)), str(kind.count)
            rows.append((kind.layer_type, *counts, lowest, highest, margins.cut(kind)))
        layers, chosen = sum(len(kind.ranked) for kind in self.types), sum(kind.count for kind in self.types)
        return [*rows, ("total", str(layers), str(chosen), "", "", "")]


def parse_percent(text: str) -> str:
    """A percentage as it is typed, and as it stands in file names. Raises ValueError outside (0, 100]."""
    if len(text) > LONGEST_PERCENT or not _PERCENT.fullmatch(text) or not 0 < Fraction(text) <= 100:
        raise ValueError(f"a number over 0 and at most 100 is expected, such as 25 or 12.5, not {text!r}")
    return text


def top_percent(result: ScanResult, percent: str, *, embeddings: bool = True) -> Selection:
    """The `floor(count * percent / 100)` layers of highest SNR of each type; ties in model order.

    `percent` is a decimal number in (0, 100], as typed: file names carry it, and 12.3 percent of 1000 layers are
    123, which binary floats do not always say. Layers whose SNR is NaN are neither counted nor selected.
    Raises ValueError outside that range.
    """
    share = Fraction(parse_percent(percent))
    types = []
    for layer_type, layers in result.by_type().items():
        ranked = sorted((layer for layer in layers if not math.isnan(layer.snr)), key=lambda layer: -layer.snr)
        types.append(RankedType(layer_type, tuple(ranked), math.floor(len(ranked) * share / 100)))
    return Selection(result, tuple(types), percent, embeddings)


def top_params(result: ScanResult, percent: str, *, embeddings: bool = True) -> Selection:
    """The selection whose parameters come closest to `percent` of all the model's, and are not more.

    It is that of `top_percent` for the shortest percentage that gives it. Raises SelectionError where the smallest
    selection is more, or the sizes are not known, ValueError for a percentage outside (0, 100].
    """
    share = Fraction(parse_percent(percent))
    info = result.info
    if info is None:
        raise SelectionError(
            f"the cached scan of {result.model} does not say how large its parameters are; scan again with --rescan"
        )
    total = info.num_elements(info.parameters)
    choose = partial(top_percent, result, embeddings=embeddings)
    counts = {len(kind.ranked) for kind in choose("100").types}
    steps = sorted({Fraction(100 * selected, layers) for layers in counts for selected in range(1, layers + 1)})

    def trained(step: int) -> int:
        return info.num_elements(choose(_shortest(steps, step)).trained())

    low, high = 0, len(steps)  # the first step that is too much lies in [low, high]
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if 100 * trained(middle) <= share * total else (low, middle)
    if not steps:
        raise SelectionError(f"{result.model} has no layer to select")
    if low == 0:
        least = 100 * trained(0) / total
        hint = "" if not embeddings else "; --no-embeddings leaves input embedding and output head frozen"
        raise SelectionError(
            f"the smallest selection trains {least:.3g} percent of all parameters, not {percent}{hint}"
        )
    return choose(_shortest(steps, low - 1))


def _shortest(steps: list[Fraction], step: int) -> str:
    """The decimal number of fewest digits that is at least one of the steps, and under the next one."""
    below = steps[step + 1] if step + 1 < len(steps) else Fraction(101)
    for digits in count():
        number = Fraction(math.ceil(steps[step] * 10**digits), 10**digits)
        if number < below:
            return f"{float(number):.{digits}f}"
    raise AssertionError
