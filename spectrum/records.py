"""The records that flow through a scan. Standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from spectrum.text import aligned, html, in_line, plural


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


class BulkEdge(NamedTuple):
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
    edge: BulkEdge


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
    edge: BulkEdge | None = None


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
        return f"{self._title()}\n\n{aligned(self._rows())}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self._title())}</p>\n{html(self._rows())}"

    def _title(self) -> str:
        of = f" ({self.provenance.model_class})" if self.provenance else ""
        left_out = f"; {len(self.left_out)} left out for NaN or infinity" if self.left_out else ""
        return f"Scan of {in_line(self.model)}{of}: {plural(len(self.layers), 'layer')}{left_out}"

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("layer type", "layers", "lowest SNR", "median SNR", "highest SNR")]
        for layer_type, layers in self.by_type().items():
            scores = [layer.snr for layer in layers]
            numbers = (min(scores), statistics.median(scores), max(scores))
            rows.append((layer_type, str(len(scores)), *(f"{number:.4g}" for number in numbers)))
        return rows


def group_by_type(layers: Iterable[LayerSnr]) -> dict[str, list[LayerSnr]]:
    """Layers of each type, in the order of their coming."""
    groups: dict[str, list[LayerSnr]] = {}
    for layer in layers:
        groups.setdefault(layer.layer_type, []).append(layer)
    return groups


class Size(NamedTuple):
    """How many elements a parameter has, and whether it is an embedding's."""

    elements: int
    is_embedding: bool


def parameter_sizes(names: Iterable[str], parameters: Mapping[str, Parameter]) -> list[Size]:
    """Sizes of these parameters, tied ones once; names that the model does not have are left out."""
    owners = dict.fromkeys(owner(name, parameters) for name in names if name in parameters)
    return [Size(math.prod(parameters[name].shape), parameters[name].module == "Embedding") for name in owners]


def num_elements(of: Iterable[Size]) -> int:
    """How many elements parameters of these sizes have together."""
    return sum(size.elements for size in of)
