"""What does the page know of a scan? Records in, JSON values out.

Whatever has many items is a record of columns, one value for each item, since that takes the least space. A layer, a
parameter or a layer type is referred to by its place in these columns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from spectrum.layer_types import match_types
from spectrum.plots.page.overlaps import overlaps
from spectrum.plots.table import Table, TableRow, table
from spectrum.records import BulkEdge, LayerSnr, ModelInfo, ScanResult
from spectrum.selection.entries import ParameterIndex, yaml_scalar
from spectrum.selection.order import ordered
from spectrum.text import in_line
from spectrum.trainers import memory
from spectrum.trainers.formats.adapters import adapter_target, has_fused_experts, module_paths
from spectrum.trainers.formats.export import yaml_text
from spectrum.trainers.formats.lora import towers_of
from spectrum.trainers.llama_factory import NEVER

_Value = TypeVar("_Value", bound=Hashable)

_TARGETS = (None, "module", "parameter")


def scan_data(scan: ScanResult, order: str, off: Collection[str]) -> dict[str, Any]:
    """All that the page knows of a scan.

    Args:
        scan: a whole scan, with all its layer types.
        order: in which layers are selected, see `order.parse_order`.
        off: the layer types that are switched off at first. They share no row with others, since rows are switched.
    """
    info, index, places = scan.info, ParameterIndex.of(scan), table(scan, off)
    # A scan by another tool may have a name twice, under two layer types.
    names = list(info.parameters if info is not None else dict.fromkeys(index.starting_with("")))
    place = {name: i for i, name in enumerate(names)}
    layers = [layer for group in scan.by_type().values() for layer in group]
    own = [index.own(layer.name) for layer in layers]
    fused = info is not None and has_fused_experts(info)
    towers = set() if info is None else towers_of(info)
    return {
        "model": in_line(scan.model),
        "modelClass": None if info is None else info.model_class,
        "json": _json_head(scan),
        "leftOut": list(scan.left_out),
        "types": _types(scan, order),
        "rows": _rows(scan, places),
        "columns": places.columns,
        "layers": {
            **_layers(layers, places),
            "own": [[place[name] for name in each] for each in own],
            "isEmbedding": [int(index.is_embedding(layer.name)) for layer in layers],
            **_adapters(layers, own, info, fused, towers),
        },
        "parameters": _parameters(names, info),
        "embedding": index.embedding_parameters,
        "fusedExperts": fused,
        "towers": bool(towers),
        "knowsModules": info is not None and info.knows_modules(),
        "quoted": _quoted([*names, *(name.rpartition(".")[0] for name in names), *(layer.name for layer in layers)]),
    }


def _json_head(scan: ScanResult) -> list[str]:
    """The model, its class and its versions, as the format `json` writes them."""
    provenance, info = scan.provenance, scan.info
    values = (scan.model, info and info.model_class, dict(provenance.versions) if provenance else None)
    return [json.dumps(value, indent=1).replace("\n", "\n ") for value in values]


def _types(scan: ScanResult, order: str) -> list[dict[str, Any]]:
    """Each type with its layers in the order in which they are selected."""
    types, start = [], 0
    for layer_type, layers in scan.by_type().items():
        place = {layer.name: start + i for i, layer in enumerate(layers)}
        types.append({"name": layer_type, "ranked": [place[layer.name] for layer in ordered(layers, order)]})
        start += len(layers)
    return types


def _rows(scan: ScanResult, places: Table) -> list[dict[str, Any]]:
    """The rows of the heat map: label, types, whether all scores are the same, and the words for --layer-types."""
    by_type = scan.by_type()
    names = {layer_type: [layer.name for layer in layers] for layer_type, layers in by_type.items()}
    place = {layer_type: i for i, layer_type in enumerate(by_type)}
    return [
        {
            "label": row.label,
            "types": [place[layer_type] for layer_type in row.layer_types],
            "isConstant": row.is_constant,
            "words": _words(row, names),
        }
        for row in places.rows
    ]


def _words(row: TableRow, names: Mapping[str, Sequence[str]]) -> list[str]:
    """The words that choose the types of a row, and no others. names: of the layers of each type of the scan."""
    if len(row.layer_types) > 1 and match_types([row.label], names) == list(row.layer_types):
        return [row.label]
    # `all` would choose all types, so a type of that name is written as a pattern.
    return ["[a]ll" if layer_type == "all" else layer_type for layer_type in row.layer_types]


def _layers(layers: Sequence[LayerSnr], places: Table) -> dict[str, Any]:
    place = {layer.name: at for at, group in places.places.items() for layer in group}
    return {
        "name": [layer.name for layer in layers],
        "row": [place[layer.name][0] for layer in layers],
        "column": [place[layer.name][1] for layer in layers],
        "snr": [_number(layer.snr) for layer in layers],
        # Only shown, so a few digits will do.
        "experts": [layer.experts and [_number(score, 4) for score in layer.experts] for layer in layers],
        "edge": [_edge(layer.edge) for layer in layers],
    }


def _edge(edge: BulkEdge | None) -> list[float | str] | None:
    """How many singular values are above the edge and below it, the distance of the nearest, the sensitivity."""
    if edge is None:
        return None
    return [edge.num_above, edge.num_below, _number(edge.nearest, 3), _number(edge.sensitivity, 3)]


def _adapters(
    layers: Sequence[LayerSnr],
    own: Sequence[Sequence[str]],
    info: ModelInfo | None,
    fused: bool,
    towers: Collection[str],
) -> dict[str, Any]:
    """How PEFT adapts each layer (0: not, 1: as a module, 2: as a parameter), and what LLaMA-Factory knows of it.

    Args:
        layers: the layers.
        own: the parameters of each layer.
        info: the description of the model; None in a scan by another tool, of which nothing is known.
        fused: whether the model has fused experts.
        towers: the modules outside the language model.
    """
    if info is None:
        return {}
    weights = [each[0] if each else f"{layer.name}.weight" for layer, each in zip(layers, own, strict=True)]
    targets = [adapter_target(layer.name, weight, info, fused) for layer, weight in zip(layers, weights, strict=True)]
    modules = {
        layer.name: i for i, (layer, target) in enumerate(zip(layers, targets, strict=True)) if target == "module"
    }
    paths = module_paths(info)
    return {
        "adapter": list(map(_TARGETS.index, targets)),
        # For each layer that is adapted as a module: the paths of other modules in which its name occurs.
        "inside": {modules[name]: [paths[i] for i in found] for name, found in overlaps(modules, paths).items()},
        "inTower": [int(layer.name in towers) for layer in layers],
        "neverAdapted": [int(any(word in layer.name for word in NEVER)) for layer in layers],
    }


def _parameters(names: Sequence[str], info: ModelInfo | None) -> dict[str, Any]:
    """The parameters in model order. Without a description of the model, only their names are known, sorted."""
    if info is None:
        return {"name": names}
    place = {name: i for i, name in enumerate(names)}
    shapes = [tuple(parameter.shape) for parameter in info.parameters.values()]
    dtypes = [parameter.dtype for parameter in info.parameters.values()]
    sizes = list(map(memory.parameter_size, info.parameters.values()))
    (shape, of_shape), (dtype, of_dtype), (size, of_size) = _distinct(shapes), _distinct(dtypes), _distinct(sizes)
    return {
        "name": names,
        "owner": [place.get(info.owner(name), i) for i, name in enumerate(names)],
        "shape": of_shape,
        "shapes": shape,
        "dtype": of_dtype,
        "dtypes": dtype,
        "size": of_size,
        # For each parameter: others in whose name it occurs, in a model that a trainer has wrapped.
        "inside": {place[name]: found for name, found in overlaps(names, names, "backbone.").items()},
        # For each size: how many elements, and the bytes that training such a parameter takes besides its weight.
        "sizes": [{"elements": one.elements, "training": _training_bytes(one)} for one in size],
    }


def _training_bytes(size: memory.ParameterSize) -> list[list[int]]:
    """For each optimizer, under torch and under DeepSpeed."""
    return [[memory.training_bytes(size, each) for each in both] for both in memory.OPTIMIZERS.values()]


def _distinct(values: Iterable[_Value]) -> tuple[list[_Value], list[int]]:
    """The distinct values, and for each value its place among them."""
    places: dict[_Value, int] = {}
    at = [places.setdefault(value, len(places)) for value in values]
    return list(places), at


def _quoted(names: Iterable[str]) -> dict[str, list[str]]:
    """The names that are not written as they are in YAML: as the list for Axolotl has them, and as other files do."""
    quoted = {}
    for name in dict.fromkeys(names):
        if not name or ("." in name and name[0].isalpha()):
            continue
        spelt = [yaml_scalar(name), yaml_text([name]).removeprefix("- ").removesuffix("\n")]
        if spelt != [name, name]:
            quoted[name] = spelt
    return quoted


def _number(value: float, digits: int | None = None) -> float | str:
    """A number as JSON has it: `inf` and `nan` are text. digits: how many are kept; None for all."""
    if not math.isfinite(value):
        return str(value)
    return value if digits is None else float(f"{value:.{digits}g}")
