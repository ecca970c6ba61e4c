"""The model as transformers would build it, on torch's meta device: names and shapes without values."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.modules.module import register_module_module_registration_hook

from spectrum.checkpoint.config import config_of_class
from spectrum.checkpoint.mapping.isolation import failure_reason, nothing_fetched, quiet
from spectrum.checkpoint.model_class import (
    AUTO_CLASSES,
    class_of_auto,
    describes,
    native_class,
    own_classes,
    part_of,
    remote_classes,
    takes_whole,
    transformers_model_attribute,
)
from spectrum.errors import CheckpointError
from spectrum.layer_types import MODULE_PATH
from spectrum.text import listed

# The largest published models have 120,000 modules, because each expert has several.
MAX_MODULES = 200_000


def max_modules(num_tensors: int) -> int:
    """The largest number of modules that a model may have, given the number of tensors of its checkpoint."""
    return min(10_000 + 10 * num_tensors, MAX_MODULES)


@dataclass(frozen=True, slots=True)
class Unbuilt:
    """A model that is to be built on the meta device.

    Args:
        directory: the model's, for remote code and for messages.
        settings: the content of its config.json.
        config: as `read_config` returns it.
        trust_remote_code: whether Python files of the directory may be run.
        limit: the largest number of modules, `max_modules` or MAX_MODULES.
        can_fill: whether the checkpoint has all parameters of a model on the meta device; always true if not known.
    """

    directory: Path
    settings: Mapping[str, Any]
    config: Any
    trust_remote_code: bool
    limit: int
    can_fill: Callable[[Any], bool] = lambda _: True


def build_meta_model(unbuilt: Unbuilt, class_name: str | None) -> Any:
    """Build the model on the meta device. Parameters have the config's dtype.

    Raises CheckpointError if transformers cannot build it, or if it has too many modules.

    Args:
        unbuilt: the model.
        class_name: the class to build; None for the model's own: `own_class` or, for a model with code of its own, that
            of the first auto class that knows the config.
    """
    name, build = _builder(unbuilt, class_name)
    try:
        return _on_meta_device(build, unbuilt.config, unbuilt.limit)
    except CheckpointError:
        raise
    except Exception as error:  # a model's constructor runs anything, from missing packages to bad sizes
        reason = failure_reason(error)
        raise CheckpointError(f"transformers cannot build {name} from {unbuilt.directory}: {reason}") from error


def own_class(unbuilt: Unbuilt) -> Any:
    """The class of transformers that is a model's own, None if there is none or if the model has code of its own.

    If the config may mean several, it is the first whose parameters the checkpoint has, else the likeliest.
    """
    candidates = own_classes(unbuilt.config, trust_remote_code=unbuilt.trust_remote_code)
    for candidate in candidates if len(candidates) > 1 else ():
        build = partial(_build, unbuilt, candidate)
        try:
            if unbuilt.can_fill(_on_meta_device(build, unbuilt.config, unbuilt.limit)):
                return candidate
        except Exception:  # a class that cannot be built from this config is not the model's
            continue
    return next(iter(candidates), None)


def _builder(unbuilt: Unbuilt, class_name: str | None) -> tuple[str, Callable[[], Any]]:
    """The name of the class to build, and a function that builds it. `class_name` as for `build_meta_model`."""
    config, wanted = unbuilt.config, (class_name,) if class_name else AUTO_CLASSES
    remote = remote_classes(config, trust_remote_code=unbuilt.trust_remote_code)
    native = own_class(unbuilt) if class_name is None else native_class([class_name])
    for name in wanted if native is None else ():
        auto = transformers_model_attribute(name)
        if not hasattr(auto, "_model_mapping"):
            raise CheckpointError(f"transformers {transformers.__version__} has no model class {name!r}")
        if name in remote:
            return name, partial(auto.from_config, config, trust_remote_code=True)
        native = class_of_auto(auto, config)
        if native is not None:
            break
    if native is None:
        where = class_name or f"transformers {transformers.__version__}"
        raise CheckpointError(f"{where} has no class for {unbuilt.directory}, a model of the type {config.model_type}")
    return native.__name__, partial(_build, unbuilt, native)


def _build(unbuilt: Unbuilt, model_class: Any) -> Any:
    """The model that a class builds from a config or, as its `from_pretrained` does, from the part that it describes.

    Like auto classes, but unlike `from_pretrained` of the class, the part of a quantized model is quantized too.

    Raises CheckpointError for a class of another type of model. Other errors are those of transformers.
    """
    config = unbuilt.config
    if takes_whole(model_class, config):
        return model_class(copy.deepcopy(config))
    path, config_class = unbuilt.directory / "config.json", model_class.config_class
    is_foreign, needed = not describes(model_class, config), sorted(config_class.sub_configs)
    of_another = f"{path} is that of a {config.model_type} model; leave out --model-class, or name one of its classes"
    if is_foreign and needed and not any(hasattr(config, name) for name in needed):
        raise CheckpointError(f"{model_class.__name__} needs {listed(needed)}, but {of_another}")
    try:
        part = config_of_class(
            unbuilt.directory, unbuilt.settings, config_class, trust_remote_code=unbuilt.trust_remote_code
        )
        for whole in (config, config.get_text_config(decoder=True)):
            settings = getattr(whole, "quantization_config", None)
            if settings is not None and getattr(part, "quantization_config", None) is None:
                part.quantization_config = settings
        return model_class(part)
    except Exception as error:
        if is_foreign:
            raise CheckpointError(f"transformers cannot build {model_class.__name__}, because {of_another}") from error
        raise


def _on_meta_device(build: Callable[[], Any], config: Any, limit: int) -> Any:
    """The model that a function builds, with parameters of the config's dtype on the meta device."""
    dtype, default = getattr(config, "dtype", None), torch.get_default_dtype()
    try:
        with quiet(), nothing_fetched(), torch.device("meta"), _at_most_modules(limit):
            torch.set_default_dtype(dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else default)
            return build()
    finally:
        torch.set_default_dtype(default)


