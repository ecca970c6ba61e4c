"""The selection as JSON, for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from spectrum.records import LayerSnr, Parameter
from spectrum.selection.selection import Selection
from spectrum.trainers.formats.export import Export


def selected_json(selection: Selection) -> Export:
    """The selection as JSON for programs: each layer with its type, its SNR (null for infinity) and its parameters."""
    provenance, info = selection.result.provenance, selection.result.info
    parameters = info.parameters if info else {}
    scores = {layer.name: layer for ranked in selection.types for layer in ranked.selected}
    content = {
        "model": selection.result.model,
        "model_class": info.model_class if info else None,
        "versions": dict(provenance.versions) if provenance else None,
        "top_percent": float(selection.percent),
        "order": selection.order,
        "embeddings": _parameter_entries(selection.embedding_parameters(), parameters),
        "layers": [
            {**_layer_entry(scores[layer]), "parameters": _parameter_entries(own, parameters)}
            for layer, own in selection.parameters().items()
        ],
    }
    return Export(json.dumps(content, indent=1, allow_nan=False) + "\n")


def _layer_entry(layer: LayerSnr) -> dict[str, Any]:
    """The JSON entry of a layer, without its parameters."""
    return {"name": layer.name, "type": layer.layer_type, "snr": layer.snr if math.isfinite(layer.snr) else None}


def _parameter_entries(names: Iterable[str], parameters: Mapping[str, Parameter]) -> list[dict[str, Any]]:
    """The JSON entries of parameters. One that the scan does not describe has only its name."""
    return [
        {"name": name, "shape": list(parameters[name].shape), "dtype": parameters[name].dtype}
        if name in parameters
        else {"name": name}
        for name in names
    ]
