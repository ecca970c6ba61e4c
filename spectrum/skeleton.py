"""A model as transformers would build it, without weights: its config, its class, its modules on the meta device."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import dynamic_module_utils
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.pytorch_utils import Conv1D

from spectrum.errors import CheckpointError, first_line
from spectrum.files import parse_json, read
from spectrum.layers import MODULE_PATH
from spectrum.shards import other_than_a_model

# Axolotl's order: the multimodal class before the language model inside it.
_AUTO_CLASSES = (
    "AutoModelForImageTextToText",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForMaskedLM",
    "AutoModel",
)

_MAX_CONFIG_BYTES = 16 << 20

_NOWHERE = os.path.join(os.devnull, "nowhere")  # no directory can be there

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

# The most that published models have are 120,000, with 70,000 tensors: experts with modules of their own.
_MOST_MODULES = 200_000


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
        loader = getattr(_native_class(settings.get("architectures")), "config_class", None)
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
        raise CheckpointError(f"transformers cannot read {path}: {why(error)}") from error
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


@contextmanager
def nothing_fetched() -> Iterator[None]:
    """Have transformers do without the Hub, and without what other programs have in its cache.

    A config can name other repositories: backbones whose configs or weights, kernels whose code is to be taken. The
    user has named one model alone.
    """
    kernels: Any = getattr(transformers.integrations, "hub_kernels", None)
    changed: list[tuple[Any, str, object]] = [
        (constants, "HF_HUB_OFFLINE", True),
        (constants, "HF_HUB_CACHE", _NOWHERE),
        (dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0),  # seconds to ask on the terminal; 0: refuse
    ]
    if hasattr(kernels, "_kernels_enabled"):
        changed.append((kernels, "_kernels_enabled", False))
    before = [getattr(module, name) for module, name, _ in changed]
    for module, name, value in changed:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(changed, before, strict=True):
            setattr(module, name, value)


def why(error: Exception) -> str:
    """What went wrong in transformers, in a line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OfflineModeIsEnabled | LocalEntryNotFoundError):
            return (
                "it names another repository, of which nothing is fetched; what it takes from there must be in "
                "config.json itself (a backbone's config as backbone_config)"
            )
        cause = cause.__cause__ or cause.__context__
    return first_line(error)


def meta_model(directory: Path, config: Any, class_name: str | None, tensors: int, *, trust_remote_code: bool) -> Any:
    """The model on torch's meta device: names and shapes, no values; floating-point dtype as the config has it.

    The class is `class_name`, else the first of the config's architectures, else the first auto class that knows the
    config. tensors: how many the checkpoint has that are not empty. Raises CheckpointError where config or class make
    no model, or one of many times more modules than that.
    """
    name, build = _builder(directory, config, class_name, trust_remote_code=trust_remote_code)
    dtype = getattr(config, "dtype", None)
    default = torch.get_default_dtype()
    try:
        with quiet(), nothing_fetched(), torch.device("meta"), _at_most(min(10_000 + 10 * tensors, _MOST_MODULES)):
            torch.set_default_dtype(dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else default)
            return build()
    except Exception as error:  # a model's constructor runs anything, from missing packages to bad sizes
        raise CheckpointError(f"transformers cannot build {name} from {directory}: {why(error)}") from error
    finally:
        torch.set_default_dtype(default)


@contextmanager
def _at_most(modules: int) -> Iterator[None]:
    """Stop a model that grows beyond so many modules: without parameters, too, they take a machine's memory."""
    left = itertools.count(modules, -1)

    def count(*_: object) -> None:
        if not next(left):
            raise ValueError(f"it has over {modules} modules, more than its weights explain")

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def name_warnings(model: Any) -> Iterator[str]:
    """What a user should know before relying on the names of a model's parameters."""
    rival = _rival_class(model)
    if rival:
        yield (
            f"names are those of {type(model).__name__}; a trainer that loads {rival} sees others: "
            f"for that one, scan with --model-class {rival}"
        )


def head_and_embedding(model: Any) -> tuple[str | None, str | None]:
    """Parameter names of the output head and of the input embedding, None where the model has none."""
    return _weight_name(model, "get_output_embeddings"), _weight_name(model, "get_input_embeddings")


def parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """All parameters of a model, tied ones under each of their names."""
    yield from model.named_parameters(remove_duplicate=False)


def check_names(model: torch.nn.Module, where: object) -> None:
    """Raises CheckpointError for a parameter whose name could not stand in a list."""
    for name, _ in parameters(model):
        if not MODULE_PATH.fullmatch(name):
            raise CheckpointError(f"{where} has a parameter named {name!r}, which is no module path")


