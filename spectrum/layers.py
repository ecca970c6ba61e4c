"""The records that flow through a scan, and how module paths group into layer types. Standard library only."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from html import escape
from typing import NamedTuple

from spectrum import tables
from spectrum.errors import LayerTypeError

# What a module or parameter may be called. Names become lines of YAML, patterns, and text on a terminal: anything that
# one of these could take differently is refused. So is what is longer than any name, and would widen every table.
MODULE_PATH = re.compile(r"\w[\w.\-/]{0,299}", re.ASCII)


@dataclass(frozen=True, slots=True)
class LayerWeight:
    """A weight to score. Never a tensor.

    name: the module's path, or the parameter's own where no module owns it as its `weight`.
    parameter: the runtime parameter whose values these are; tied weights share it.
    shape: the parameter's, as the model class declares it.
    matrix: (n, m) as scored; `count` matrices of it make the parameter (1, but for stacks of experts).
    dtype: as stored, by torch's name.
    """

    name: str
    layer_type: str
    parameter: str
    shape: tuple[int, ...]
    matrix: tuple[int, int]
    count: int
    dtype: str


@dataclass(frozen=True, slots=True)
class WeightBatch:
    """Matrices of one shape and dtype that go through one kernel call: (weight, index in its stack) each."""

    matrix: tuple[int, int]
    dtype: str
    members: tuple[tuple[LayerWeight, int], ...]


class Edge(NamedTuple):
    """What lies where at the bulk edge.

    above, below: how many singular values are over the edge, and how many, zeros aside, are not. gap: the smallest
    distance of one to it, relative to the larger of the two. jump: by how much of its largest value the SNR varies when
    the edge goes from 1 percent under its place to 1 percent over it.
    """

    above: int
    below: int
    gap: float
    jump: float


class MatrixScore(NamedTuple):
    """The score of one matrix; SNR NaN where it holds NaN or infinity."""

    snr: float
    edge: Edge


@dataclass(frozen=True, slots=True)
class LayerSnr:
    """The score of one layer; NaN where its weight holds NaN or infinity.

    experts: the scores of a stack's matrices, in order. edge: of a stack, all counts together, the smallest gap and
    the median jump; None in scans of other tools.
    """

    name: str
    layer_type: str
    snr: float
    experts: tuple[float, ...] | None = None
    edge: Edge | None = None


@dataclass(frozen=True, slots=True)
class Parameter:
    """A model's parameter: its shape and stored dtype.

    tied_to: the first parameter of the model that is the same, None where it is the first itself. module: the class
    of torch.nn, or transformers' Conv1D, that the module which holds it is of, `grouped` before it for convolutions in
    groups; None for all others.
    """

    shape: tuple[int, ...]
    dtype: str
    tied_to: str | None = None
    module: str | None = None


def owner(name: str, parameters: Mapping[str, Parameter]) -> str:
    """The first parameter of the model that is the same as this one: the name under which trainers see it."""
    known = parameters.get(name)
    return name if known is None else known.tied_to or name


def tied(parameters: Mapping[str, Parameter]) -> dict[str, str]:
    """Parameters that trainers do not see, and the one that each is the same as."""
    return {name: known.tied_to for name, known in parameters.items() if known.tied_to is not None}


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which weights were scanned, and under which names.

    revision: as asked for, None for the repository's default. commit: the one it resolved to on the Hub; None for
    a directory, which has a fingerprint of its files instead. head, embedding: parameter names, None where the
    model has none. class_asked: by --model-class. parameters: all of them, biases included. layer_types: all that
    own a weight, in display order.
    """

    revision: str | None
    commit: str | None
    fingerprint: str | None
    model_class: str
    class_asked: str | None
    versions: Mapping[str, str]
    head: str | None
    embedding: str | None
    parameters: Mapping[str, Parameter]
    layer_types: tuple[str, ...]

    def knows_modules(self) -> bool:
        """Whether it says what modules hold the parameters, which earlier versions did not."""
        return any(known.module is not None for known in self.parameters.values())


@dataclass(frozen=True, slots=True, repr=False)
class ScanResult:
    """A model's scores: layers with a finite or infinite SNR, layers left out for NaN or infinity in their weight.

    `scanned` are the layer types that were scanned. `provenance` is None for scans of other tools. `others` are names
    of layers that the model has too, where only some of its types are looked at.
    """

    model: str
    layers: tuple[LayerSnr, ...]
    left_out: tuple[str, ...]
    scanned: tuple[str, ...]
    provenance: Provenance | None
    others: tuple[str, ...] = ()

    def by_type(self) -> dict[str, list[LayerSnr]]:
        """Layers of each type, types and layers in the order of `layers`."""
        return group_by_type(self.layers)

    def __repr__(self) -> str:
        return f"{self._title()}\n\n{tables.aligned(self._rows())}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self._title())}</p>\n{tables.html(self._rows())}"

    def _title(self) -> str:
        of = f" ({self.provenance.model_class})" if self.provenance else ""
        left_out = f"; {len(self.left_out)} left out for NaN or infinity" if self.left_out else ""
        return f"Scan of {tables.in_line(self.model)}{of}: {tables.plural(len(self.layers), 'layer')}{left_out}"

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("layer type", "layers", "lowest SNR", "median SNR", "highest SNR")]
        for layer_type, layers in self.by_type().items():
            scores = [layer.snr for layer in layers]
            numbers = (min(scores), statistics.median(scores), max(scores))
            rows.append((layer_type, str(len(scores)), *(f"{number:.4g}" for number in numbers)))
        return rows


