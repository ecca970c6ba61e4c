"""Scores of matrices become scores of layers, and these become a result."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from spectrum.layer_types import display_order
from spectrum.records import BulkEdge, LayerSnr, LayerWeight, MatrixScore, Provenance, ScanResult, group_by_type


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


def _together(edges: Sequence[BulkEdge]) -> BulkEdge:
    return BulkEdge(
        num_above=sum(edge.num_above for edge in edges),
        num_below=sum(edge.num_below for edge in edges),
        nearest=min(edge.nearest for edge in edges),
        sensitivity=statistics.median(edge.sensitivity for edge in edges),
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