def owned_parameters(model: torch.nn.Module) -> Iterator[tuple[str, str, torch.nn.Module]]:
    """The same, as the path of the module that holds one, the name that it has there, and the module."""
    for path, module in model.named_modules(remove_duplicate=False):
        for own, _ in module.named_parameters(recurse=False):
            yield path, own, module


def torch_class(module: torch.nn.Module) -> str | None:
    """The class of torch.nn, or transformers' Conv1D, that a module is of: what adapters go by.

    Convolutions in groups, which they do not take, are `grouped`.
    """
    for kind in type(module).__mro__:
        if kind is torch.nn.Module:
            return None
        if kind is Conv1D or getattr(torch.nn, kind.__name__, None) is kind:
            return f"grouped {kind.__name__}" if getattr(module, "groups", 1) != 1 else kind.__name__
    return None


def tied_groups(model: Any) -> Iterator[set[str]]:
    """Names of parameters that are one and the same in the model."""
    group_of: dict[str, set[str]] = {}
    by_identity: dict[int, set[str]] = {}
    for name, parameter in parameters(model):
        group_of[name] = by_identity.setdefault(id(parameter), set())
        group_of[name].add(name)
    for target, origin in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if target in group_of and origin in group_of and group_of[target] is not group_of[origin]:
            group_of[origin] |= group_of[target]
            for name in group_of[target]:
                group_of[name] = group_of[origin]
    distinct = {id(group): group for group in group_of.values()}
    yield from (group for group in distinct.values() if len(group) > 1)


def _rival_class(model: Any) -> str | None:
    """The class under which another trainer would load the model with other parameter names; None if there is none.

    Axolotl prefers a multimodal class to the causal language model of the same config, and others do not.
    """
    config = model.config
    autos = (transformers.AutoModelForImageTextToText, transformers.AutoModelForCausalLM)
    choices: dict[Any, Any] = {
        auto: auto._model_mapping[type(config)] for auto in autos if type(config) in auto._model_mapping
    }
    if type(model) not in choices.values():
        return None
    for auto, chosen in choices.items():
        if chosen is type(model):
            continue
        try:
            with quiet(), nothing_fetched(), torch.device("meta"):
                rival = auto.from_config(config)
        except Exception:  # a class that cannot be built from this config is no rival
            continue
        if {name for name, _ in rival.named_parameters()} != {name for name, _ in model.named_parameters()}:
            return type(rival).__name__
    return None


def own_class(config: Any) -> str | None:
    """The class of transformers that a config names as its model's, None where it names none."""
    known = _native_class(getattr(config, "architectures", None))
    return None if known is None else str(known.__name__)


def _native_class(architectures: Sequence[str] | None) -> Any:
    """transformers' own model class of the first name in a config's `architectures`, None where there is none."""
    known = _of_models(architectures[0]) if architectures else None
    return known if isinstance(known, type) and issubclass(known, transformers.PreTrainedModel) else None


def _of_models(name: str) -> Any:
    """What has a name among transformers' models; None for all others, some of which do more when they are imported."""
    if not transformers._class_to_module.get(name, "").startswith("models."):  # type: ignore[attr-defined]
        return None
    with quiet(), nothing_fetched():
        return getattr(transformers, name, None)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers' own advice is for those who load the model; here it would stand between our own lines."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)


def _weight_name(model: Any, getter: str) -> str | None:
    try:
        wanted = getattr(model, getter)()
    except (NotImplementedError, AttributeError):
        return None
    for name, module in model.named_modules():
        if module is wanted and isinstance(getattr(module, "weight", None), torch.nn.Parameter):
            return f"{name}.weight"
    return None


def _settings(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        settings = parse_json(read(path, _MAX_CONFIG_BYTES))
    except FileNotFoundError as error:
        other = other_than_a_model(str(directory), {file.name for file in directory.iterdir()})
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


def _builder(
    directory: Path, config: Any, class_name: str | None, *, trust_remote_code: bool
) -> tuple[str, Callable[[], Any]]:
    """The name of the class to build, and how."""
    remote = getattr(config, "auto_map", None) or {}
    if class_name is not None:
        auto: Any = _of_models(class_name)
        known = _native_class([class_name])
        if known is not None:
            return class_name, partial(known, config)
        if not hasattr(auto, "_model_mapping"):
            raise CheckpointError(f"transformers {transformers.__version__} has no model class {class_name!r}")
        return class_name, partial(auto.from_config, config, trust_remote_code=trust_remote_code)
    known = _native_class(getattr(config, "architectures", None))
    if known is not None and not (trust_remote_code and remote):
        return known.__name__, partial(known, config)
    for name in _AUTO_CLASSES:
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping or (trust_remote_code and name in remote):
            return name, partial(auto.from_config, config, trust_remote_code=trust_remote_code)
    raise CheckpointError(f"no model class of transformers fits {directory}; name one with --model-class")
