"""Reads a model's config.json: refuses numbers that no model has, and removes settings that name other repositories."""

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

from spectrum.checkpoint.mapping.isolation import failure_reason, nothing_fetched, quiet
from spectrum.checkpoint.model_class import native_class
from spectrum.errors import CheckpointError

# The largest count for each setting, by its name or by the last word of its name. A model with more would fill the
# memory with Python objects before any weight is read.
_MAX_COUNTS = {
    **dict.fromkeys(("layer", "layers", "types", "block", "blocks", "depth", "depths", "stages", "codebooks"), 2_000),
    "replace": 2_000,  # first_k_dense_replace: the number of layers that are not mixtures of experts
    "window_kernel_size": 10_000,
    "indices": 1_000_000,
    "experts": 20_000,
    "speakers": 1_000_000,
    "labels": 200_000,
}
_BY_STAGE = ("depth", "depths", "blocks", "stages")  # a list under these words has the number of layers of each stage


def read_config(directory: Path, settings: Mapping[str, Any], *, trust_remote_code: bool) -> Any:
    """The config of a model.

    Raises CheckpointError if it is broken, or if transformers does not understand it.

    Args:
        directory: the model's, for code and for messages.
        settings: the content of its config.json.
        trust_remote_code: whether Python files of the directory may be run.
    """
    settings = _usable_settings(directory, settings, trust_remote_code=trust_remote_code)
    foreign = _foreign_code(settings)
    if foreign and trust_remote_code:
        raise CheckpointError(
            f"{directory / 'config.json'} takes code from another repository, {foreign}; put that repository's Python "
            "files beside it, and take the part before -- out of its auto_map"
        )
    build = _config_builder(directory, settings, foreign, trust_remote_code=trust_remote_code)
    return _built(directory, build, trust_remote_code=trust_remote_code)


def config_of_class(directory: Path, settings: Mapping[str, Any], config_class: Any, *, trust_remote_code: bool) -> Any:
    """The config that `config_class.from_pretrained` reads from the config.json of a model.

    If the class describes a part of the model, such as its language model, transformers takes the settings of that
    part. If it describes another type of model, transformers takes the settings that it knows, and defaults for others.

    Raises CheckpointError if transformers cannot build such a config. The arguments are those of `read_config`.
    """
    usable = _usable_settings(directory, settings, trust_remote_code=trust_remote_code)
    build = partial(_build, usable, directory, config_class)
    return _built(directory, build, trust_remote_code=trust_remote_code)


def _built(directory: Path, build: Callable[[], Any], *, trust_remote_code: bool) -> Any:
    """A config within limits, that names no code unless code may be run. Raises CheckpointError for others."""
    path = directory / "config.json"
    try:
        with quiet(), nothing_fetched():
            config = build()
            if not trust_remote_code and hasattr(config, "auto_map"):
                del config.auto_map  # otherwise transformers asks whether the code of a part of the model may run
        _check_counts(path, config.to_dict())
    except CheckpointError:
        raise
    except Exception as error:  # each config class validates itself in its own way
        raise CheckpointError(f"transformers cannot read {path}: {failure_reason(error)}") from error
    return config


def _config_builder(
    directory: Path, settings: Mapping[str, Any], foreign: str | None, *, trust_remote_code: bool
) -> Callable[[], Any]:
    """A function that builds the config. Raises CheckpointError if there is none for these settings.

    Args:
        directory: the model's.
        settings: of config.json.
        foreign: the code of another repository that they name, None if they name none.
        trust_remote_code: whether Python files of the directory may be run.
    """
    path, model_type = directory / "config.json", settings.get("model_type")
    has_code = "AutoConfig" in (settings.get("auto_map") or {})
    if has_code and trust_remote_code:
        return partial(_build_by_remote_code, settings, directory)
    if model_type is None:  # configs of 2019 only name a class
        loader = getattr(native_class(settings.get("architectures")), "config_class", None)
        if loader is None:
            raise CheckpointError(f"{path} has no model_type, so it is not a transformers model")
        return partial(_build, settings, directory, loader)
    if model_type in transformers.CONFIG_MAPPING:
        return partial(_build, settings, directory, transformers.AutoConfig)
    if foreign:
        raise CheckpointError(
            f"the model type {model_type!r} of {directory} needs code from another repository, {foreign}; put "
            "that repository's Python files beside config.json, and take the part before -- out of its auto_map"
        )
    if has_code:
        raise CheckpointError(
            f"the model type {model_type!r} of {directory} needs code from its repository; "
            "read that code, then allow it with --trust-remote-code"
        )
    raise CheckpointError(
        f"transformers {transformers.__version__} does not know the model type {model_type!r} of {directory}; "
        "a newer transformers may"
    )


