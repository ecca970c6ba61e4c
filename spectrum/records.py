"""The records that the steps of a scan hand to one another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from spectrum.display import Displayed
from spectrum.text import Row, in_line, plural

# The largest relative error that an SNR may have, unless a singular value sits on the bulk edge itself.
SNR_ACCURACY = 1e-8

# torch's weight normalization computes a module's weight from two parameters: its rows' norms and their directions.
WEIGHT_NORM = ("parametrizations.weight.original0", "parametrizations.weight.original1")


@dataclass(frozen=True, slots=True)
class Parameter:
    """A model's parameter, without its values.

    Args:
        shape: as the model class declares it.
        dtype: as stored, by torch's name.
        tied_to: the owner of tied parameters: the first in model order, under whose name trainers see them. None if
            this parameter is the owner itself, or is not tied.
        module: the class of the module that holds it, if torch.nn or transformers (Conv1D) defines that class;
            "grouped Conv2d" and the like for a convolution in groups; the class of an attention module whose parameters
            have a dimension for the heads; None for all other modules.
        layer_type: the type of the layer whose weight it is; None if it is not scored. Scans that early versions have
            cached lack it.
    """

    shape: tuple[int, ...]
    dtype: str
    tied_to: str | None = None
    module: str | None = None
    layer_type: str | None = None


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a model consists of, under the names that a trainer sees.

    Args:
        model_class: the name of the model's class.
        parameters: all of them in model order, biases included.
        layer_types: all types that have a weight matrix, in display order.
        head: the name of the output head's parameter, None if the model has none.
        embedding: the name of the input embedding's parameter, None if the model has none.
        modules: the paths of all modules. The cache does not keep them.
    """

    model_class: str
    parameters: Mapping[str, Parameter]
    layer_types: tuple[str, ...]
    head: str | None
    embedding: str | None
    modules: frozenset[str] = field(default=frozenset(), compare=False)

    def knows_modules(self) -> bool:
        """Whether `Parameter.module` is known. Scans that early versions have cached lack it."""
        return any(parameter.module is not None for parameter in self.parameters.values())

    def layers_by_type(self) -> dict[str, list[str]]:
        """The names of the layers of each type, types in display order. Scans of early versions name no layers."""
        layers: dict[str, list[str]] = {layer_type: [] for layer_type in self.layer_types}
        for name, parameter in self.parameters.items():
            if parameter.layer_type is not None:
                layers.setdefault(parameter.layer_type, []).append(layer_name(name))
        return {layer_type: list(dict.fromkeys(names)) for layer_type, names in layers.items()}

    def owner(self, name: str) -> str:
        """The owner of a tied parameter, see `Parameter.tied_to`; any other parameter's own name."""
        parameter = self.parameters.get(name)
        return name if parameter is None else parameter.tied_to or name

    def tied(self) -> dict[str, str]:
        """Tied parameters that trainers do not see, each with its owner."""
        return {name: parameter.tied_to for name, parameter in self.parameters.items() if parameter.tied_to is not None}

    def owners(self, names: Iterable[str]) -> list[str]:
        """The distinct owners of these parameters. Names that the model lacks are left out."""
        return list(dict.fromkeys(self.owner(name) for name in names if name in self.parameters))

    def num_elements(self, names: Iterable[str]) -> int:
        """How many elements these parameters have together. Tied ones count once."""
        return sum(math.prod(self.parameters[name].shape) for name in self.owners(names))


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a scan comes from: the weights, the class that named them, the versions that read them.

    Args:
        revision: as asked for; None for the repository's default.
        commit: the commit on the Hub that the revision resolved to; None for a directory.
        fingerprint: a digest of a directory's weight files; None for a repository.
        class_asked: the class that `--model-class` named; None for the checkpoint's own class.
        versions: of torch, transformers and spectrum.
        info: what the model consists of.
        cached_commit: the other commit that the Hub's cache had for the revision when the scan began; None if none.
    """

    revision: str | None
    commit: str | None
    fingerprint: str | None
    class_asked: str | None
    versions: Mapping[str, str]
    info: ModelInfo
    cached_commit: str | None = None


@dataclass(frozen=True, slots=True)
class LayerWeight:
    """A weight to score. It holds no tensor.

    Args:
        name: the layer's name: the module's path, or the parameter's own name if it is not a module's `weight`.
        layer_type: the type among whose layers it is ranked.
        parameter: the parameter that holds the values. Tied weights share it.
        shape: the parameter's, as the model class declares it.
        matrix_shape: (n, m) of each matrix as scored.
        num_matrices: how many such matrices the parameter holds: the number of experts of a stack, else 1.
        dtype: as stored, by torch's name.
    """

    name: str
    layer_type: str
    parameter: str
    shape: tuple[int, ...]
    matrix_shape: tuple[int, int]
    num_matrices: int
    dtype: str

    def matrices(self) -> list[tuple[str, int]]:
        """The parameter's name and the index of each matrix."""
        return [(self.parameter, index) for index in range(self.num_matrices)]


