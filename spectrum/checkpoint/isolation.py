"""Calls into transformers that keep it silent, off the Hub, away from foreign code, and to its own model classes.

Here is also which of these classes a config means, and whether a class takes the whole config or a part of it.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import transformers
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import dynamic_module_utils
from transformers.models.auto import modeling_auto

from spectrum.errors import first_line

# In Axolotl's order: a multimodal class comes before that of the language model inside it.
AUTO_CLASSES = (
    "AutoModelForImageTextToText",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForMaskedLM",
    "AutoModel",
)

_NOWHERE = os.path.join(os.devnull, "nowhere")  # no directory can have this path


@contextmanager
def nothing_fetched() -> Iterator[None]:
    """Keep transformers from asking the Hub, and from using what other programs have put into its cache.

    A config can name other repositories: backbones whose configs or weights it uses, kernels whose code it runs. The
    user has named only one model.
    """
    kernels: Any = getattr(transformers.integrations, "hub_kernels", None)
    changed: list[tuple[Any, str, object]] = [
        (constants, "HF_HUB_OFFLINE", True),
        (constants, "HF_HUB_CACHE", _NOWHERE),
        (dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0),  # seconds to wait for consent on the terminal; 0 refuses
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


def failure_reason(error: Exception) -> str:
    """One line that says what went wrong in transformers."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OfflineModeIsEnabled | LocalEntryNotFoundError):
            return (
                "it names another repository, from which nothing is downloaded; put what it takes from there into "
                "config.json itself (a backbone's config as backbone_config)"
            )
        cause = cause.__cause__ or cause.__context__
    return first_line(error)


def native_class(architectures: Sequence[str] | None) -> Any:
    """The class of transformers for the first of a config's `architectures`, None if there is none."""
    found = transformers_model_attribute(architectures[0]) if architectures else None
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def transformers_model_attribute(name: str) -> Any:
    """What transformers' modules of models define under this name, None if they define nothing.

    Names outside its models are not looked up: importing some of those modules has effects.
    """
    if not transformers._class_to_module.get(name, "").startswith("models."):  # type: ignore[attr-defined]
        return None
    with quiet(), nothing_fetched():
        return getattr(transformers, name, None)


def own_classes(config: Any, *, trust_remote_code: bool) -> tuple[Any, ...]:
    """The classes of transformers that a config may mean, the likeliest first.

    There is none if transformers knows none, or if the class is in the model's own code. There are two if the first of
    the config's architectures is not a class of the whole model that it describes: that class, and the one that auto
    classes, and so trainers, load. If the former is not even the class of a part, the latter is likelier. For example,
    prunings are published with a multimodal class in the config of the language model alone.
    """
    if remote_classes(config, trust_remote_code=trust_remote_code):
        return ()
    named = native_class(getattr(config, "architectures", None))
    if named is not None and takes_whole(named, config):
        return (named,)
    by_auto = [class_of_auto(getattr(transformers, name), config) for name in AUTO_CLASSES]
    first = next(filter(None, by_auto), None)
    candidates = (named, first) if named is not None and fits(named, config) else (first, named)
    return tuple(dict.fromkeys(filter(None, candidates)))


def remote_classes(config: Any, *, trust_remote_code: bool) -> Mapping[str, Any]:
    """The classes in the model's own code that may be run, by the auto classes that build them."""
    return (getattr(config, "auto_map", None) or {}) if trust_remote_code else {}


def class_of_auto(auto: Any, config: Any) -> Any:
    """The class of transformers that an auto class builds from a config, None if it knows none."""
    if type(config) not in auto._model_mapping:
        return None
    known = auto._model_mapping[type(config)]
    if not isinstance(known, list | tuple):
        return known
    return next((choice for choice in known if choice.__name__ in (config.architectures or ())), known[0])


def fits(model_class: Any, config: Any) -> bool:
    """Whether a class builds the model that a config describes, or a part of that model."""
    return takes_whole(model_class, config) or part_of(config, model_class.config_class) is not None


def part_of(config: Any, config_class: Any) -> str | None:
    """The name of the nested config that is of this class, None if there is none."""
    return next((name for name in config.sub_configs if isinstance(getattr(config, name, None), config_class)), None)


def takes_whole(model_class: Any, config: Any) -> bool:
    """Whether a class takes this config as it is, because it is of its config class, or because an auto class says so.

    An auto class says so of a part's class too, but that gets the part.
    """
    config_class = model_class.config_class
    if config_class is None or isinstance(config, config_class):
        return True
    if part_of(config, config_class):
        return False
    autos = (auto for auto in vars(modeling_auto).values() if getattr(auto, "_model_mapping", None) is not None)
    return any(class_of_auto(auto, config) is model_class for auto in autos)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers. Its advice is about training and running models, and would only clutter our output.

    Its progress bars are off, too. Those of huggingface_hub stay as the user's settings have them: transformers'
    `disable_progress_bar` would turn off both.
    """
    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging._tqdm_active = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging._tqdm_active = bars
