"""Which class of transformers does a config mean? And which config does a class want: the whole, or a part of it?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import transformers
from transformers.models.auto import modeling_auto

from spectrum.checkpoint.mapping.isolation import nothing_fetched, quiet

# In Axolotl's order: a multimodal class comes before that of the language model inside it.
AUTO_CLASSES = (
    "AutoModelForImageTextToText",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForMaskedLM",
    "AutoModel",
)


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
    autos = [getattr(transformers, name) for name in AUTO_CLASSES]
    if named is not None:  # the class for the same task comes first
        autos = [auto for auto in (*autos, *_all_autos()) if _builds(auto, named)] + autos
    first = next(filter(None, (class_of_auto(auto, config) for auto in autos)), None)
    candidates = (named, first) if named is not None and describes(named, config) else (first, named)
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


def _builds(auto: Any, model_class: Any) -> bool:
    """Whether an auto class builds a class from the class's own config."""
    known = auto._model_mapping.get(model_class.config_class, ())
    return model_class in (known if isinstance(known, list | tuple) else (known,))


def describes(model_class: Any, config: Any) -> bool:
    """Whether a class is of the model that a config describes, or of a part of that model."""
    return takes_whole(model_class, config) or part_of(config, model_class.config_class) is not None


def part_of(config: Any, config_class: Any) -> str | None:
    """The name of the nested config that is of this class, None if there is none."""
    return next((name for name in config.sub_configs if isinstance(getattr(config, name, None), config_class)), None)


def takes_whole(model_class: Any, config: Any) -> bool:
    """Whether a class takes this config as it is, because it is of its config class, or because an auto class says so.

    A class of a part does not take it: auto classes that know such a class give it the part.
    """
    config_class = model_class.config_class
    if config_class is None or isinstance(config, config_class):
        return True
    if part_of(config, config_class):
        return False
    return any(class_of_auto(auto, config) is model_class for auto in _all_autos())


def _all_autos() -> Iterator[Any]:
    """The auto classes of transformers that build models."""
    yield from (auto for auto in vars(modeling_auto).values() if getattr(auto, "_model_mapping", None) is not None)
