"""The model as transformers would build it, on torch's meta device: names and shapes without values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.modules.module import register_module_module_registration_hook

from spectrum.checkpoint.isolation import (
    failure_reason,
    native_class,
    nothing_fetched,
    quiet,
    transformers_model_attribute,
)
from spectrum.errors import CheckpointError
from spectrum.layer_types import MODULE_PATH

# In Axolotl's order: a multimodal class comes before that of the language model inside it.
_AUTO_CLASSES = (
    "AutoModelForImageTextToText",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForMaskedLM",
    "AutoModel",
)

# The largest published models have 120,000 modules, because each expert has several.
MAX_MODULES = 200_000


def max_modules(num_tensors: int) -> int:
    """The largest number of modules that a model may have, given the number of tensors of its checkpoint."""
    return min(10_000 + 10 * num_tensors, MAX_MODULES)


def build_meta_model(
    directory: Path, config: Any, class_name: str | None, limit: int, *, trust_remote_code: bool
) -> Any:
    """Build the model on the meta device. Parameters have the config's dtype.

    Raises CheckpointError if transformers cannot build it, or if it has too many modules.

    Args:
        directory: the model's, for remote code and for messages.
        config: as `read_config` returns it.
        class_name: the class to build; None for the first of the config's architectures or, if transformers lacks
            that, the first auto class that knows the config.
        limit: the largest number of modules, `max_modules` or MAX_MODULES.
        trust_remote_code: whether Python files of the directory may be run.
    """
    name, build = _builder(directory, config, class_name, trust_remote_code=trust_remote_code)
    dtype = getattr(config, "dtype", None)
    default = torch.get_default_dtype()
    try:
        with quiet(), nothing_fetched(), torch.device("meta"), _at_most_modules(limit):
            torch.set_default_dtype(dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else default)
            return build()
    except Exception as error:  # a model's constructor runs anything, from missing packages to bad sizes
        raise CheckpointError(f"transformers cannot build {name} from {directory}: {failure_reason(error)}") from error
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


def _builder(
    directory: Path, config: Any, class_name: str | None, *, trust_remote_code: bool
) -> tuple[str, Callable[[], Any]]:
    """The name of the class to build, and a function that builds it."""
    remote_classes = getattr(config, "auto_map", None) or {}
    if class_name is not None:
        auto: Any = transformers_model_attribute(class_name)
        model_class = native_class([class_name])
        if model_class is not None:
            return class_name, partial(model_class, config)
        if not hasattr(auto, "_model_mapping"):
            raise CheckpointError(f"transformers {transformers.__version__} has no model class {class_name!r}")
        return class_name, partial(auto.from_config, config, trust_remote_code=trust_remote_code)
    model_class = native_class(getattr(config, "architectures", None))
    if model_class is not None and not (trust_remote_code and remote_classes):
        return model_class.__name__, partial(model_class, config)
    for name in _AUTO_CLASSES:
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping or (trust_remote_code and name in remote_classes):
            return name, partial(auto.from_config, config, trust_remote_code=trust_remote_code)
    raise CheckpointError(f"no model class of transformers fits {directory}; name one with --model-class")


def name_warnings(model: Any) -> Iterator[str]:
    """Warnings for a user who relies on the names of a model's parameters."""
    rival = _rival_class(model)
    if rival:
        yield (
            f"names are those of {type(model).__name__}; a trainer that loads {rival} uses different names: "
            f"for that trainer, scan with --model-class {rival}"
        )


def _rival_class(model: Any) -> str | None:
    """The name of a class with which another trainer would get different parameter names; None if there is none.

    If a config has both a multimodal class and a causal language model, Axolotl loads the former, and other trainers
    load the latter.
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
        except Exception:  # a class that cannot be built from this config is not a rival
            continue
        if {name for name, _ in rival.named_parameters()} != {name for name, _ in model.named_parameters()}:
            return type(rival).__name__
    return None


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
