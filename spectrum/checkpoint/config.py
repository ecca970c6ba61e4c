"""A model's config.json, bounded and read."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import OfflineModeIsEnabled
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from spectrum.checkpoint.disk.weight_files import not_a_model_reason
from spectrum.checkpoint.isolation import failure_reason, native_class, nothing_fetched, quiet
from spectrum.errors import CheckpointError
from spectrum.files import parse_json, read

_MAX_CONFIG_BYTES = 16 << 20

# More of these than any model has would take a machine's memory, in Python objects alone, before a weight is looked at.
_MOST = {
    **dict.fromkeys(("layer", "layers", "types", "block", "blocks", "depth", "depths", "stages", "codebooks"), 2_000),
    "replace": 2_000,  # first_k_dense_replace: so many layers are not mixtures of experts
    "window_kernel_size": 10_000,
    "indices": 1_000_000,
    "experts": 20_000,
    "speakers": 1_000_000,
    "labels": 200_000,
}
_BY_STAGE = ("depth", "depths", "blocks", "stages")


def read_config(directory: Path, *, trust_remote_code: bool) -> Any:
    """The model's config. Raises CheckpointError where there is none, or none that transformers understands."""
    path = directory / "config.json"
    settings = _without_others(_settings(directory), code_from=str(directory) if trust_remote_code else None)
    elsewhere = _code_of_another(settings)
    if elsewhere and trust_remote_code:
        raise CheckpointError(
            f"{path} takes code from another repository, {elsewhere}; put that repository's Python files beside it, "
            "and take the part before -- out of its auto_map"
        )
    model_type = settings.get("model_type")
    remote = "AutoConfig" in (settings.get("auto_map") or {})
    make: Callable[[], Any] = partial(_made, settings, directory, transformers.AutoConfig)
    if remote and trust_remote_code:
        make = partial(_made_by_remote_code, settings, directory)
    elif model_type is None:  # as in configs of 2019, which name a class alone
        loader = getattr(native_class(settings.get("architectures")), "config_class", None)
        if loader is None:
            raise CheckpointError(f"{path} has no model_type, so it is no transformers model")
        make = partial(_made, settings, directory, loader)
    elif model_type not in transformers.CONFIG_MAPPING:
        if elsewhere:
            raise CheckpointError(
                f"the model type {model_type!r} of {directory} needs code from another repository, {elsewhere}; put "
                "that repository's Python files beside config.json, and take the part before -- out of its auto_map"
            )
        if remote:
            raise CheckpointError(
                f"the model type {model_type!r} of {directory} needs code from its repository; "
                "read that code, then allow it with --trust-remote-code"
            )
        raise CheckpointError(
            f"transformers {transformers.__version__} does not know the model type {model_type!r} of {directory}; "
            "a newer transformers may"
        )
    try:
        with quiet(), nothing_fetched():
            config = make()
            if not trust_remote_code and hasattr(config, "auto_map"):
                del config.auto_map  # or a part of the model would ask whether its code may run
        _check_counts(path, config.to_dict())
    except CheckpointError:
        raise
    except Exception as error:  # configs validate themselves, each in its own way
        raise CheckpointError(f"transformers cannot read {path}: {failure_reason(error)}") from error
    return config