@dataclass(frozen=True, slots=True)
class TypeSelection:
    """The layers of one type: all of them by descending SNR, and how many of these are selected."""

    layer_type: str
    ranked: tuple[LayerSnr, ...]
    count: int

    @property
    def selected(self) -> tuple[LayerSnr, ...]:
        """The selected layers, by descending SNR."""
        return self.ranked[: self.count]


def layer_types(paths: Iterable[str]) -> dict[str, str]:
    """Layer type of each module path of a model.

    A type is what follows the path's first numeric component: `model.layers.7.mlp.down_proj` -> `mlp.down_proj`.
    Where several stacks of layers share such a suffix they are towers, ranked apart: the types of each carry the
    path up to the stack (`model.visual.blocks.attn.proj`). A path with no number is its own type, and one that ends
    in its first number (`heads.0`) is of the type of the stack (`heads`).
    """
    split = {path: _stack_and_suffix(path) for path in paths}
    stacks: dict[str, set[str]] = {}
    for stack, suffix in split.values():
        if stack and suffix:
            stacks.setdefault(suffix, set()).add(stack)
    towers = {stack for sharing in stacks.values() if len(sharing) > 1 for stack in sharing}
    return {
        path: f"{stack}.{suffix}" if stack in towers and suffix else suffix or stack or path
        for path, (stack, suffix) in split.items()
    }


def _stack_and_suffix(path: str) -> tuple[str, str]:
    """A path's parts before and after its first number; it is all suffix where it has none."""
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[:i]), ".".join(parts[i + 1 :])
    return "", path


def display_order(layer_types: Iterable[str]) -> list[str]:
    """Distinct layer types by first dotted component, then alphabetically, as the reference shows them."""
    return sorted(set(layer_types), key=lambda name: (name.split(".")[0], name))


def match_types(patterns: Sequence[str], layer_types: Sequence[str]) -> list[str]:
    """The layer types that some pattern names, in the order of `layer_types`.

    A pattern is an exact type, a shell pattern, or `all`. Raises LayerTypeError for one that matches nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {t for t in layer_types if pattern in ("all", t) or fnmatchcase(t, pattern)}
        if not matched:
            raise LayerTypeError(f"no layer type matches {pattern!r}; this model has: {', '.join(layer_types)}")
        chosen |= matched
    return [t for t in layer_types if t in chosen]


def group_by_type(layers: Iterable[LayerSnr]) -> dict[str, list[LayerSnr]]:
    """Layers of each type, in the order of their coming."""
    groups: dict[str, list[LayerSnr]] = {}
    for layer in layers:
        groups.setdefault(layer.layer_type, []).append(layer)
    return groups


def layer_scores(weights: Iterable[LayerWeight], scores: Mapping[tuple[str, int], MatrixScore]) -> list[LayerSnr]:
    """Scores of layers from those of matrices, by parameter and index: a stack's is the median of its matrices'."""
    layers = []
    for weight in weights:
        matrices = [scores[weight.parameter, index] for index in range(weight.count)]
        if weight.count == 1:
            layers.append(LayerSnr(weight.name, weight.layer_type, matrices[0].snr, None, matrices[0].edge))
        else:
            values, edges = [matrix.snr for matrix in matrices], [matrix.edge for matrix in matrices]
            median = math.nan if any(map(math.isnan, values)) else statistics.median(values)
            layers.append(LayerSnr(weight.name, weight.layer_type, median, tuple(values), _together(edges)))
    return layers


def _together(edges: Sequence[Edge]) -> Edge:
    return Edge(
        above=sum(edge.above for edge in edges),
        below=sum(edge.below for edge in edges),
        gap=min(edge.gap for edge in edges),
        jump=statistics.median(edge.jump for edge in edges),
    )


def assemble(
    model: str, weights: Sequence[LayerWeight], scores: Iterable[LayerSnr], provenance: Provenance
) -> ScanResult:
    """Scores in any order -> a result in file order: types in display order, layers in model order."""
    by_name = {score.name: score for score in scores}
    scanned = display_order(weight.layer_type for weight in weights)
    rank = {name: i for i, name in enumerate(scanned)}
    ordered = [by_name[w.name] for w in sorted(weights, key=lambda w: rank[w.layer_type])]
    return ScanResult(
        model=model,
        layers=tuple(layer for layer in ordered if not math.isnan(layer.snr)),
        left_out=tuple(layer.name for layer in ordered if math.isnan(layer.snr)),
        scanned=tuple(scanned),
        provenance=provenance,
    )


def merge(old: ScanResult, new: ScanResult) -> ScanResult:
    """One result of both: the types that `new` scanned replace those of `old`."""
    rescanned = {layer.name for layer in new.layers}
    kept = [layer for layer in old.layers if layer.layer_type not in new.scanned and layer.name not in rescanned]
    scanned = display_order([*old.scanned, *new.scanned])
    groups = group_by_type([*kept, *new.layers])
    return ScanResult(
        model=new.model,
        layers=tuple(layer for t in scanned for layer in groups.get(t, ())),
        left_out=tuple(dict.fromkeys([*(n for n in old.left_out if n not in rescanned), *new.left_out])),
        scanned=tuple(scanned),
        provenance=new.provenance,
    )
