"""The two JSON files of a scan: how a result is written to them and read from them.

The file of scores is flat JSON, as the reference writes it. The sidecar has the rest: which weights were scanned, under
which names, and how their singular values lie about the bulk edge. Either file may be untrusted, so every value is
checked.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spectrum.dtypes import MAX_DIMENSIONS, SIZE_LIMIT
from spectrum.errors import ResultsError
from spectrum.files import parse_json, read_untrusted
from spectrum.layer_types import MODULE_PATH
from spectrum.records import BulkEdge, LayerSnr, ModelInfo, Parameter, Provenance, ScanResult

# A scan of a trillion parameters takes 10 MB. Parsed JSON takes many times the size of its text.
MAX_BYTES = 64 << 20

_MAX_LAYERS = 300_000
_MAX_MODEL_LENGTH = 4_096  # characters; the name of a model may be a path
_MAX_WORD_LENGTH = 200  # characters of a class, a version and the like

_SCAN_AGAIN = "; scan again with --rescan, or remove it"


@dataclass(frozen=True, slots=True)
class CachedScan:
    """A scan read from disk.

    Args:
        result: the scan.
        consistent: whether the sidecar belongs to these scores. True without a sidecar.
    """

    result: ScanResult
    consistent: bool


def digest_of(scores: bytes) -> str:
    """The digest by which a sidecar and a journal refer to scores."""
    return hashlib.sha256(scores).hexdigest()


def scores_json(result: ScanResult) -> str:
    """The scores as flat JSON: `{"<layer>": {"snr": ..., "type": ...}, ...}`, with `experts` for a stack."""
    return json.dumps({layer.name: _score_entry(layer) for layer in result.layers}, indent=4) + "\n"


def sidecar_json(result: ScanResult, provenance: Provenance, scores: str) -> str:
    """The text of the sidecar of these scores."""
    entries = {
        "model": result.model,
        "scores_sha256": digest_of(scores.encode()),
        "scanned": result.scanned,
        "left_out": result.left_out,
        "edges": {layer.name: layer.edge for layer in result.layers if layer.edge is not None},
        **_provenance_entries(provenance),
    }
    return json.dumps(entries, indent=1) + "\n"


def sorted_json(result: ScanResult) -> str:
    """The scores by layer type, descending: `{"<type>": {"<layer>": snr, ...}, ...}`."""
    ranked = {
        layer_type: {layer.name: layer.snr for layer in sorted(layers, key=lambda layer: -layer.snr)}
        for layer_type, layers in result.by_type().items()
    }
    return json.dumps(ranked, indent=4) + "\n"


def read_scan(path: Path, sidecar: Path, model: str) -> CachedScan | None:
    """The scan in a file of scores and its sidecar; None if there is no such file.

    Scores may be flat or grouped by layer type: both forms are published. They may be `Infinity` and `NaN`. Without a
    sidecar, the scan has no provenance. Raises ResultsError if a file is empty or malformed.

    Args:
        path: the file of scores.
        sidecar: the sidecar, which need not exist.
        model: the model's name, used if there is no sidecar to say it.
    """
    text = _read(path)
    if text is None:
        return None
    layers = _parse_scores(path, text)
    if not layers:
        raise _malformed(path, "it holds no layers")
    if len(layers) > _MAX_LAYERS:
        raise _malformed(path, f"it holds {len(layers)} layers, more than any model has")
    sidecar_text = _read(sidecar)
    types = tuple(dict.fromkeys(layer.layer_type for layer in layers))
    scored = tuple(layer for layer in layers if not math.isnan(layer.snr))
    left_out = tuple(layer.name for layer in layers if math.isnan(layer.snr))
    if sidecar_text is None:
        return CachedScan(ScanResult(model, scored, left_out, types, None), consistent=True)
    entries = _parse(sidecar, sidecar_text)
    try:
        edges = {str(name): BulkEdge.parse(values) for name, values in entries.get("edges", {}).items()}
        result = ScanResult(
            model=_parse_model(entries["model"]),
            layers=tuple(replace(layer, edge=edges.get(layer.name)) for layer in scored),
            left_out=_parse_paths(entries["left_out"]),
            scanned=_parse_paths(entries["scanned"]),
            provenance=_parse_provenance(entries),
        )
        consistent = entries["scores_sha256"] == digest_of(text)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _malformed(sidecar, f"{type(error).__name__} {error}") from error
    return CachedScan(result, consistent)


def read_published(path: Path) -> ScanResult:
    """The scan in a file that may come from elsewhere, to compare with.

    Raises ResultsError as `read_scan` does, and if there is no such file.
    """
    try:
        found = read_scan(path, path.with_name(f"{path.stem}.meta.json"), path.stem.removeprefix("snr_results_"))
    except ResultsError as error:
        raise ResultsError(f"{path} is not a scan to compare with: {str(error).removesuffix(_SCAN_AGAIN)}") from error
    if found is None:
        raise ResultsError(f"there is no scan {path}")
    if not found.consistent:
        raise ResultsError(f"{path} and its sidecar do not belong together; copy both from where the scan was made")
    return found.result


def _score_entry(layer: LayerSnr) -> dict[str, Any]:
    entry: dict[str, Any] = {"snr": layer.snr, "type": layer.layer_type}
    if layer.experts is not None:
        entry["experts"] = list(layer.experts)
    return entry


def _provenance_entries(provenance: Provenance) -> dict[str, Any]:
    """The sidecar's entries about a scan's provenance, in their order in the file."""
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
        "parameters": {name: _parameter_entry(parameter) for name, parameter in info.parameters.items()},
        "layer_types": info.layer_types,
        **({} if provenance.cached_commit is None else {"cached_commit": provenance.cached_commit}),
    }


def _parameter_entry(parameter: Parameter) -> dict[str, Any]:
    return {key: value for key, value in asdict(parameter).items() if value is not None}


def _read(path: Path) -> bytes | None:
    try:
        return read_untrusted(path, MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _malformed(path, error.strerror or str(error)) from error


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    if not text.strip():
        raise ResultsError(f"the cached scan {path} is empty{_SCAN_AGAIN}")
    try:
        content = parse_json(text)
    except ValueError as error:
        raise _malformed(path, f"not valid JSON, {error}") from error
    if not isinstance(content, dict):
        raise _malformed(path, f"a JSON object is expected, not {type(content).__name__}")
    if not content:
        raise _malformed(path, "it holds no layers")
    return content


def _parse_scores(path: Path, text: bytes) -> list[LayerSnr]:
    content = _parse(path, text)
    if all(isinstance(entry, dict) and "snr" in entry for entry in content.values()):
        return [
            _parse_layer(path, name, entry.get("type"), entry["snr"], entry.get("experts"))
            for name, entry in content.items()
        ]
    if all(isinstance(entry, dict) and "snr" not in entry for entry in content.values()):
        return [
            _parse_layer(path, name, group, snr) for group, layers in content.items() for name, snr in layers.items()
        ]
    bad = next(name for name, entry in content.items() if not isinstance(entry, dict) or "snr" not in entry)
    raise _malformed(path, f"the entry {bad!r} has no SNR")


def _parse_layer(path: Path, name: str, layer_type: object, snr: object, experts: object = None) -> LayerSnr:
    for text in (name, layer_type):
        if not isinstance(text, str) or not MODULE_PATH.fullmatch(text):
            raise _malformed(path, f"{text!r}, at {name!r}, is not a module path")
    assert isinstance(layer_type, str)
    if not isinstance(experts, list | None):
        raise _malformed(path, f"the experts of {name!r} are not a list")
    scores = None if experts is None else tuple(_parse_snr(path, name, score) for score in experts)
    return LayerSnr(name, layer_type, _parse_snr(path, name, snr), scores)


def _parse_snr(path: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _malformed(path, f"the SNR of {name!r} is {value!r}, not a number")
    try:
        snr = float(value)
    except OverflowError as error:
        raise _malformed(path, f"the SNR of {name!r} is out of range") from error
    if snr < 0:
        raise _malformed(path, f"the SNR of {name!r} is {value!r}, but no SNR is negative")
    return snr


def _parse_provenance(entries: Mapping[str, Any]) -> Provenance:
    info = ModelInfo(
        model_class=_parse_word(entries["model_class"]),
        parameters={_parse_path(name): _parse_parameter(entry) for name, entry in entries["parameters"].items()},
        layer_types=_parse_paths(entries["layer_types"]),
        head=None if entries["head"] is None else _parse_path(entries["head"]),
        embedding=None if entries["embedding"] is None else _parse_path(entries["embedding"]),
    )
    return Provenance(
        revision=_parse_optional_word(entries["revision"]),
        commit=_parse_optional_word(entries["commit"]),
        fingerprint=_parse_optional_word(entries["fingerprint"]),
        class_asked=_parse_optional_word(entries["class_asked"]),
        versions={_parse_word(package): _parse_word(version) for package, version in entries["versions"].items()},
        info=info,
        cached_commit=_parse_optional_word(entries.get("cached_commit")),
    )


def _parse_parameter(entry: Mapping[str, Any]) -> Parameter:
    tied_to, layer_type = entry.get("tied_to"), entry.get("layer_type")
    return Parameter(
        shape=_parse_shape(entry["shape"]),
        dtype=_parse_word(entry["dtype"]),
        tied_to=None if tied_to is None else _parse_path(tied_to),
        module=_parse_optional_word(entry.get("module")),
        layer_type=None if layer_type is None else _parse_path(layer_type),
    )


def _parse_shape(values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or len(values) > MAX_DIMENSIONS:
        raise ValueError("a shape is a list of sizes")
    for size in values:
        if not isinstance(size, int) or not 0 <= size < SIZE_LIMIT:
            raise ValueError(f"{str(size)[:40]} is not a size")
    if math.prod(values) >= SIZE_LIMIT:
        raise ValueError("a shape has more elements than a tensor can have")
    return tuple(values)


def _parse_paths(values: object) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{values!r} is not a list")
    return tuple(map(_parse_path, values))


def _parse_path(value: object) -> str:
    if not isinstance(value, str) or not MODULE_PATH.fullmatch(value):
        raise ValueError(f"{value!r} is not a module path")
    return value


def _parse_optional_word(value: object) -> str | None:
    return None if value is None else _parse_word(value)


def _parse_word(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_WORD_LENGTH or not value.isprintable():
        raise ValueError(f"{str(value)[:40]!r} is not printable text of at most {_MAX_WORD_LENGTH} characters")
    return value


def _parse_model(value: object) -> str:
    if not isinstance(value, str) or len(value) > _MAX_MODEL_LENGTH:
        raise ValueError(f"{str(value)[:40]!r} is not the name of a model")
    return value


def _malformed(path: Path, reason: str) -> ResultsError:
    return ResultsError(f"the cached scan {path} cannot be used: {reason}{_SCAN_AGAIN}")
