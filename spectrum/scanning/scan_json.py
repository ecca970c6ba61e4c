"""Scans on disk: their paths, reading every published form, replacing atomically."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spectrum.errors import ResultsError
from spectrum.files import parse_json, read, sorted_path, write_atomically
from spectrum.layer_types import MODULE_PATH
from spectrum.records import BulkEdge, LayerSnr, ModelInfo, Parameter, Provenance, ScanResult
from spectrum.scanning.store import MAX_BYTES, digest_of, scan_path, sidecar_path

_AGAIN = "; scan again with --rescan, or remove it"

_MOST_LAYERS = 300_000
_MOST_DIMENSIONS = 64
_LONGEST_MODEL = 4_096  # characters; a path's
_LONGEST_WORD = 200  # of a sidecar, such as a class or a version


@dataclass(frozen=True, slots=True)
class CachedScan:
    """A scan read from disk. `whole` is False where its sidecar belongs to other scores than the file holds."""

    result: ScanResult
    whole: bool


def load(results_dir: Path, model: str) -> CachedScan | None:
    """The cached scan of a model, or None where there is none.

    Reads the flat form, the nested form that is otherwise written to `_sorted.json`, and `Infinity` and `NaN`.
    Raises ResultsError for a file that is empty or malformed.
    """
    return _load(scan_path(results_dir, model), sidecar_path(results_dir, model), model)


def load_file(path: Path) -> ScanResult:
    """A scan by its file, which others may have made. Raises ResultsError as `load` does, and where there is none."""
    try:
        found = _load(path, path.with_name(f"{path.stem}.meta.json"), path.stem.removeprefix("snr_results_"))
    except ResultsError as error:
        raise ResultsError(f"{path} is no scan to compare with: {str(error).removesuffix(_AGAIN)}") from error
    if found is None:
        raise ResultsError(f"there is no scan {path}")
    if not found.whole:
        raise ResultsError(f"{path} and its sidecar do not belong together; copy both from where the scan was made")
    return found.result


def _load(path: Path, sidecar: Path, model: str) -> CachedScan | None:
    text = _read(path)
    if text is None:
        return None
    layers = _parse_scores(path, text)
    if not layers:
        raise _malformed(path, "it holds no layers")
    if len(layers) > _MOST_LAYERS:
        raise _malformed(path, f"it holds {len(layers)} layers, more than any model has")
    recorded = _read(sidecar)
    types = tuple(dict.fromkeys(layer.layer_type for layer in layers))
    finite = tuple(layer for layer in layers if not math.isnan(layer.snr))
    left_out = tuple(layer.name for layer in layers if math.isnan(layer.snr))
    if recorded is None:
        return CachedScan(ScanResult(model, finite, left_out, types, None), whole=True)
    meta = _parse(sidecar, recorded)
    try:
        provenance = _provenance(meta)
        edges = {str(name): BulkEdge.parse(values) for name, values in meta.get("edges", {}).items()}
        finite = tuple(replace(layer, edge=edges.get(layer.name)) for layer in finite)
        left_out, scanned = _paths(meta["left_out"]), _paths(meta["scanned"])
        whole = meta["scores_sha256"] == digest_of(text)
        model = _model(meta["model"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _malformed(sidecar, f"{type(error).__name__} {error}") from error
    return CachedScan(ScanResult(model, finite, left_out, scanned, provenance), whole)


def save(results_dir: Path, result: ScanResult) -> Path:
    """Write a scan and its sidecar; return the scan's path.

    The sidecar goes first and names the scores by digest, so whenever this is cut short, what is on disk is the old
    scan, or is seen not to belong together. Raises ResultsError where a file cannot be written.
    """
    scores = {layer.name: _entry(layer) for layer in result.layers}
    text = json.dumps(scores, indent=4) + "\n"
    if result.provenance is not None:
        meta = {
            "model": result.model,
            "scores_sha256": digest_of(text.encode()),
            "scanned": result.scanned,
            "left_out": result.left_out,
            "edges": {layer.name: layer.edge for layer in result.layers if layer.edge is not None},
            **_provenance_entries(result.provenance),
        }
        write_atomically(sidecar_path(results_dir, result.model), json.dumps(meta, indent=1) + "\n")
    path = scan_path(results_dir, result.model)
    write_atomically(path, text)
    return path


def save_sorted(output_dir: Path, result: ScanResult) -> Path:
    """Write the scores by layer type, descending; return the path. Raises ResultsError where it cannot be written."""
    ranked = {
        layer_type: {layer.name: layer.snr for layer in sorted(layers, key=lambda layer: -layer.snr)}
        for layer_type, layers in result.by_type().items()
    }
    path = sorted_path(output_dir, result.model)
    write_atomically(path, json.dumps(ranked, indent=4) + "\n")
    return path


def _entry(layer: LayerSnr) -> dict[str, Any]:
    entry: dict[str, Any] = {"snr": layer.snr, "type": layer.layer_type}
    if layer.experts is not None:
        entry["experts"] = list(layer.experts)
    return entry


def _known(parameter: Parameter) -> dict[str, Any]:
    return {key: value for key, value in asdict(parameter).items() if value is not None}


def _read(path: Path) -> bytes | None:
    try:
        return read(path, MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _malformed(path, error.strerror or str(error)) from error


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    if not text.strip():
        raise ResultsError(f"the cached scan {path} is empty{_AGAIN}")
    try:
        content = parse_json(text)
    except ValueError as error:
        raise _malformed(path, f"no valid JSON, {error}") from error
    if not isinstance(content, dict):
        raise _malformed(path, f"a JSON object is expected, not {type(content).__name__}")
    if not content:
        raise _malformed(path, "it holds no layers")
    return content


def _parse_scores(path: Path, text: bytes) -> list[LayerSnr]:
    content = _parse(path, text)
    if all(isinstance(value, dict) and "snr" in value for value in content.values()):
        return [
            _layer(path, name, value.get("type"), value["snr"], value.get("experts")) for name, value in content.items()
        ]
    if all(isinstance(value, dict) and "snr" not in value for value in content.values()):
        return [_layer(path, name, kind, snr) for kind, group in content.items() for name, snr in group.items()]
    bad = next(name for name, value in content.items() if not isinstance(value, dict) or "snr" not in value)
    raise _malformed(path, f"the entry {bad!r} has no SNR")


def _layer(path: Path, name: str, layer_type: object, snr: object, experts: object = None) -> LayerSnr:
    for text in (name, layer_type):
        if not isinstance(text, str) or not MODULE_PATH.fullmatch(text):
            raise _malformed(path, f"{text!r}, at {name!r}, is no module path")
    assert isinstance(layer_type, str)
    if not isinstance(experts, list | None):
        raise _malformed(path, f"the experts of {name!r} are no list")
    values = None if experts is None else tuple(_number(path, name, value) for value in experts)
    return LayerSnr(name, layer_type, _number(path, name, snr), values)


def _number(path: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _malformed(path, f"the SNR of {name!r} is {value!r}, not a number")
    try:
        snr = float(value)
    except OverflowError as error:
        raise _malformed(path, f"the SNR of {name!r} is out of range") from error
    if snr < 0:
        raise _malformed(path, f"the SNR of {name!r} is {value!r}, less than any")
    return snr


def _provenance_entries(provenance: Provenance) -> dict[str, Any]:
    """What the sidecar says of a scan's origin: a flat object, in this order."""
    info = provenance.info
    return {
        "revision": provenance.revision,
        "commit": provenance.commit,
        "fingerprint": provenance.fingerprint,
        "model_class": info.model_class,
        "class_asked": provenance.class_asked,
        "versions": dict(provenance.versions),
        "head": info.head,
        "embedding": info.embedding,
        "parameters": {name: _known(parameter) for name, parameter in info.parameters.items()},
        "layer_types": info.layer_types,
    }


