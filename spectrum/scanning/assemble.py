"""Turn scores of matrices into scores of layers, and these into a result."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress

from spectrum.compute.batches import WeightBatch
from spectrum.errors import SpectrumError
from spectrum.layer_types import display_order
from spectrum.records import BulkEdge, LayerSnr, LayerWeight, MatrixScore, Provenance, ScanResult, group_by_type
from spectrum.scanning.journal import Matrix
from spectrum.text import listed


def score_batches(
    stream: Generator[tuple[WeightBatch, list[MatrixScore]], None, None],
    done: Callable[[WeightBatch, list[tuple[Matrix, MatrixScore]]], None],
) -> list[tuple[Matrix, MatrixScore]]:
    """The scores of a stream of batches, each with its matrix. `done` is called after each batch."""
    scores: list[tuple[Matrix, MatrixScore]] = []
    try:
        for batch, values in stream:
            members = [(weight.parameter, index) for weight, index in batch.members]
            scored = list(zip(members, values, strict=True))
            scores += scored
            done(batch, scored)
    except KeyboardInterrupt:
        # The executor must see the interrupt too, or it waits for decompositions that are under way.
        with suppress(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)
        raise
    return scores


def layer_scores(weights: Iterable[LayerWeight], scores: Mapping[Matrix, MatrixScore]) -> list[LayerSnr]:
    """The scores of layers. The SNR of a stack is the median of its matrices."""
    layers = []
    for weight in weights:
        matrices = [scores[matrix] for matrix in weight.matrices()]
        if weight.num_matrices == 1:
            layers.append(LayerSnr(weight.name, weight.layer_type, matrices[0].snr, None, matrices[0].edge))
        else:
            experts = tuple(matrix.snr for matrix in matrices)
            median = math.nan if any(map(math.isnan, experts)) else statistics.median(experts)
            edge = _combined([matrix.edge for matrix in matrices])
            layers.append(LayerSnr(weight.name, weight.layer_type, median, experts, edge))
    return layers


def assemble(
    model: str, weights: Sequence[LayerWeight], layers: Iterable[LayerSnr], provenance: Provenance
) -> ScanResult:
    """A result in file order: types in display order, the layers of a type in model order.

    Args:
        model: the name that was scanned.
        weights: what was scored, in model order.
        layers: their scores, in any order.
        provenance: where the weights come from.
    """
    by_name = {layer.name: layer for layer in layers}
    scanned = display_order(weight.layer_type for weight in weights)
    rank = {layer_type: i for i, layer_type in enumerate(scanned)}
    ordered = [by_name[weight.name] for weight in sorted(weights, key=lambda weight: rank[weight.layer_type])]
    return ScanResult(
        model=model,
        layers=tuple(layer for layer in ordered if not math.isnan(layer.snr)),
        left_out=tuple(layer.name for layer in ordered if math.isnan(layer.snr)),
        scanned=tuple(scanned),
        provenance=provenance,
    )


def merge(old: ScanResult, new: ScanResult) -> ScanResult:
    """Both results in one: the types that `new` has scanned replace those of `old`."""
    rescanned = {layer.name for layer in new.layers}
    kept = [layer for layer in old.layers if layer.layer_type not in new.scanned and layer.name not in rescanned]
    scanned = display_order([*old.scanned, *new.scanned])
    groups = group_by_type([*kept, *new.layers])
    left_out = [*(name for name in old.left_out if name not in rescanned), *new.left_out]
    return ScanResult(
        model=new.model,
        layers=tuple(layer for layer_type in scanned for layer in groups.get(layer_type, ())),
        left_out=tuple(dict.fromkeys(left_out)),
        scanned=tuple(scanned),
        provenance=new.provenance,
    )


def refuse_without_scores(result: ScanResult) -> None:
    """Raises SpectrumError if no layer has an SNR."""
    if not result.layers:
        raise SpectrumError(f"every weight scanned holds NaN or infinity: {listed(result.left_out)}")


def warn_of_left_out(result: ScanResult, warn: Callable[[str], None]) -> None:
    """Warn of layers that have no SNR."""
    if result.left_out:
        warn(f"left out for NaN or infinity in their weights: {listed(result.left_out)}")


def _combined(edges: Sequence[BulkEdge]) -> BulkEdge:
    """One record for a stack: how the singular values of all its matrices lie about their bulk edges.

    Counts are summed, the nearest distance is the least one, and the sensitivity is the median.
    """
    return BulkEdge(
        num_above=sum(edge.num_above for edge in edges),
        num_below=sum(edge.num_below for edge in edges),
        nearest=min(edge.nearest for edge in edges),
        sensitivity=statistics.median(edge.sensitivity for edge in edges),
    )