def _made(settings: Mapping[str, Any], directory: Path, loader: Any) -> Any:
    """The config that transformers makes of these settings, and of nothing else.

    They have been looked at. What lies in the directory may be something else by now, and `configuration_files` would
    have transformers read another file of it.
    """

    def get_config_dict(cls: Any, name: object, /, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if str(name) != str(directory):
            raise OfflineModeIsEnabled(f"{name} is another repository")
        return copy.deepcopy(dict(settings)), {"name_or_path": str(directory)}

    base = transformers.PreTrainedConfig
    before = base.__dict__["get_config_dict"]
    base.get_config_dict = classmethod(get_config_dict)  # type: ignore[method-assign,assignment]
    try:
        return loader.from_pretrained(str(directory))
    finally:
        base.get_config_dict = before  # type: ignore[method-assign]


def _made_by_remote_code(settings: Mapping[str, Any], directory: Path) -> Any:
    made: Any = get_class_from_dynamic_module(settings["auto_map"]["AutoConfig"], str(directory))
    return made.from_dict(dict(settings), name_or_path=str(directory))


def own_class(config: Any) -> str | None:
    """The class of transformers that a config names as its model's, None where it names none."""
    known = native_class(getattr(config, "architectures", None))
    return None if known is None else str(known.__name__)


def _settings(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        settings = parse_json(read(path, _MAX_CONFIG_BYTES))
    except FileNotFoundError as error:
        other = not_a_model_reason(str(directory), {file.name for file in directory.iterdir()})
        raise CheckpointError(other or f"{directory} has no config.json, so it is no transformers model") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} is no JSON object")
    architectures = settings.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise CheckpointError(f"{path} is broken: its architectures are no list of class names")
    if elsewhere := settings.get("transformers_weights"):
        raise CheckpointError(
            f"{path} has the weights taken from {str(elsewhere)[:200]!r}; put that file in a directory of its own, as "
            "model.safetensors, with a config that does not name it"
        )
    for key, kind in (("model_type", str), ("auto_map", dict)):
        if not isinstance(settings.get(key), kind | None):
            raise CheckpointError(f"{path} is broken: its {key} is {settings[key]!r}")
    try:
        _check_counts(path, settings)
        return settings
    except RecursionError as error:
        raise CheckpointError(f"{path} is nested too deep") from error


def _code_of_another(settings: Mapping[str, Any]) -> str | None:
    """The code of another repository that a config names, as `repository--module.Class`."""
    for class_name in (settings.get("auto_map") or {}).values():
        for each in class_name if isinstance(class_name, list) else [class_name]:
            if isinstance(each, str) and "--" in each:
                return each
    return None


def _without_others(settings: dict[str, Any], *, code_from: str | None, within: bool = False) -> dict[str, Any]:
    """Settings, and those within them, but for what leads elsewhere.

    `attn_implementation` and the like may name a repository whose code is to be taken; they change no name and no
    shape. A config within another (`within`) says of its own where its code is: that is `code_from`, the model's
    directory, or there is none. Numbers that JSON lacks are as transformers writes them.
    """

    def without(value: Any) -> Any:
        if isinstance(value, list):
            return [without(each) for each in value]
        if not isinstance(value, dict):
            return value
        if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])
        return _without_others(value, code_from=code_from, within=True)

    def is_kept(key: str, value: Any) -> bool:
        if key == "auto_map" and within:
            return code_from is not None and isinstance(value, dict) and not _code_of_another({"auto_map": value})
        return not key.endswith(("_implementation", "name_or_path"))

    kept = {
        key: value if key == "auto_map" else without(value) for key, value in settings.items() if is_kept(key, value)
    }
    return kept | {"_name_or_path": code_from} if within and "auto_map" in kept else kept


def _check_counts(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises CheckpointError where a config says that there are more modules, or labels, than any model has."""
    labels = 0
    for key, count in _counts(settings):
        if key.endswith("labels"):  # each config within another has its own
            labels += count
            count = labels
        if count > _most(key):
            raise CheckpointError(f"{path} is broken: {count} as {key} is more than any model has")


def _most(key: object) -> float:
    """The largest number that a key may have: of that name, or of its last word."""
    name = str(key)
    return _MOST.get(name, _MOST.get(name.rpartition("_")[2], math.inf))


def _counts(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """What a config says of how many modules, or labels, there are; also in the configs within it.

    A list says it by its numbers and by its length; where each stage of a model has its own depth, by their sum.
    """
    for key, value in settings.items():
        parts = value if isinstance(value, list) else []
        if isinstance(value, dict):
            yield from _counts(value)
        for part in parts:
            if isinstance(part, dict):
                yield from _counts(part)
        if _most(key) < math.inf:
            numbers = list(_numbers(value))
            yield from ((key, number) for number in numbers)
            yield key, len(parts)
            if str(key).rpartition("_")[2] in _BY_STAGE:
                yield key, sum(numbers)


def _numbers(value: object) -> Iterator[int]:
    """Whole numbers in lists of any depth, which JSON's reader has bounded."""
    if isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)
    elif isinstance(value, int):
        yield value