def _provenance(meta: dict[str, Any]) -> Provenance:
    info = ModelInfo(
        model_class=_word(meta["model_class"]),
        head=None if meta["head"] is None else _path(meta["head"]),
        embedding=None if meta["embedding"] is None else _path(meta["embedding"]),
        parameters={
            _path(name): Parameter(
                _shape(entry["shape"]),
                _word(entry["dtype"]),
                None if entry.get("tied_to") is None else _path(entry["tied_to"]),
                _optional(entry.get("module")),
            )
            for name, entry in meta["parameters"].items()
        },
        layer_types=_paths(meta["layer_types"]),
    )
    return Provenance(
        revision=_optional(meta["revision"]),
        commit=_optional(meta["commit"]),
        fingerprint=_optional(meta["fingerprint"]),
        class_asked=_optional(meta["class_asked"]),
        versions={_word(k): _word(v) for k, v in meta["versions"].items()},
        info=info,
    )


def _shape(values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > _MOST_DIMENSIONS:
        raise ValueError("a shape is a list of sizes")
    shape = tuple(map(_count, values))
    if math.prod(shape) >= 2**63:
        raise ValueError("a shape of more elements than a tensor can have")
    return shape


def _count(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"{str(value)[:40]} is no number of anything")
    return value


def _paths(values: object) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{values!r} is no list")
    return tuple(map(_path, values))


def _optional(value: object) -> str | None:
    return None if value is None else _word(value)


def _word(value: object) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_WORD or not value.isprintable():
        raise ValueError(f"{str(value)[:40]!r} is no word")
    return value


def _model(value: object) -> str:
    """A model's name, which may be a long path."""
    if not isinstance(value, str) or len(value) > _LONGEST_MODEL:
        raise ValueError(f"{str(value)[:40]!r} is no name of a model")
    return value


def _path(value: object) -> str:
    if not isinstance(value, str) or not MODULE_PATH.fullmatch(value):
        raise ValueError(f"{value!r} is no module path")
    return value


def _malformed(path: Path, reason: str) -> ResultsError:
    return ResultsError(f"the cached scan {path} cannot be used: {reason}{_AGAIN}")
