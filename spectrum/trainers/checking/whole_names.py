"""What does a whole name stand for that this model does not have? In it, the same may have another name."""

from __future__ import annotations

from spectrum.layer_types import without_indexes
from spectrum.trainers.checking import proposals
from spectrum.trainers.checking.names import MAX_TRIED, ModelNames, numbers, with_indexes

_MAX_SHAPES = 500  # names that differ in more than their indexes, and are searched under other names
MAX_DOTS = 40  # in an entry that is explained; real names have less than half as many

# Why the model does not have a name.
CUT = "Axolotl matches from the beginning of a name"
_OF_FILES = "it is a name of the weight files or of an older transformers"
_OF_A_CLASS = "it is a name of another class or a wrapper"
_FUSED = "it names one expert, but transformers 5 keeps all experts of a layer in one parameter"


def located(name: str, names: ModelNames) -> tuple[str, str] | None:
    """Why this model does not have a name, and its own name for the same. None if there is nothing of the kind.

    What is found for one name is found for all that differ only in their indexes, which saves most of the searches.
    """
    key = without_indexes(name)
    known = names.located.get(key, [])
    for reason, new in filter(None, known):
        own = with_indexes(new, numbers(name))
        if own != name and own in names.with_parameters:
            return reason, own
    if len(known) == MAX_TRIED or (not known and len(names.located) == _MAX_SHAPES):
        return None
    found = _search(name, names)
    names.located[key] = [*known, found]
    return found


def name_for(name: str, names: ModelNames) -> tuple[str, str | None]:
    """What a name that the model lacks was meant to be, for readers of whole names: why it lacks it, and its own name.

    The reason is empty if the name is only similar. The own name is None if there is none.
    """
    if name.count(".") > MAX_DOTS:
        return "", None
    found = located(name, names)
    if found is not None:
        reason, new = found
        return ("this is only the end of a name" if reason == CUT else reason), new
    larger = of_larger(name, names)
    return (larger, None) if larger else ("", proposals.nearest(name, names))


def _search(name: str, names: ModelNames) -> tuple[str, str] | None:
    """As `located`, for this name alone."""
    new = proposals.from_mapping(name, names)
    reason = _OF_FILES
    if new is None:
        new, reason = proposals.from_single_expert(name, names), _FUSED
    if new is None:
        new, reason = proposals.of_other_class(name, names) if numbers(name) else None, _OF_A_CLASS
    if new is None:
        return None
    if new.endswith(f".{name}"):
        return CUT, new
    is_fused = "expert" in new and len(numbers(new)) < len(numbers(name))
    return (_FUSED if is_fused else reason), new


def of_larger(name: str, names: ModelNames) -> str | None:
    """Why the model does not have a name that it would have if it had more layers, or more experts in each."""
    parts = name.split(".")
    places = [i for i, part in enumerate(parts) if part.isdigit()]
    for order, place in enumerate(places):
        if len(parts[place]) > 9:
            continue
        stack = names.stack_of(
            ".".join([*parts[:place], "#", *parts[place + 1 :]]), order, lambda own: _known(own, names)
        )
        if stack is not None and int(parts[place]) not in names.indexes[stack]:
            first, last = min(names.indexes[stack]), max(names.indexes[stack])
            kept = f"{stack}.{first}" + (f" to {last}" if last > first else "")
            return f"the model has only {kept}; the list is for a {'larger' if order else 'deeper'} model"
    return None


def _known(name: str, names: ModelNames) -> str | None:
    """The model's own name for a module or parameter."""
    if name in names.with_parameters:
        return name
    found = located(name, names)
    return found and found[1]
