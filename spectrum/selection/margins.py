"""How sure is a selection? Records in, text out.

The cut of a layer type lies between its last selected layer and the next one. This module reports the margins of cuts,
ties at a cut, and layers whose score says little. Where layers are selected by lot, no cut lies between scores, so
there is nothing to report.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spectrum.records import SNR_ACCURACY, LayerSnr
from spectrum.selection.order import HIGHEST, by_score
from spectrum.text import listed

# Singular values crowd the bulk edge if moving the edge by 1 percent either way changes the score by more than this,
# relative to itself.
CROWDED_SENSITIVITY = 0.25


@dataclass(frozen=True, slots=True)
class RankedType:
    """The layers of one type, ranked.

    Args:
        layer_type: the type.
        layers: all layers of the type, in the order in which they are selected.
        num_selected: how many of them are selected, from the first one on.
        order: that order, see `order.parse_order`.
    """

    layer_type: str
    layers: tuple[LayerSnr, ...]
    num_selected: int
    order: str = HIGHEST

    @property
    def selected(self) -> tuple[LayerSnr, ...]:
        """The selected layers, in their order."""
        return self.layers[: self.num_selected]

    @property
    def cut(self) -> tuple[LayerSnr, LayerSnr] | None:
        """The last selected layer and the next one; None if all layers are selected, if none is, or by lot."""
        if not by_score(self.order) or not 0 < self.num_selected < len(self.layers):
            return None
        return self.layers[self.num_selected - 1], self.layers[self.num_selected]

    @property
    def margin(self) -> float | None:
        """How much lower the lower of the scores at the cut is, relative to the higher one, in [0, 1].

        0 for a tie, None without a cut.
        """
        if self.cut is None:
            return None
        lower, higher = sorted(layer.snr for layer in self.cut)
        if lower == higher:
            return 0.0
        return 1 - lower / higher if higher > 0 else 1.0

    @property
    def is_constant(self) -> bool:
        """Whether all layers have the same score, as norms do."""
        return len({layer.snr for layer in self.layers}) < 2

    @property
    def num_tied(self) -> int:
        """How many layers have the score of the first layer that is not selected; 0 without a cut."""
        return sum(layer.snr == self.cut[1].snr for layer in self.layers) if self.cut is not None else 0

    def describe_margin(self) -> str:
        """The margin as a table shows it: a percentage, or why there is none."""
        if self.margin is None:
            return ""
        if self.margin == 0:
            return "all tie" if self.is_constant else "tie"
        return f"{float(f'{100 * self.margin:.2g}'):g} %"


def legend(types: Sequence[RankedType]) -> str:
    """What the column `margin` of a table means; empty if no type has a margin."""
    if all(ranked.margin is None for ranked in types):
        return ""
    if any(ranked.order == HIGHEST for ranked in types):
        return "margin: how far the best layer left out scores below the lowest one selected"
    return "margin: how far the best layer selected scores below the lowest one left out"


def notes(types: Sequence[RankedType]) -> list[str]:
    """What a user should know about the scores and the cuts, one line for each finding."""
    types = [ranked for ranked in types if by_score(ranked.order)]
    tied = [ranked for ranked in types if ranked.margin == 0]
    layers = [layer for ranked in types for layer in ranked.layers]
    findings = (
        (
            [ranked.layer_type for ranked in tied if ranked.is_constant],
            "all layers have the same score, as norms do; the first in the model are selected",
        ),
        (
            [f"{ranked.layer_type} ({ranked.num_tied})" for ranked in tied if not ranked.is_constant],
            "a tie, since this many layers share the score at the cut; the first of them in the model are selected",
        ),
        (
            [_without_signal(layer) for layer in layers if 0 in (layer.snr, *(layer.experts or ()))],
            "no signal, since no singular value is above the bulk edge",
        ),
        (
            [layer.name for layer in layers if _is_without_noise(layer)],
            "no noise, since no singular value is below the bulk edge; these scores do not compare with others",
        ),
        (
            [layer.name for layer in layers if layer.edge is not None and layer.edge.sensitivity > CROWDED_SENSITIVITY],
            "singular values crowd the bulk edge; moving the edge by 1 percent either way changes the score by more "
            f"than {100 * CROWDED_SENSITIVITY:.0f} percent",
        ),
    )
    return [f"{listed(names, 3)}: {text}" for names, text in findings if names]


def warnings(types: Sequence[RankedType]) -> Iterator[str]:
    """Warnings of cuts that rounding may decide, since scores are equal or a singular value is on the bulk edge."""
    for ranked in types:
        if ranked.cut is None or not ranked.margin:
            continue
        last, first = ranked.cut
        if ranked.margin <= 2 * SNR_ACCURACY:
            yield f"{last.name} is selected and {first.name} is not, but their scores are equal within rounding"
        for layer in ranked.cut:
            if layer.edge is not None and layer.edge.nearest <= SNR_ACCURACY:
                yield (
                    f"{layer.name}, at the cut of its type, has a singular value on the bulk edge itself: "
                    "rounding decides whether it counts as signal"
                )


def _without_signal(layer: LayerSnr) -> str:
    if layer.experts is None:
        return layer.name
    return f"{layer.experts.count(0)} of {len(layer.experts)} in {layer.name}"


def _is_without_noise(layer: LayerSnr) -> bool:
    """Whether a layer has several singular values, all above the edge. A norm has only one, so it does not count."""
    return layer.edge is not None and layer.edge.num_below == 0 and layer.edge.num_above > 1
