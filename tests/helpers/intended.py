"""Which parameters a selection means, from the scores and the loaded model alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

Scores = Mapping[str, Mapping[str, Any]]


def selected(model: Any, scores: Scores, percent: int) -> set[str]:
    """Of each type the best, those first in the model where scores are equal."""
    place = {name: at for at, name in enumerate(parameters(model))}
    position = {name: min(place[own] for own in weight_names(name) if own in place) for name in scores}
    by_type: dict[str, list[str]] = {}
    for name, entry in scores.items():
        by_type.setdefault(entry["type"], []).append(name)
    return {
        name
        for names in by_type.values()
        for name in sorted(names, key=lambda n: (-scores[n]["snr"], position[n]))[: len(names) * percent // 100]
    }


def intended(model: Any, scores: Scores, percent: int, embeddings: bool) -> set[str]:
    """The parameters to be trained, from the scores and the loaded model alone.

    Of a selected module its own weight and bias, of a bare parameter itself and the bias beside it. A tied parameter
    is one, whatever its names.
    """
    every = parameters(model)
    names = selected(model, scores, percent)
    own = {own for name in names for own in (*weight_names(name), f"{name}.bias", f"{name}_bias")}
    trained = {id(every[name]) for name in own & every.keys()}
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    of_ends = {id(parameter) for module in ends if module is not None for parameter in module.parameters()}
    weights = {id(module.weight) for module in ends if module is not None}
    trained = trained | weights if embeddings else trained - of_ends
    return {name for name, parameter in model.named_parameters() if id(parameter) in trained}


def weight_names(layer: str) -> list[str]:
    """The names that the parameters of a layer's weight may have; two under weight normalization."""
    normalized = [f"{layer}.parametrizations.weight.original{i}" for i in range(2)]
    return [layer, f"{layer}.weight", *normalized]


def parameters(model: Any) -> dict[str, torch.Tensor]:
    """Under every name: a tied one under each module that owns it."""
    return dict(model.named_parameters(remove_duplicate=False))
