"""What is wrong, and what should a user know? From compared parameters to problems and notes, one line for each kind.

Hundreds of parameters may have the same problem. A line names a few of them, or counts them by layer type.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from spectrum.layer_types import without_indexes
from spectrum.text import listed, plural
from spectrum.verification.alignment import Alignment
from spectrum.verification.compared import ComparedParameter, LowRank
from spectrum.verification.expected import Expected
from spectrum.verification.opening import OpenModel

_MAX_NAMED = 3  # parameters that a line names one by one
_MAX_TYPES = 6  # layer types that a line names


@dataclass(frozen=True, slots=True)
class Findings:
    """All that is known of two models.

    Args:
        base: the base.
        trained: the trained model.
        aligned: their parameters in pairs.
        expected: what was to train.
        compared: what the values tell of each pair.
        infinite: those that only the trained model has, and that hold NaN or infinity.
        low_rank: what the ranks of the changes have in common; None if they are not low.
    """

    base: OpenModel
    trained: OpenModel
    aligned: Alignment
    expected: Expected
    compared: Sequence[ComparedParameter]
    infinite: Sequence[str]
    low_rank: LowRank | None

    def moved(self, *, listed: bool) -> list[ComparedParameter]:
        """The parameters that moved, those on the list or all others."""
        return [one for one in self.compared if one.moved and one.listed is listed]

    def unmoved(self) -> list[ComparedParameter]:
        """The parameters on the list that did not move. Of tied ones, the owner stands for all."""
        return [one for one in self.compared if one.listed and one.compared and not one.moved and not one.is_tied]

    def lost(self) -> list[str]:
        """The parameters that the files of the trained model lack, though its class has them."""
        if self.base.model_class == self.trained.model_class:
            return list(self.aligned.only_base)
        missing, changes = frozenset(self.trained.missing), self.aligned.changes
        others = {without_indexes(name) for name in self.aligned.names}  # a class that has a layer has all of its stack
        return [
            name
            for name in self.aligned.only_base
            if name in missing
            or not missing.isdisjoint(change(name) for change in changes)
            or without_indexes(name) in others
        ]

    def absent(self) -> list[str]:
        """The parameters that the class of the trained model does not have. Tied ones have an owner that tells."""
        lost, tied = set(self.lost()), self.base.parameters
        return [name for name in self.aligned.only_base if name not in lost and tied[name].tied_to is None]

    def left_by_adapter(self) -> list[ComparedParameter]:
        """The biases and norms on the list that did not move because an adapter was merged, which moves none."""
        if self.low_rank is None:
            return []
        return [one for one in self.unmoved() if sum(size > 1 for size in one.shape) < 2]


def problems(found: Findings) -> Iterator[str]:
    """Why what moved is not what was to move, the gravest first."""
    moved = found.moved(listed=False)
    everything = [one for one in found.compared if one.compared]
    if moved and len(found.moved(listed=True)) + len(moved) == len(everything):
        yield f"nothing was frozen: all {len(everything)} parameters moved, also the {len(moved)} not on the list"
    elif moved:
        yield f"moved, but was not to train: {_named(moved, [one for one in everything if not one.listed])}"
    yield from _unmoved_problems(found)
    yield from _row_problems(found)
    if found.expected.unmatched:
        entries = listed(found.expected.unmatched, _MAX_NAMED)
        yield f"on the list, but no parameter of {found.base.name}: {entries}; --check says what to write instead"
    if lost := found.lost():
        yield f"missing in {found.trained.name}: {_names(lost)}"
    if absent := [name for name in found.absent() if name in found.expected.names]:
        yield f"on the list, but {found.trained.model_class} has no such parameter: {_names(absent)}"
    yield from _infinite_problems(found)
    for one in [one for one in found.compared if not one.compared][:_MAX_NAMED]:
        yield f"{one.name} is {_shape(one.shape)} in the base, and {_shape(one.trained_shape)} in the trained model"
    if (others := sum(not one.compared for one in found.compared) - _MAX_NAMED) > 0:
        yield f"{plural(others, 'more parameter has', 'more parameters have')} another shape in the trained model"


def _unmoved_problems(found: Findings) -> Iterator[str]:
    by_adapter = {one.name for one in found.left_by_adapter()}
    unmoved = [one for one in found.unmoved() if one.name not in by_adapter]
    if not unmoved:
        return
    lossy = {one.trained_dtype for one in unmoved if one.rounded_to is None and one.is_coarser}
    # Norms are near 1, so their updates are often smaller than the spacing of a dtype of 16 bits.
    lossy |= {one.trained_dtype for one in unmoved if len(one.shape) == 1} & {"bfloat16", "float16"}
    lossy |= {one.rounded_to for one in unmoved if one.rounded_to is not None}
    lost = f"; changes smaller than the spacing of {' and '.join(sorted(lossy))} are lost" if lossy else ""
    everything = [one for one in found.compared if one.listed]
    if not any(one.moved or one.moved_elsewhere for one in found.compared):
        if found.trained.num_adapter_tensors:
            yield "only adapters can have moved, and they are not merged; verify what merge_and_unload() returns"
            return
        how = "but for rounding" if any(one.rounded_to is not None for one in found.compared) else "to the last bit"
        yield f"nothing moved: every parameter is as in the base, {how}{lost}"
        return
    yield f"was to train, but did not move: {_named(unmoved, everything)}{lost}"


def _row_problems(found: Findings) -> Iterator[str]:
    if elsewhere := [one.name for one in found.compared if one.moved_elsewhere]:
        yield (
            f"rows that are not on the list moved too, in {listed(elsewhere, _MAX_NAMED)}: their gradients are zero "
            "under Axolotl, but weight decay moves them; set weight_decay to 0"
        )


def _infinite_problems(found: Findings) -> Iterator[str]:
    infinite = [one for one in found.compared if not one.finite]
    for is_in_base, words in ((False, "which the base does not have"), (True, "as in the base")):
        if names := [one.name for one in infinite if bool(one.base_finite) is not is_in_base]:
            yield f"NaN or infinity in {_names(names)}, {words}"
    if found.infinite:
        yield f"NaN or infinity in {_names(found.infinite)}, only in the trained model"


def notes(found: Findings) -> Iterator[str]:
    """What else a user should know."""
    yield from found.expected.notes
    yield from _adapter_notes(found)
    yield from _rounding_notes(found)
    for one in found.compared:
        if one.is_resized:
            before, after = one.shape[0], one.trained_shape[0]
            yield f"{one.name} is resized from {before} rows to {after}; the first {min(before, after)} were compared"
    yield from _tying_notes(found)
    yield from _class_notes(found)
    if found.base.quantization is not None:
        yield f"{found.base.name} is quantized ({found.base.quantization}), and was compared as dequantized"


def _adapter_notes(found: Findings) -> Iterator[str]:
    if found.low_rank is not None:
        low = found.low_rank
        kept = found.left_by_adapter()
        count = plural(len(kept), "bias or norm", "biases and norms")
        rest = f"; adapters do not move biases and norms, and {count} on the list did not move" if kept else ""
        yield (
            f"the changes of {listed(low.names, 4)} have rank {low.rank} or less, to the precision of {low.precision}, "
            f"as merging a LoRA adapter leaves them{rest}"
        )
    if found.trained.num_adapter_tensors:
        count = plural(found.trained.num_adapter_tensors, "tensor of adapters is", "tensors of adapters are")
        yield f"{count} not merged, and not compared; merge_and_unload() merges them"


def _rounding_notes(found: Findings) -> Iterator[str]:
    rounded = Counter(one.rounded_to for one in found.compared if one.rounded_to is not None)
    for dtype, count in rounded.items():
        yield f"{plural(count, 'parameter was', 'parameters were')} rounded to {dtype}, and otherwise did not change"
    changed = Counter((one.dtype, one.trained_dtype) for one in found.compared if one.dtype != one.trained_dtype)
    coarser = {(one.dtype, one.trained_dtype) for one in found.compared if one.is_coarser}
    for (before, after), count in changed.items():
        how = f"compared at {after}" if (before, after) in coarser else "compared exactly"
        are = plural(count, "parameter is", "parameters are")
        yield f"{are} {before} in the base and {after} after training: {how}"


def _tying_notes(found: Findings) -> Iterator[str]:
    for name, other in found.aligned.names.items():
        before, after = found.base.parameters[name].tied_to, found.trained.parameters[other].tied_to
        if before is not None and after is None:
            yield f"{name} is tied to {before} in the base, and is not in the trained model"
        elif before is None and after is not None:
            yield f"{name} is not tied in the base, and is tied to {after} in the trained model"


def _class_notes(found: Findings) -> Iterator[str]:
    before, after = found.base.model_class, found.trained.model_class
    for change in found.aligned.changes:
        yield f"{after} calls {change(change.name)} what {before} calls {change.name}, and others alike"
    if absent := [name for name in found.absent() if name not in found.expected.names]:
        yield f"only in {before}, the class of the base: {_names(absent)}"
    if extra := [name for name in found.aligned.only_trained if found.trained.parameters[name].tied_to is None]:
        yield f"only in the trained model: {_names(extra)}"
    if found.trained.unused:
        yield f"stored in {found.trained.name}, but no parameter of {after}: {_names(found.trained.unused)}"


# Many names in one line.


def _named(some: Sequence[ComparedParameter], everything: Iterable[ComparedParameter]) -> str:
    """The names of a few parameters; of more, their number and how many of each layer type there are."""
    if len(some) <= _MAX_NAMED:
        return ", ".join(one.name for one in some)
    counts = Counter(one.layer_type for one in some)
    totals = Counter(one.layer_type for one in everything)
    types = [f"{layer_type} ({count} of {totals[layer_type]})" for layer_type, count in counts.most_common()]
    return f"{len(some)} parameters, {listed(types, _MAX_TYPES)}"


def _names(names: Sequence[str]) -> str:
    return (
        f"{plural(len(names), 'parameter')}, {listed(names, _MAX_NAMED)}"
        if len(names) > _MAX_NAMED
        else ", ".join(names)
    )


def _shape(shape: tuple[int, ...]) -> str:
    return str(list(shape))
