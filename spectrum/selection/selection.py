"""START HERE: which layers train? The top percent of each layer type.

The percentage is given, or it follows from how many of the model's parameters may train. As a control for experiments,
as many layers of each type are taken from the other end, or by lot.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import count
from pathlib import Path

from spectrum.display import Displayed
from spectrum.errors import SelectionError, short_traceback
from spectrum.files import write_atomically
from spectrum.records import ModelInfo, ScanResult
from spectrum.selection.entries import ParameterIndex, render_axolotl, unfrozen_entries
from spectrum.selection.margins import RankedType, legend
from spectrum.selection.order import HIGHEST, by_score, ordered, parse_order, share
from spectrum.text import in_line, listed

DEFAULT_PERCENT = "50"
MAX_PERCENT_LENGTH = 24  # characters, since the percentage becomes part of a file's name
_UNSCORED_PERCENT = 1.0  # a smaller share of the parameters is not worth a note
_PERCENT = re.compile(r"\d+(\.\d+)?|\.\d+", re.ASCII)


@dataclass(frozen=True, repr=False)  # without slots, for the cached index
class Selection(Displayed):
    """The top percent of each layer type of a scan, or a control of the same size.

    Args:
        result: the scan.
        types: the layers of each type, in the scan's order.
        percent: the percentage, as typed.
        embeddings: True if the input embedding and the output head always train, False if they never do.
        order: which layers are selected first: `highest`, `lowest` or `random:SEED`.
    """

    result: ScanResult
    types: tuple[RankedType, ...]
    percent: str
    embeddings: bool
    order: str = HIGHEST

    @cached_property
    def _index(self) -> ParameterIndex:
        return ParameterIndex.of(self.result)

    def layers(self) -> dict[str, list[str]]:
        """The names of the layers that train, by layer type, in the order of the selection."""
        return {
            ranked.layer_type: [
                layer.name for layer in ranked.selected if self.embeddings or not self._index.is_embedding(layer.name)
            ]
            for ranked in self.types
        }

    def embedding_parameters(self) -> tuple[str, ...]:
        """The parameters of the output head and the input embedding, if they always train."""
        return self._index.embedding_parameters if self.embeddings else ()

    def entries(self) -> dict[str, list[str]]:
        """The list for trainers, by layer type: names of modules or parameters, which trainers read as prefixes."""
        return unfrozen_entries(self.layers(), self._index, self.embedding_parameters())

    def parameters(self) -> dict[str, list[str]]:
        """The names of the parameters of each layer that trains.

        A scan by another tool does not name parameters. Each layer is then taken to have a weight.
        """
        return {name: self._index.own(name) or [f"{name}.weight"] for names in self.layers().values() for name in names}

    def trained(self) -> list[str]:
        """The names of all parameters that train: embeddings, those of layers, and owners of tied ones among them."""
        own = [name for names in self.parameters().values() for name in names]
        names = [*self.embedding_parameters(), *own]
        return list(dict.fromkeys([*names, *map(self._index.owner, names)]))

    @short_traceback
    def to_yaml(self, path: str | Path) -> Path:
        """Write the list for Axolotl, and return the path.

        Raises SelectionError if nothing would train, since trainers take an empty list as no list, and ResultsError if
        the file cannot be written.
        """
        if not self.trained():
            raise SelectionError(f"nothing to train: {no_whole_layer(self)}")
        file = Path(path).expanduser()
        write_atomically(file, self.yaml())
        return file

    def yaml(self) -> str:
        """The text of the list for Axolotl. That of a control says so in a comment, in case its file is renamed."""
        comment = "" if self.order == HIGHEST else f"control: {self.share()} of each layer type"
        return render_axolotl(self.entries(), self.embedding_parameters(), comment)

    def share(self) -> str:
        """How much is selected of each type, in words: `top 25 percent`, `random 25 percent (seed 7)`."""
        return share(self.percent, self.order)

    def always_training(self) -> list[str]:
        """The layers that train as input embedding or output head, though they are not selected, in model order."""
        if not self.embeddings:
            return []
        left_out = [layer.name for ranked in self.types for layer in ranked.layers[ranked.num_selected :]]
        return [name for name in left_out if self._index.is_embedding(name)]

    def only_embeddings(self) -> bool:
        """Whether layers train, but no other than input embedding and output head."""
        names = [name for names in self.layers().values() for name in names]
        return bool(names) and all(map(self._index.is_embedding, names))

    def _title(self) -> str:
        embeddings = "with" if self.embeddings else "without"
        of = f"of {in_line(self.result.model)}, {embeddings} input embedding and output head"
        return f"{self.share().capitalize()} {of}"

    def _legend(self) -> str:
        return legend(self.types)

    def rows(self) -> list[tuple[str, ...]]:
        """A table with a row for each layer type: how many of its layers are selected, their SNR, the cut's margin.

        A selection by lot has no margins.
        """
        header = ("layer type", "selected", "lowest SNR", "highest SNR", "margin")
        layers = sum(len(ranked.layers) for ranked in self.types)
        chosen = self.layers()  # without embeddings that stay frozen
        selected = sum(map(len, chosen.values()))
        rows = [_row(ranked, len(chosen[ranked.layer_type])) for ranked in self.types]
        table = [header, *rows, ("total", f"{selected} of {layers}", "", "", "")]
        return table if by_score(self.order) else [row[:-1] for row in table]


def _row(ranked: RankedType, num_trained: int) -> tuple[str, ...]:
    lowest, highest = "", ""
    if ranked.layers:
        scores = [layer.snr for layer in ranked.layers]
        lowest, highest = (f"{snr:.4g}" for snr in (min(scores), max(scores)))
    count = f"{num_trained} of {len(ranked.layers)}"
    return ranked.layer_type, count, lowest, highest, ranked.describe_margin()


def unscored_note(info: ModelInfo) -> str | None:
    """A note on weights that are never selected because no rule scores them; None if they are few."""
    names = _unscored(info)
    share = 100 * info.num_elements(names) / max(info.num_elements(info.parameters), 1)
    if share < _UNSCORED_PERCENT:
        return None
    largest = sorted(names, key=lambda name: -info.num_elements([name]))
    return (
        f"{share:.3g} percent of the parameters are in weights that are not scored, and so are never selected: "
        f"{listed(largest, 3)}"
    )


def _unscored(info: ModelInfo) -> list[str]:
    """The owners of matrices and larger tensors that are not scored. Scans of early versions do not tell."""
    scored = {info.owner(name) for name, parameter in info.parameters.items() if parameter.layer_type is not None}
    others = info.owners(name for name in info.parameters if info.owner(name) not in scored)
    return [name for name in others if scored and sum(size > 1 for size in info.parameters[name].shape) > 1]


def parse_percent(text: str) -> str:
    """A percentage as typed, without a percent sign. Raises ValueError if it is not a decimal number in (0, 100]."""
    number = text[:-1].rstrip(" ") if text.endswith("%") else text
    if len(number) > MAX_PERCENT_LENGTH or not _PERCENT.fullmatch(number) or not 0 < Fraction(number) <= 100:
        raise ValueError(f"a number over 0 and at most 100 is expected, such as 25 or 12.5, not {text!r}")
    return number


def top_percent(result: ScanResult, percent: str, *, embeddings: bool = True, order: str = HIGHEST) -> Selection:
    """Select the `floor(count * percent / 100)` layers of highest SNR of each type. Ties are taken in model order.

    Layers whose SNR is NaN are neither counted nor selected. Raises ValueError for a percentage outside (0, 100], and
    for an order that is none.

    Args:
        result: the scan.
        percent: a decimal number, as typed. File names contain it. Decimal arithmetic is exact: 12.3 percent of 1000
            layers are 123, while binary floats may give 122.
        embeddings: whether the input embedding and the output head always train, or never.
        order: `lowest` selects as many layers of lowest SNR, and `random:SEED` as many by lot, see `order.ordered`.
    """
    percent, order = parse_percent(percent), parse_order(order)
    exact_percent = Fraction(percent)
    types = []
    for layer_type, layers in result.by_type().items():
        ranked = ordered((layer for layer in layers if not math.isnan(layer.snr)), order)
        types.append(RankedType(layer_type, tuple(ranked), math.floor(len(ranked) * exact_percent / 100), order))
    return Selection(result, tuple(types), percent, embeddings, order)


def top_params(result: ScanResult, percent: str, *, embeddings: bool = True, order: str = HIGHEST) -> Selection:
    """Select the top percent of each type: as much as trains at most this percentage of the model's parameters.

    `Selection.percent` is the number of fewest digits with which `top_percent` selects the same layers.

    Raises SelectionError if even the smallest selection is too large, or if the scan does not say how large parameters
    are. Raises ValueError as `top_percent` does.

    Args:
        result: the scan.
        percent: at most this percentage of the elements of all parameters trains, as typed.
        embeddings: whether the input embedding and the output head always train, or never.
        order: as of `top_percent`. The layers of a type may differ in size, and so may the percentages of two orders.
    """
    max_percent = Fraction(parse_percent(percent))
    info = result.info
    if info is None:
        raise SelectionError(
            f"the cached scan of {result.model} does not say how large its parameters are; scan again with --rescan"
        )
    total = info.num_elements(info.parameters)
    steps = _steps(result)
    if not steps:
        raise SelectionError(f"{result.model} has no layer to select")

    def selection_at(step: int) -> Selection:
        return top_percent(result, _shortest(steps, step), embeddings=embeddings, order=order)

    def num_trained(step: int) -> int:
        return info.num_elements(selection_at(step).trained())

    max_trained = math.floor(max_percent * total / 100)
    first_too_large = bisect_right(range(len(steps)), max_trained, key=num_trained)
    if first_too_large == 0:
        least = 100 * num_trained(0) / total
        hint = ""
        if embeddings:
            frozen = top_percent(result, _shortest(steps, 0), embeddings=False, order=order)
            share = 100 * info.num_elements(frozen.trained()) / total
            even = "" if share <= max_percent else "even "
            hint = (
                f"; {even}with input embedding and output head frozen (--no-embeddings, or embeddings=False in "
                f"Python), it trains {share:.3g} percent"
            )
        raise SelectionError(
            f"the smallest selection trains {least:.3g} percent of all parameters, not {percent}{hint}"
        )
    return selection_at(first_too_large - 1)


def no_whole_layer(selection: Selection) -> str:
    """Why a selection has no layer: its percentage is less than one layer of the largest type."""
    most = max((len(ranked.layers) for ranked in selection.types), default=1)
    least = _shortest(_steps(selection.result) or [Fraction(100)], 0)
    return (
        f"{selection.percent} percent is less than one layer of every type; the largest types have {most}, so "
        f"{least} percent is the least that selects a layer"
    )


def _steps(result: ScanResult) -> list[Fraction]:
    """The percentages at which `top_percent` selects one more layer of some type, ascending."""
    counts = {len(ranked.layers) for ranked in top_percent(result, "100").types}
    return sorted({Fraction(100 * selected, layers) for layers in counts for selected in range(1, layers + 1)})


def _shortest(steps: list[Fraction], step: int) -> str:
    """The decimal number of fewest digits from a step on and below the next step. step: its index in `steps`."""
    next_step = steps[step + 1] if step + 1 < len(steps) else Fraction(101)
    for digits in count():
        number = Fraction(math.ceil(steps[step] * 10**digits), 10**digits)
        if number < next_step:
            return f"{float(number):.{digits}f}"
    raise AssertionError