class BulkEdge(NamedTuple):
    """How the singular values of a matrix lie around the bulk edge.

    Args:
        num_above: how many are above the edge.
        num_below: how many are at or below the edge, but not 0.
        nearest: the smallest distance of a singular value from the edge, relative to the larger of the two.
        sensitivity: how much the SNR varies while the edge moves from 1 percent below its place to 1 percent above,
            relative to the largest SNR on the way.
    """

    num_above: int
    num_below: int
    nearest: float
    sensitivity: float

    @classmethod
    def parse(cls, values: Any) -> BulkEdge:
        """The record from a JSON list. Raises ValueError, TypeError or OverflowError if it is not one."""
        num_above, num_below, nearest, sensitivity = values
        if not all(isinstance(count, int) and 0 <= count < 2**63 for count in (num_above, num_below)):
            raise ValueError("a count at the bulk edge is not a whole number")
        return cls(num_above, num_below, float(nearest), float(sensitivity))


class MatrixScore(NamedTuple):
    """The score of one matrix. The SNR is NaN if the matrix holds NaN or infinity."""

    snr: float
    edge: BulkEdge


@dataclass(frozen=True, slots=True)
class LayerSnr:
    """The score of one layer.

    Args:
        name: the layer's name.
        layer_type: the type among whose layers it is ranked.
        snr: of a stack, the median over its matrices. NaN if the weight holds NaN or infinity.
        experts: the SNR of each matrix of a stack, in order; None for a single matrix.
        edge: of a stack, the sums of the counts, the smallest `nearest` and the median `sensitivity`; None if the
            scan does not say.
    """

    name: str
    layer_type: str
    snr: float
    experts: tuple[float, ...] | None = None
    edge: BulkEdge | None = None


@dataclass(frozen=True, slots=True)
class LayerSpectrum:
    """The singular values of one matrix, and the numbers that its score is computed from.

    Args:
        name: the layer's name. For a stack, the index of the matrix follows: `mlp.experts.down_proj[7]`.
        shape: (n, m) of the matrix.
        values: the min(n, m) singular values, ascending, float64, finite.
        aspect_ratio: beta = min(n, m) / max(n, m).
        interquartile_range: q75 - q25 of the values.
        sigma: the scale of the noise.
        edge: the bulk edge.
        snr: the matrix's score.
    """

    name: str
    shape: tuple[int, int]
    values: tuple[float, ...]
    aspect_ratio: float
    interquartile_range: float
    sigma: float
    edge: float
    snr: float


@dataclass(frozen=True, slots=True, repr=False)
class ScanResult(Displayed):
    """A model's scores.

    Args:
        model: the name that was scanned.
        layers: the layers that have an SNR. It may be infinite, but not NaN.
        left_out: names of the layers whose SNR is NaN, because their weight holds NaN or infinity.
        scanned: the layer types that were scanned.
        provenance: None for scans of other tools.
        part_of: the scan that this one was taken from by `only`; None for a whole scan.
    """

    model: str
    layers: tuple[LayerSnr, ...]
    left_out: tuple[str, ...]
    scanned: tuple[str, ...]
    provenance: Provenance | None
    part_of: ScanResult | None = field(default=None, compare=False)

    @property
    def info(self) -> ModelInfo | None:
        """What the model consists of; None for scans of other tools."""
        return self.provenance.info if self.provenance is not None else None

    @property
    def whole(self) -> ScanResult:
        """The scan with all its layer types."""
        return self.part_of or self

    def only(self, layer_types: Collection[str]) -> ScanResult:
        """The part of this scan that has these layer types."""
        return replace(
            self,
            layers=tuple(layer for layer in self.layers if layer.layer_type in layer_types),
            scanned=tuple(name for name in self.scanned if name in layer_types),
            part_of=self.whole,
        )

    def by_type(self) -> dict[str, list[LayerSnr]]:
        """Layers of each type, types and layers in the order of `layers`."""
        return group_by_type(self.layers)

    def _title(self) -> str:
        of = f" ({self.info.model_class})" if self.info is not None else ""
        left_out = f"; {len(self.left_out)} left out for NaN or infinity" if self.left_out else ""
        return f"Scan of {in_line(self.model)}{of}: {plural(len(self.layers), 'layer')}{left_out}"

    def rows(self) -> Sequence[Row]:
        """A table with a row for each layer type: how many layers it has, and their SNR."""
        rows: list[Row] = [("layer type", "layers", "lowest SNR", "median SNR", "highest SNR")]
        for layer_type, layers in self.by_type().items():
            scores = [layer.snr for layer in layers]
            numbers = (min(scores), statistics.median(scores), max(scores))
            rows.append((layer_type, str(len(scores)), *(f"{number:.4g}" for number in numbers)))
        return rows


def layer_name(parameter: str) -> str:
    """The name of the layer whose weight a parameter is: its module's path, or its own name if it is not a `weight`."""
    for own_name in (*WEIGHT_NORM, "weight"):
        if parameter.endswith(f".{own_name}"):
            return parameter.removesuffix(f".{own_name}")
    return parameter


def group_by_type(layers: Iterable[LayerSnr]) -> dict[str, list[LayerSnr]]:
    """Layers of each type, types and layers in the order in which they come."""
    groups: dict[str, list[LayerSnr]] = {}
    for layer in layers:
        groups.setdefault(layer.layer_type, []).append(layer)
    return groups
