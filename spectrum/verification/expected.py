"""What should training have moved? What a list or a selection says, as parameters of the base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from spectrum.records import ModelInfo
from spectrum.selection.selection import Selection
from spectrum.trainers import matching
from spectrum.trainers.lists import EntryList
from spectrum.trainers.readers.adapter_lists import AdapterList
from spectrum.trainers.readers.adapters import adapted
from spectrum.trainers.readers.files import ParameterLists, SomeList, trained_by
from spectrum.trainers.readers.parameter_lists import ParameterList, trained

_NO_EMBEDDINGS = ", without input embedding and output head"

RowRange = tuple[int, int | None]  # the first row, and the one after the last; None for the end of the parameter


@dataclass(frozen=True, slots=True)
class Expected:
    """The parameters that were to train.

    Args:
        source: the list or the selection, for messages.
        names: the parameters, owners of tied ones, which are the names that trainers see.
        rows: the ranges of rows of those parameters of which only some rows were to train.
        unmatched: entries or names that are no parameter of the base which trainers see.
        notes: other lines about the list.
    """

    source: str
    names: frozenset[str]
    rows: Mapping[str, tuple[RowRange, ...]] = field(default_factory=dict)
    unmatched: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def expected(chosen: Selection | SomeList, name: str, base: ModelInfo) -> Expected:
    """What a selection, or the list in a file, says of a base.

    Raises SelectionError if the lists in one file differ, or if an entry is not a valid pattern.

    Args:
        chosen: the selection, or what `read_any` has found in a file.
        name: of the file.
        base: the base.
    """
    if isinstance(chosen, Selection):
        return _of_selection(chosen, base)
    if isinstance(chosen, EntryList):
        return _of_entries(chosen, name, base)
    without: list[str] = []
    notes = () if isinstance(chosen, ParameterLists) else chosen.notes
    if isinstance(chosen, ParameterLists):
        without = [entry for own in chosen.lists for entry in _without_match(own, base)]
    elif isinstance(chosen, AdapterList):
        without = [entry for entry, own in adapted(chosen, base).by_entry.items() if not own]
    unmatched = tuple(dict.fromkeys(without))
    return Expected(f"{name} ({chosen.reader})", trained_by(chosen, base), unmatched=unmatched, notes=notes)


def _of_selection(selection: Selection, base: ModelInfo) -> Expected:
    names = selection.trained()
    # A scan by another tool does not say which embeddings the model has.
    assumed = () if selection.result.info is not None else selection.embedding_parameters()
    return Expected(
        source=f"{selection.share()} of {selection.result.model}{'' if selection.embeddings else _NO_EMBEDDINGS}",
        names=frozenset(base.owners(names)),
        unmatched=tuple(name for name in names if name not in base.parameters and name not in assumed),
    )


def _of_entries(found: EntryList, name: str, base: ModelInfo) -> Expected:
    """What the entries of a list match by Axolotl's rule."""
    parameters, tied = base.parameters, base.tied()
    matched = matching.matched(matching.AXOLOTL, found.entries, [own for own in parameters if own not in tied])
    names = frozenset[str]().union(*matched.values())
    # An entry for a tied head has no effect of its own, and is right if the owner trains.
    without = [entry for entry, own in matched.items() if not own]
    through = matching.matched(matching.AXOLOTL, without, list(tied))
    unmatched = [entry for entry in without if not any(tied[own] in names for own in through[entry])]
    repeated = found.repeated_list()
    return Expected(name, names, _rows(matched), tuple(unmatched), () if repeated is None else (repeated,))


def _without_match(found: ParameterList, base: ModelInfo) -> list[str]:
    """The entries of a list that select nothing."""
    return [entry for step in trained(found, base).by_entry for entry, own in step.items() if not own]


def _rows(matched: Mapping[str, Iterable[str]]) -> dict[str, tuple[RowRange, ...]]:
    """The ranges of rows by parameter, without the parameters that another entry selects as a whole."""
    ranges: dict[str, list[RowRange | None]] = {}
    for entry, names in matched.items():
        for name in names:
            ranges.setdefault(name, []).append(matching.rows(entry))
    return {name: tuple(filter(None, own)) for name, own in ranges.items() if None not in own}