def _build(settings: Mapping[str, Any], directory: Path, loader: Any) -> Any:
    """The config that transformers builds from these settings alone.

    The settings have been checked, but the file may have been replaced since, and with `configuration_files`
    transformers would read another file. So it gets the settings, and reads no file.
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


def _build_by_remote_code(settings: Mapping[str, Any], directory: Path) -> Any:
    config_class: Any = get_class_from_dynamic_module(settings["auto_map"]["AutoConfig"], str(directory))
    return config_class.from_dict(dict(settings), name_or_path=str(directory))


def _usable_settings(directory: Path, settings: Mapping[str, Any], *, trust_remote_code: bool) -> dict[str, Any]:
    """The content of config.json without what leads to other repositories. Raises CheckpointError if it is broken."""
    _check_settings(directory / "config.json", settings)
    return _without_other_repositories(settings, code_from=str(directory) if trust_remote_code else None)


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises CheckpointError if the content of a config.json is broken."""
    architectures = settings.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise CheckpointError(f"{path} is broken: its architectures are not a list of class names")
    if weights_file := settings.get("transformers_weights"):
        raise CheckpointError(
            f"{path} has the weights taken from {str(weights_file)[:200]!r}; put that file in a directory of its own, "
            "as model.safetensors, with a config that does not name it"
        )
    for key, expected in (("model_type", str), ("auto_map", dict)):
        if not isinstance(settings.get(key), expected | None):
            raise CheckpointError(f"{path} is broken: its {key} is {settings[key]!r}")
    try:
        _check_counts(path, settings)
    except RecursionError as error:
        raise CheckpointError(f"{path} is nested too deep") from error


def _foreign_code(settings: Mapping[str, Any]) -> str | None:
    """The code of another repository that a config names, as `repository--module.Class`; None if it names none."""
    for value in (settings.get("auto_map") or {}).values():
        for class_name in value if isinstance(value, list) else [value]:
            if isinstance(class_name, str) and "--" in class_name:
                return class_name
    return None


def _without_other_repositories(
    settings: Mapping[str, Any], *, code_from: str | None, nested: bool = False
) -> dict[str, Any]:
    """The settings without those that lead to another repository.

    `attn_implementation` and the like may name a repository whose code transformers would use. They change no names
    and no shapes. Numbers that JSON lacks, such as infinity, are decoded from transformers' notation.

    Args:
        settings: of a config.
        code_from: the directory whose code may be run, None if none may be. It replaces the place that a nested config
            gives for its code.
        nested: whether this config is a part of another.
    """

    def clean(value: Any) -> Any:
        if isinstance(value, list):
            return [clean(element) for element in value]
        if not isinstance(value, dict):
            return value
        if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])
        return _without_other_repositories(value, code_from=code_from, nested=True)

    def is_kept(key: str, value: Any) -> bool:
        if key == "auto_map" and nested:
            return code_from is not None and isinstance(value, dict) and not _foreign_code({"auto_map": value})
        return not key.endswith(("_implementation", "name_or_path"))

    kept = {key: value if key == "auto_map" else clean(value) for key, value in settings.items() if is_kept(key, value)}
    return kept | {"_name_or_path": code_from} if nested and "auto_map" in kept else kept


def _check_counts(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises CheckpointError if a config asks for more modules or labels than any model has."""
    labels = 0
    for key, count in _counts(settings):
        if key.endswith("labels"):  # each nested config has its own labels; the limit is on their sum
            labels += count
            count = labels
        if count > _max_count(key):
            raise CheckpointError(f"{path} is broken: {count} as {key} is more than any model has")


def _max_count(key: object) -> float:
    """The largest number that a setting may have; infinity if there is no limit."""
    name = str(key)
    return _MAX_COUNTS.get(name, _MAX_COUNTS.get(name.rpartition("_")[2], math.inf))


def _counts(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The numbers of modules and labels that a config and its nested configs ask for, each with its key."""
    for key, value in settings.items():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):  # a nested config
                yield from _counts(part)
        if _max_count(key) < math.inf:
            yield from ((key, count) for count in _counts_in(key, value))


def _counts_in(key: object, value: object) -> Iterator[int]:
    """The numbers of modules or labels that one setting may ask for.

    In a list, each number may be one, and so may the length. If a list has the depth of each stage, their sum is one.
    """
    numbers = list(_whole_numbers(value))
    yield from numbers
    if isinstance(value, list):
        yield len(value)
    if str(key).rpartition("_")[2] in _BY_STAGE:
        yield sum(numbers)


def _whole_numbers(value: object) -> Iterator[int]:
    """The whole numbers in a value, or in lists nested to any depth. parse_json has limited the depth."""
    if isinstance(value, list | tuple):
        for element in value:
            yield from _whole_numbers(element)
    elif isinstance(value, int):
        yield value
