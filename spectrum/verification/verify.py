"""START HERE. Compare a base and a trained model, parameter by parameter, with what was to train.

Both are read once, in the same parts, a few matrices in memory. Steps: open both (`opening`), pair their parameters
(`alignment`), say which were to train (`expected`), compare the values (`comparison`), and say what that means
(`findings`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum.checkpoint.remote.model_names import ModelName
from spectrum.errors import CheckpointError
from spectrum.layer_types import layer_types
from spectrum.records import Parameter, layer_name
from spectrum.selection.selection import Selection
from spectrum.trainers.readers.files import read_any
from spectrum.verification.alignment import Alignment, align
from spectrum.verification.compared import ComparedParameter
from spectrum.verification.expected import Expected, RowRange, expected
from spectrum.verification.findings import Findings
from spectrum.verification.opening import OpenModel, open_both
from spectrum.verification.parts import Pair, pair_of
from spectrum.verification.verification import Verification, conclude

if TYPE_CHECKING:
    import torch

Progress = Callable[[int], AbstractContextManager[Any]]  # takes a number of bytes, and returns a bar as tqdm's


def verify(
    base: ModelName | torch.nn.Module,
    trained: ModelName | torch.nn.Module,
    selection: Selection | Path,
    *,
    model_class: str | None,
    trust_remote_code: bool,
    progress: Progress,
    warn: Callable[[str], None],
) -> Verification:
    """Whether what moved in training is what a selection, or the list in a file, says.

    Raises SpectrumError if that cannot be told: if one of the models cannot be opened, if the file is no list, or if
    the two have no parameter in common.

    Args:
        base: the model before training.
        trained: the model after training.
        selection: what was to train; a file as `--check` reads it.
        model_class: the class that names the parameters of the base; None for its own.
        trust_remote_code: whether Python files of the models may be run.
        progress: shows how many bytes have been compared.
        warn: as of `open_both`.
    """
    # A file that is no list is an error before anything slow.
    chosen = read_any(selection) if isinstance(selection, Path) else selection
    before, after = open_both(base, trained, model_class=model_class, trust_remote_code=trust_remote_code, warn=warn)
    return verify_open(before, after, expected(chosen, str(selection), before.info), progress)


def verify_open(base: OpenModel, trained: OpenModel, listed: Expected, progress: Progress) -> Verification:
    """`verify`, for two models that are open."""
    aligned = align(base.parameters, trained.parameters)
    if not _has_layers(aligned.names) and (_has_layers(base.parameters) or not aligned.names):
        raise CheckpointError(
            f"{trained.name} ({trained.model_class}) has none of the layers of {base.name} ({base.model_class}); "
            "was it trained from this base?"
        )
    compared = list(_compared(base, trained, aligned, listed, progress))
    infinite = tuple(_infinite(trained, aligned.only_trained, progress))
    from spectrum.verification.low_rank import low_rank_changes

    low_rank = low_rank_changes(base, trained, aligned.names, compared)
    return conclude(Findings(base, trained, aligned, listed, compared, infinite, low_rank))


def _has_layers(names: Iterable[str]) -> bool:
    """Whether a name has a number, as those of layers have. Models of other kinds may share the name of a head."""
    return any(part.isdigit() for name in names for part in name.split("."))


def _compared(
    base: OpenModel, trained: OpenModel, aligned: Alignment, listed: Expected, progress: Progress
) -> Iterator[ComparedParameter]:
    """Each parameter that both have, compared. Those that are tied in both are compared once, under their owner."""
    types = _types(base.parameters)
    names = {
        name: other for name, other in aligned.names.items() if not _is_tied_in_both(name, base, trained, aligned.names)
    }
    resized = _resized_rows(base, trained, aligned.names)
    pairs = {
        name: pair_of(base, trained, name, other)
        for name, other in names.items()
        if _is_comparable(base.parameters[name].shape, trained.parameters[other].shape, resized)
    }
    reads = [(pair, part) for pair in pairs.values() for part in pair.parts]
    total = sum(pair.num_bytes for pair in pairs.values())
    with (
        base.values.fetching_parts_ahead([(pair.name, part) for pair, part in reads]),
        trained.values.fetching_parts_ahead(
            [(pair.trained_name, part) for pair in pairs.values() for part in (*pair.parts, *pair.added)]
        ),
        progress(total) as bar,
    ):
        for name, other in names.items():
            found = _uncompared(name, types[name], base.parameters[name], trained.parameters[other], listed)
            if name in pairs:
                owner = base.parameters[name].tied_to or name
                found = _with_values(found, base, trained, pairs[name], listed.rows.get(owner, ()))
                bar.update(pairs[name].num_bytes)
            yield found


def _infinite(trained: OpenModel, names: Iterable[str], progress: Progress) -> Iterator[str]:
    """Of parameters that only the trained model has, those that hold NaN or infinity."""
    from spectrum.verification.comparison import is_finite

    pairs = [pair_of(trained, trained, name, name) for name in names if trained.parameters[name].tied_to is None]
    if not pairs:
        return
    with (
        trained.values.fetching_parts_ahead([(pair.name, part) for pair in pairs for part in pair.parts]),
        progress(sum(pair.num_bytes for pair in pairs)) as bar,
    ):
        for pair in pairs:
            if not all(is_finite(_read(trained, pair.name, part, pair)) for part in pair.parts):
                yield pair.name
            bar.update(pair.num_bytes)


def _uncompared(
    name: str, layer_type: str, parameter: Parameter, after: Parameter, listed: Expected
) -> ComparedParameter:
    """What is known of a parameter without its values."""
    return ComparedParameter(
        name=name,
        layer_type=layer_type,
        listed=(parameter.tied_to or name) in listed.names,
        shape=parameter.shape,
        trained_shape=after.shape,
        dtype=parameter.dtype,
        trained_dtype=after.dtype,
        is_tied=parameter.tied_to is not None,
    )


def _with_values(
    parameter: ComparedParameter, base: OpenModel, trained: OpenModel, pair: Pair, ranges: Sequence[RowRange]
) -> ComparedParameter:
    """A parameter with what its values tell. ranges: the rows that were to train; none if that is not by rows."""
    import torch

    from spectrum.verification import comparison

    moved, elsewhere, finite, base_finite = False, False, True, True
    change, norm = 0.0, 0.0
    first, second = (getattr(torch, dtype) for dtype in (parameter.dtype, parameter.trained_dtype))
    rounded = roundings = comparison.rounded_on_the_way(first, second)
    for part in pair.parts:
        before = _read(base, pair.name, part, pair)
        after = _read(trained, pair.trained_name, part, pair)
        found = comparison.compare(before, after, rounded, is_whole=len(pair.parts) == 1)
        rounded = found.rounded_to
        finite, base_finite = finite and found.finite, base_finite and found.base_finite is not False
        change, norm = change + found.squared_change, norm + found.squared_norm
        if ranges and found.moved:
            rows = [True] if isinstance(part, int) else comparison.moved_rows(before, after, roundings)
            inside = {_is_in(row, ranges) for row, differs in zip(pair.rows_of(part), rows, strict=True) if differs}
            moved, elsewhere = moved or True in inside, elsewhere or False in inside
        else:
            moved = moved or found.moved
    for added in pair.added:
        finite = comparison.is_finite(trained.values.read_part(pair.trained_name, added)) and finite
    was_rounded = (moved or elsewhere) and bool(rounded)
    return replace(
        parameter,
        compared=True,
        is_coarser=not comparison.holds_all(second, first),
        moved=moved and not was_rounded,
        moved_elsewhere=elsewhere and not was_rounded,
        relative_change=0.0 if was_rounded else _relative(change, norm),
        finite=finite,
        base_finite=None if finite else base_finite,
        rounded_to=min(str(dtype).removeprefix("torch.") for dtype in rounded) if was_rounded else None,
    )


def _read(model: OpenModel, name: str, part: int | slice | None, pair: Pair) -> torch.Tensor:
    """A part of a parameter, without the rows that only one of the models has."""
    value = model.values.read_part(name, part)
    return value[: pair.num_rows] if part is None and pair.num_rows is not None else value


def _is_in(row: int, ranges: Sequence[RowRange]) -> bool:
    return any(start <= row and (end is None or row < end) for start, end in ranges)


def _relative(squared_change: float, squared_norm: float) -> float:
    """The norm of a change over that of what changed."""
    if squared_norm == 0.0:
        return math.inf if squared_change else 0.0
    return math.sqrt(squared_change / squared_norm)


def _is_tied_in_both(name: str, base: OpenModel, trained: OpenModel, names: Mapping[str, str]) -> bool:
    """Whether a parameter is tied to the same owner in both models, so that the owner stands for it."""
    owner = base.parameters[name].tied_to
    return owner is not None and owner in names and trained.parameters[names[name]].tied_to == names[owner]


def _is_comparable(shape: tuple[int, ...], trained: tuple[int, ...], resized: tuple[int, int] | None) -> bool:
    """Whether values can be compared: shapes are equal, or differ in the size of the vocabulary alone."""
    if shape == trained:
        return True
    return bool(shape and trained) and shape[1:] == trained[1:] and (shape[0], trained[0]) == resized


def _resized_rows(base: OpenModel, trained: OpenModel, names: Mapping[str, str]) -> tuple[int, int] | None:
    """The sizes of the vocabulary before and after training, None if they are the same or not known."""
    embedding = base.info.embedding
    if embedding is None or embedding not in names:
        return None
    first, second = base.parameters[embedding].shape, trained.parameters[names[embedding]].shape
    return (first[0], second[0]) if first[1:] == second[1:] and first != second else None


def _types(parameters: Mapping[str, Parameter]) -> dict[str, str]:
    """The type of each parameter: that of its layer, or of its own path if it is no layer's weight."""
    others = layer_types(layer_name(name) for name, parameter in parameters.items() if parameter.layer_type is None)
    return {name: parameter.layer_type or others[layer_name(name)] for name, parameter in parameters.items()}
