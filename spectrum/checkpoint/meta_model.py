"""A model as transformers would build it, on the meta device: names and shapes without values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.modules.module import register_module_module_registration_hook
from transformers.pytorch_utils import Conv1D

from spectrum.checkpoint.isolation import native_class, nothing_fetched, of_models, quiet, why
from spectrum.errors import CheckpointError
from spectrum.layer_types import MODULE_PATH

# Axolotl's order: the multimodal class before the language model inside it.
_AUTO_CLASSES = (
    "AutoModelForImageTextToText",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForMaskedLM",
    "AutoModel",
)

# The most that published models have are 120,000, with 70,000 tensors: experts with modules of their own.
_MOST_MODULES = 200_000


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


def _weight_name(model: Any, getter: str) -> str | None:
    try:
        wanted = getattr(model, getter)()
    except (NotImplementedError, AttributeError):
        return None
    for name, module in model.named_modules():
        if module is wanted and isinstance(getattr(module, "weight", None), torch.nn.Parameter):
            return f"{name}.weight"
    return None


def _builder(
    directory: Path, config: Any, class_name: str | None, *, trust_remote_code: bool
) -> tuple[str, Callable[[], Any]]:
    """The name of the class to build, and how."""
    remote = getattr(config, "auto_map", None) or {}
    if class_name is not None:
        auto: Any = of_models(class_name)
        known = native_class([class_name])
        if known is not None:
            return class_name, partial(known, config)
        if not hasattr(auto, "_model_mapping"):
            raise CheckpointError(f"transformers {transformers.__version__} has no model class {class_name!r}")
        return class_name, partial(auto.from_config, config, trust_remote_code=trust_remote_code)
    known = native_class(getattr(config, "architectures", None))
    if known is not None and not (trust_remote_code and remote):
        return known.__name__, partial(known, config)
    for name in _AUTO_CLASSES:
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping or (trust_remote_code and name in remote):
            return name, partial(auto.from_config, config, trust_remote_code=trust_remote_code)
    raise CheckpointError(f"no model class of transformers fits {directory}; name one with --model-class")
