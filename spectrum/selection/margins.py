"""How much hangs on a selection's cuts: margins, ties, layers whose score says little. Records in, text out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spectrum.records import SNR_ACCURACY, LayerSnr
from spectrum.text import listed


@dataclass(frozen=True, slots=True)
class RankedType:
    """The layers of one type: all of them by descending SNR, and how many of these are selected."""

    layer_type: str
    ranked: tuple[LayerSnr, ...]
    count: int

    @property
    def selected(self) -> tuple[LayerSnr, ...]:
        """The selected layers, by descending SNR."""
        return self.ranked[: self.count]


# A score that falls by more than this where the edge moves from 1 percent under to 1 percent over its place, is that of
# a layer whose singular values crowd the edge.
CROWDED = 0.25


def margin(kind: RankedType) -> float | None:
    """How far the first layer left out is below the last one selected, relative to that; None where there is no cut."""
    if not 0 < kind.count < len(kind.ranked):
        return None
    last, first = kind.ranked[kind.count - 1].snr, kind.ranked[kind.count].snr
    return 0.0 if last == first else 1 - first / last if last > 0 else 1.0


def cut(kind: RankedType) -> str:
    """The margin in a word or two."""
    distance = margin(kind)
    if distance is None:
        return ""
    if distance == 0:
        return "model order" if _is_constant(kind) else "tie"
    return f"{float(f'{100 * distance:.2g}'):g} %"


def notes(types: Sequence[RankedType]) -> list[str]:
    """What a user should know of the scores and cuts, a line for each kind of thing."""
    at_a_tie = [kind for kind in types if margin(kind) == 0]
    layers = [layer for kind in types for layer in kind.ranked]
    findings = (
        (
            [kind.layer_type for kind in at_a_tie if _is_constant(kind)],
            "all score the same, as norms do: those selected are the first in the model",
        ),
        (
            [f"{kind.layer_type} ({_tied(kind)})" for kind in at_a_tie if not _is_constant(kind)],
            "so many layers have the score that the cut goes through: the first of them in the model are selected",
        ),
        (
            [_without_signal(layer) for layer in layers if 0 in (layer.snr, *(layer.experts or ()))],
            "no signal, for no singular value is over the bulk edge",
        ),
        (
            [layer.name for layer in layers if _is_without_noise(layer)],
            "no noise, for no singular value is under the bulk edge: these scores do not compare with others",
        ),
        (
            [layer.name for layer in layers if layer.edge is not None and layer.edge.sensitivity > CROWDED],
            "singular values crowd the bulk edge: a shift of it by 1 percent either way moves the score by over "
            f"{100 * CROWDED:.0f} percent",
        ),
    )
    return [f"{listed(names, 3)}: {text}" for names, text in findings if names]


def warnings(types: Sequence[RankedType]) -> Iterator[str]:
    """Cuts that hang by less than scores are accurate to."""
    for kind in types:
        distance = margin(kind)
        if distance is None or distance == 0:
            continue
        last, first = kind.ranked[kind.count - 1], kind.ranked[kind.count]
        if distance <= 2 * SNR_ACCURACY:
            yield f"{last.name} is selected and {first.name} is not, by less than scores are accurate to"
        for layer in (last, first):
            if layer.edge is not None and layer.edge.nearest <= SNR_ACCURACY:
                yield (
                    f"{layer.name}, at the cut of its type, has a singular value on the bulk edge itself: "
                    "rounding decides whether it counts as signal"
                )


def _is_constant(kind: RankedType) -> bool:
    return kind.ranked[0].snr == kind.ranked[-1].snr


def _tied(kind: RankedType) -> int:
    return sum(layer.snr == kind.ranked[kind.count].snr for layer in kind.ranked)


def _without_signal(layer: LayerSnr) -> str:
    if layer.experts is None:
        return layer.name
    return f"{layer.experts.count(0)} of {len(layer.experts)} in {layer.name}"


def _is_without_noise(layer: LayerSnr) -> bool:
    """Single rows aside, which are one singular value."""
    return layer.edge is not None and layer.edge.num_below == 0 and layer.edge.num_above > 1
