"""Scores, and the identity of the scan that they are of, for journals."""

from __future__ import annotations

from typing import Any

from spectrum.records import BulkEdge, MatrixScore
from spectrum.scanning.journal import Matrix

IDENTITY: dict[str, Any] = {"weights": "0f3a", "class": "LlamaForCausalLM", "score": 1, "versions": {"torch": "2.13.0"}}

Score = tuple[Matrix, MatrixScore]

EDGE = BulkEdge(3, 60, 0.25, 0.5)


def score(name: str, index: int, snr: float, edge: BulkEdge = EDGE) -> Score:
    return (name, index), MatrixScore(snr, edge)


SCORES = [
    score("model.layers.0.mlp.up_proj.weight", 0, 2.946, BulkEdge(5, 59, 0.0125, 0.1)),
    score("lm_head.weight", 0, 0.1106, BulkEdge(0, 8, 1 / 7, 0.0)),
    score("experts", 17, 1 / 3, BulkEdge(64, 0, 1e-9, 1.0)),
]
