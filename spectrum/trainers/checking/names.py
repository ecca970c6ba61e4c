"""The names in a model, arranged to be searched, and the entries that select certain ones and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from spectrum.errors import SelectionError
from spectrum.layer_types import paths_above, without_indexes
from spectrum.records import ModelInfo
from spectrum.trainers import matching

# Ways to write an entry, best first: what comes after it, or replaces it. A dot in brackets is a dot to all readers.
_FORMS = (("{}",), ("{}.weight",), ("{}.weight", "{}.bias"), ("{}[.]",), ("^{}$",))

_MAX_HEADS = 100  # beginnings that are tried; real models have fewer
MAX_TRIED = 8  # layers in which a name is searched: models alternate between fewer kinds


def numbers(name: str) -> list[str]:
    """The indexes in a name: `model.layers.7.mlp` -> 7."""
    return [part for part in name.split(".") if part.isdigit()]


def with_indexes(name: str, indexes: Sequence[str]) -> str:
    """A name with other indexes, in order; the first ones, if there are fewer in the name."""
    left = iter(indexes)
    return ".".join(next(left, part) if part.isdigit() else part for part in name.split("."))


@dataclass(frozen=True, slots=True)
class ModelNames:
    """The names in a model, arranged to be searched.

    Args:
        model: the model.
        renamed: the parameter that the model's mapping makes of a stored tensor's name, or the name as it is.
        seen: the parameters that trainers see.
        with_parameters: all parameters, and the modules that have some.
        heads: beginnings of names that hold no index, the input embedding's first.
        indexes: for each stack of modules, the indexes in it.
        located: for a name without its indexes, why the model lacks it and its own name, as far as it was searched.
    """

    model: ModelInfo
    renamed: Callable[[str], str]
    seen: tuple[str, ...]
    with_parameters: frozenset[str]
    heads: tuple[str, ...]
    indexes: Mapping[str, frozenset[int]]
    located: dict[str, list[tuple[str, str] | None]] = field(default_factory=dict)
    _stacks: dict[tuple[str, int], str | None] = field(default_factory=dict)
    _by_shape: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ModelInfo, renamed: Callable[[str], str]) -> ModelNames:
        """Arrange the names of a model."""
        paths: set[str] = set(model.parameters)
        indexes: dict[str, set[int]] = {}
        for name in model.parameters:
            parts = name.split(".")
            paths.update(".".join(parts[:i]) for i in range(1, len(parts)))
            for i, part in enumerate(parts):
                if part.isdigit():
                    indexes.setdefault(".".join(parts[:i]), set()).add(int(part))
        heads = {path for path in paths - model.parameters.keys() if not numbers(path)}
        first = (model.embedding or "").removesuffix(".weight").rpartition(".")[0]
        return cls(
            model=model,
            renamed=renamed,
            seen=tuple(name for name, parameter in model.parameters.items() if parameter.tied_to is None),
            with_parameters=frozenset(paths),
            heads=tuple(sorted({"", *heads}, key=lambda head: (head != first, len(head), head))[:_MAX_HEADS]),
            indexes={stack: frozenset(found) for stack, found in indexes.items()},
        )

    def stack_of(self, name: str, order: int, find: Callable[[str], str | None]) -> str | None:
        """The stack in which the model has a name for some index; None if it has it for none.

        Args:
            name: a name with `#` in place of an index.
            order: how many other indexes come before it.
            find: the model's own name for another one.
        """
        key = (without_indexes(name), order)
        if key not in self._stacks:
            self._stacks[key] = None
            for index in range(MAX_TRIED):
                own = (find(name.replace("#", str(index))) or "").split(".")
                places = [i for i, part in enumerate(own) if part.isdigit()]
                if len(places) > order:
                    self._stacks[key] = ".".join(own[: places[order]])
                    break
        return self._stacks[key]

    def exact(self, name: str, *, is_anchored: bool = False) -> tuple[str, ...]:
        """The entries that select the module or parameter of this name, and nothing else if that can be."""
        owner = next((own for tied, own in self.model.tied().items() if f"{tied}.".startswith(f"{name}.")), None)
        if owner is not None and not self.below([name]):
            return (f"^{owner}$",)
        if is_anchored and name in self.model.parameters:
            return (f"^{name}$",)
        return self.entries_for([name], name) or (name,)

    def with_patterns(self, name: str, indexes: Sequence[str]) -> tuple[str, ...] | None:
        """The entries that select exactly what is named so, with indexes that match these patterns; None if none do."""
        paths = [
            with_indexes(name, own)
            for own in self.all_indexes(name)
            if all(re.fullmatch(pattern, index) for pattern, index in zip(indexes, own, strict=False))
        ]
        return self.entries_for(paths, with_indexes(name, indexes))

    def entries_for(self, paths: Iterable[str], entry: str) -> tuple[str, ...] | None:
        """The entry, in the form in which it selects exactly what is at these paths; None if it does so in no form.

        Scripts that read the list by `re.match` select the same.
        """
        wanted = self.below(paths)
        return (
            (self._selecting(wanted, entry, _FORMS[:1]) or self._selecting(wanted, entry, _FORMS[1:]))
            if wanted
            else None
        )

    def _selecting(self, wanted: frozenset[str], entry: str, forms: Iterable[Sequence[str]]) -> tuple[str, ...] | None:
        """The first of these forms of an entry that selects exactly these parameters; None if none does."""
        written = [tuple(form.format(entry) for form in together) for together in forms]
        for rule in (matching.AXOLOTL, matching.REGULAR_EXPRESSION):
            try:
                matches = matching.matched(rule, [one for together in written for one in together], self.seen)
            except SelectionError:  # it is not a regular expression
                return None
            written = [
                together
                for together in written
                if all(matches[one] for one in together)
                and frozenset().union(*(matches[one] for one in together)) == wanted
            ]
        return next(iter(written), None)

    def below(self, paths: Iterable[str]) -> frozenset[str]:
        """The parameters at these paths or in these modules, with the biases beside bare parameters."""
        own = set(paths)
        return frozenset(
            name
            for name in self.seen
            if name in own
            or (name.endswith("_bias") and name.removesuffix("_bias") in own)
            or not own.isdisjoint(paths_above(name))
        )

    def all_indexes(self, path: str) -> set[tuple[str, ...]]:
        """The indexes of all modules and parameters that differ from this one only in them."""
        if not self._by_shape:
            for own in self.with_parameters:
                self._by_shape.setdefault(without_indexes(own), set()).add(tuple(numbers(own)))
        return self._by_shape.get(without_indexes(path), set())