@contextmanager
def _at_most_modules(limit: int) -> Iterator[None]:
    """Stop building a model that has more modules than this. Even modules without parameters can fill the memory."""
    remaining = itertools.count(limit, -1)

    def count(*_: object) -> None:
        if not next(remaining):
            raise ValueError(f"it has over {limit} modules, more than its weights explain")

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def name_warnings(unbuilt: Unbuilt, model: Any, class_asked: str | None) -> Iterator[str]:
    """Warnings for a user who relies on the names of a model's parameters.

    Args:
        unbuilt: what the model was built from.
        model: as `build_meta_model` returns it.
        class_asked: the class that the user has named; None for the model's own.
    """
    own, config = type(model).__name__, unbuilt.config
    if class_asked is not None:
        if not describes(type(model), config):
            yield f"{own} is no class of {config.model_type} models: it takes defaults for what config.json lacks"
        return
    for rival in _rivals(unbuilt, model):
        other = type(rival).__name__
        part = part_of(config, type(model.config))
        if unbuilt.can_fill(rival):
            yield (
                f"names are those of {own}; a trainer that loads {other} uses different names: "
                f"for that trainer, scan with --model-class {other}"
            )
        elif part is not None:
            yield (
                f"names are those of {own}, but trainers that go by config.json load {other}, which uses different "
                f"names and lacks weights here: replace config.json by its {part}"
            )


def _rivals(unbuilt: Unbuilt, model: Any) -> Iterator[Any]:
    """Models on the meta device that trainers may load instead, and that have different parameter names.

    If a config has both a multimodal class and a causal language model, Axolotl loads the former, and other trainers
    load the latter. If the model is only a part of what the config describes, most trainers load the whole.
    """
    autos = (transformers.AutoModelForImageTextToText, transformers.AutoModelForCausalLM)
    known = dict.fromkeys(class_of_auto(auto, unbuilt.config) for auto in autos)
    if type(model) not in known and isinstance(unbuilt.config, type(model.config)):
        return
    for other in known:
        if other in (None, type(model)):
            continue
        try:
            rival = _on_meta_device(partial(_build, unbuilt, other), unbuilt.config, MAX_MODULES)
        except Exception:  # a class that cannot be built from this config is not a rival
            continue
        if {name for name, _ in rival.named_parameters()} != {name for name, _ in model.named_parameters()}:
            yield rival


def named_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """All parameters of a model, tied ones under each of their names."""
    yield from model.named_parameters(remove_duplicate=False)


def check_names(model: torch.nn.Module, where: object) -> None:
    """Raises CheckpointError if a parameter has a name that a list of layers cannot contain."""
    for name, _ in named_parameters(model):
        if not MODULE_PATH.fullmatch(name):
            raise CheckpointError(f"{where} has a parameter named {name!r}, which is not a module path")


def head_and_embedding(model: Any, modules: Mapping[str, torch.nn.Module]) -> tuple[str | None, str | None]:
    """The names of the parameters of the output head and of the input embedding; None for one that is missing.

    Args:
        model: the model.
        modules: all of its modules by their paths.
    """
    head, embedding = (
        _weight_name(model, getter, modules) for getter in ("get_output_embeddings", "get_input_embeddings")
    )
    return head, embedding


def _weight_name(model: Any, getter: str, modules: Mapping[str, torch.nn.Module]) -> str | None:
    try:
        wanted = getattr(model, getter)()
    except (NotImplementedError, AttributeError):
        return None
    for path, module in modules.items():
        if module is wanted and isinstance(getattr(module, "weight", None), torch.nn.Parameter):
            return f"{path}.weight" if path else "weight"
    return None


def tied_groups(model: Any) -> Iterator[set[str]]:
    """The sets of names that belong to one and the same parameter, for all parameters with several names."""
    group_of: dict[str, set[str]] = {}
    by_id: dict[int, set[str]] = {}
    for name, parameter in named_parameters(model):
        group_of[name] = by_id.setdefault(id(parameter), set())
        group_of[name].add(name)
    for tied, other in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if tied in group_of and other in group_of and group_of[tied] is not group_of[other]:
            group_of[other] |= group_of[tied]
            for name in group_of[tied]:
                group_of[name] = group_of[other]
    distinct = {id(group): group for group in group_of.values()}
    yield from (group for group in distinct.values() if len(group) > 1)
