"""The result of a verification, and how it is shown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from spectrum.text import aligned, html, in_line, plural, visible, wrapped
from spectrum.verification.compared import ComparedParameter
from spectrum.verification.findings import Findings, notes, problems


@dataclass(frozen=True, slots=True, repr=False)
class Verification:
    """What moved between a base and a trained model, and whether that is what was to move.

    Args:
        base: the name of the base.
        trained: the name of the trained model.
        source: what said which parameters were to train.
        parameters: those that both models have, in the order of the base. Those that are tied in both are there once.
        missing: the parameters of the base that the trained model lacks.
        only_trained: the parameters of the trained model that the base lacks.
        problems: why what moved is not what was to move, one line for each kind.
        notes: other lines that inform the user.
    """

    base: str
    trained: str
    source: str
    parameters: tuple[ComparedParameter, ...]
    missing: tuple[str, ...]
    only_trained: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether exactly what was to train moved, and nothing is wrong with it."""
        return not self.problems

    @property
    def moved(self) -> tuple[str, ...]:
        """The names of the parameters that moved."""
        return tuple(one.name for one in self.parameters if one.moved or one.moved_elsewhere)

    def __repr__(self) -> str:
        return described(self)

    def _repr_html_(self) -> str:
        lines = "".join(f"<br>\n{escape(in_line(line))}" for line in self._lines())
        return f"<p>{escape(in_line(self._title()))}{lines}</p>\n{html(self._rows())}"

    def _title(self) -> str:
        return f"{self.trained} against {self.base}, by {self.source}"

    def _lines(self) -> list[str]:
        own = [one for one in self.parameters if one.listed and not one.is_tied]
        moved, others = sum(one.moved for one in own), sum(not one.listed for one in self.parameters)
        listed = f"{moved} of " if moved < len(own) else ""  # the rest is what merging an adapter does not move
        listed += f"the {plural(len(own), 'parameter')} on the list moved"
        ok = f"ok: {listed}, and the other {others} did not"
        return [*([f"problem: {text}" for text in self.problems] or [ok]), *(f"note: {text}" for text in self.notes)]

    def _rows(self) -> Sequence[tuple[str, ...]]:
        """A row for each layer type: how many parameters moved, of those on the list and of the others, and how far."""
        by_type: dict[str, list[ComparedParameter]] = {}
        for one in self.parameters:
            by_type.setdefault(one.layer_type, []).append(one)
        rows = [("layer type", "listed, moved", "others, moved", "median change", "largest change")]
        rows += [(layer_type, *_counts(own), *_changes(own)) for layer_type, own in by_type.items()]
        return [*rows, ("total", *_counts(self.parameters), *_changes(self.parameters))]


_LEGEND = "change: Frobenius norm of the change over that of the base, of the parameters that moved"


def described(verification: Verification, columns: int | None = None) -> str:
    """A verification as text, safe to print on a terminal. columns: the width to fit; None if any width will do."""
    lines = [wrapped(in_line(line), columns, "  ") for line in verification._lines()]
    table = aligned(verification._rows(), columns)
    title = wrapped(in_line(verification._title()), columns, "  ")
    return visible("\n\n".join([title, "\n".join(lines), table, wrapped(_LEGEND, columns, "  ")]))


def conclude(found: Findings) -> Verification:
    """The result of a verification, from all that is known of two models."""
    return Verification(
        base=found.base.name,
        trained=found.trained.name,
        source=found.expected.source,
        parameters=tuple(found.compared),
        missing=found.aligned.only_base,
        only_trained=found.aligned.only_trained,
        problems=tuple(problems(found)),
        notes=tuple(notes(found)),
    )


def _counts(parameters: Sequence[ComparedParameter]) -> tuple[str, str]:
    """How many parameters moved, of those on the list and of the others; empty where there are none."""
    cells = []
    for is_listed in (True, False):
        own = [one for one in parameters if one.listed is is_listed]
        cells.append(f"{sum(one.moved for one in own)} of {len(own)}" if own else "")
    return cells[0], cells[1]


def _changes(parameters: Sequence[ComparedParameter]) -> tuple[str, str]:
    """The median and the largest change of the parameters that moved; empty if none did."""
    changes = [one.relative_change for one in parameters if one.moved and not math.isnan(one.relative_change)]
    return (f"{statistics.median(changes):.2g}", f"{max(changes):.2g}") if changes else ("", "")
