"""Which parameter of the trained model is which of the base? They have one name, or names that begin differently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from spectrum.layer_types import beginnings
from spectrum.records import Parameter

_MAX_CHANGES = 8  # beginnings that two classes call differently


@dataclass(frozen=True, slots=True)
class Change:
    """Two classes call a part of the model differently.

    Args:
        old: how names begin in the base.
        new: how the same names begin in the trained model.
        name: an example, in the base.
    """

    old: str
    new: str
    name: str

    def __call__(self, name: str) -> str:
        """The trained model's name for one of the base's; the name itself if it does not begin so."""
        return self.new + name[len(self.old) :] if name.startswith(self.old) else name


@dataclass(frozen=True, slots=True)
class Alignment:
    """The parameters that two models have in common.

    Args:
        names: the trained model's name for each of the base's parameters, in the order of the base.
        only_base: the parameters of the base that the trained model lacks.
        only_trained: the parameters of the trained model that the base lacks.
        changes: how names differ.
    """

    names: Mapping[str, str]
    only_base: tuple[str, ...]
    only_trained: tuple[str, ...]
    changes: tuple[Change, ...]


def align(base: Mapping[str, Parameter], trained: Mapping[str, Parameter]) -> Alignment:
    """Pair the parameters of two models, one to one.

    A name that both have is a pair. The rest are paired by the change of their beginnings that pairs the most of them,
    then by the next such change. Classes of one family differ so: `model.layers.`, `model.language_model.layers.`.
    """
    pairs = {name: name for name in base if name in trained}
    changes: list[Change] = []
    for _ in range(_MAX_CHANGES):
        left = {name: parameter for name, parameter in base.items() if name not in pairs}
        taken = set(pairs.values())
        free = {name: parameter for name, parameter in trained.items() if name not in taken}
        change, found = _best_change(left, free)
        if change is None:
            break
        pairs |= found
        changes.append(change)
    taken = set(pairs.values())
    return Alignment(
        names={name: pairs[name] for name in base if name in pairs},
        only_base=tuple(name for name in base if name not in pairs),
        only_trained=tuple(name for name in trained if name not in taken),
        changes=tuple(changes),
    )


def _best_change(left: Mapping[str, Parameter], free: Mapping[str, Parameter]) -> tuple[Change | None, dict[str, str]]:
    """The change of beginnings that makes the most pairs, and its pairs; None if no change is plausible."""
    by_end: dict[str, list[str]] = {}
    for name in free:
        for prefix in beginnings(name):
            by_end.setdefault(name[len(prefix) :], []).append(prefix)
    pairs: dict[tuple[str, str], dict[str, str]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for name, parameter in left.items():
        for old in beginnings(name):
            end = name[len(old) :]
            for new in by_end.get(end, ()):
                if _fit(parameter.shape, free[new + end].shape):
                    pairs.setdefault((old, new), {})[name] = new + end
                    counts[old, new] += 1
    plausible = [change for change in counts if _is_plausible(*change, pairs[change])]
    if not plausible:
        return None, {}
    # Of changes that make the same pairs, the shortest.
    old, new = max(plausible, key=lambda change: (counts[change], -len(change[0]) - len(change[1])))
    found = pairs[old, new]
    return Change(old, new, next(iter(found))), found


def _is_plausible(old: str, new: str, names: Iterable[str]) -> bool:
    """Whether two beginnings may stand for one thing. `pooler.dense` is not `classifier.dense`, with any shape.

    They do if a stack of layers is below both. What is no stack may only be deeper in one class.
    """
    return not old or not new or any(part.isdigit() for name in names for part in name.split("."))


def _fit(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether shapes are equal, perhaps apart from the number of rows, which is that of a vocabulary."""
    return shape == other or (len(shape) == len(other) >= 2 and shape[1:] == other[1:])
