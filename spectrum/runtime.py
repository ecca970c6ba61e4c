"""A model as transformers would build it, without weights: its class, its parameters, and which tensors fill them.

Checkpoint keys are not parameter names: transformers renames, prefixes, fuses and ties them on loading. The model's
own mapping is applied here, and everything that touches it is in this module.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from spectrum.errors import CheckpointError

# Axolotl's order: the multimodal class before the language model inside it.
_AUTO_CLASSES = (
    "AutoModelForImageTextToText",
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForMaskedLM",
    "AutoModel",
)


@dataclass(frozen=True, slots=True)
class Source:
    """The stored tensors that make one or more parameters.

    keys: by the pattern of the converter that they matched. converter: transformers' own, None where the one key
    is the parameter as it is.
    """

    target: str
    converter: Any
    keys: Mapping[str | None, tuple[str, ...]]


def meta_model(directory: Path, class_name: str | None, *, trust_remote_code: bool) -> Any:
    """The model of a directory's config on torch's meta device: names and shapes, no values.

    The class is `class_name`, else the first of the config's architectures, else the first auto class that knows the
    config. Raises CheckpointError where config or class make no model.
    """
    settings = _read_config(directory)
    with _quiet():
        config = _config(directory, settings, class_name, trust_remote_code=trust_remote_code)
        build = _builder(directory, config, class_name, trust_remote_code=trust_remote_code)
        try:
            with torch.device("meta"):
                return build()
        except Exception as error:  # a model's constructor runs anything, from missing packages to bad sizes
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise CheckpointError(f"transformers cannot build the model of {directory}: {reason}") from error


def parameter_sources(model: Any, keys: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Source], list[str]]:
    """Which stored tensors make each parameter, by the model's own mapping; and the keys that none takes.

    keys: the checkpoint's, with shapes. Tied parameters that are not stored are absent.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    with _quiet():
        mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix, state = model.base_model_prefix, model.state_dict()

    taken: dict[str, tuple[Any, dict[str | None, list[str]]]] = {}
    unused = []
    for key in sorted(keys, key=dot_natural_key):  # converters take experts in this order
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], prefix, state)
        if name not in state:
            unused.append(key)
            continue
        _, held = taken.setdefault(name, (by_pattern.get(pattern) if pattern else None, {}))
        held.setdefault(pattern, []).append(key)

    sources: dict[str, Source] = {}
    for name, (converter, held) in taken.items():
        source = Source(name, converter, {pattern: tuple(found) for pattern, found in held.items()})
        for target in _targets(source):
            sources[target] = source
    return sources, unused


def converted(source: Source, read: Callable[[str], torch.Tensor], model: Any) -> dict[str, torch.Tensor]:
    """The parameters that a source makes, from its stored tensors as `read` hands them out."""
    if source.converter is None:
        (key,) = source.keys[None]
        return {source.target: read(key)}
    converter = copy.deepcopy(source.converter)
    for pattern, keys in source.keys.items():
        for key in keys:
            converter.add_tensor(source.target, key, pattern, lambda key=key: read(key))
    made = converter.convert(source.target, model=model, config=model.config)
    made = made[0] if isinstance(made, tuple) else made  # with the errors, in 5.0
    return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def tied_groups(model: Any) -> Iterator[set[str]]:
    """Names of parameters that are one and the same in the model."""
    by_identity: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_identity.setdefault(id(parameter), set()).add(name)
    group_of = {name: group for group in by_identity.values() for name in group}
    for target, origin in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if target in group_of and origin in group_of and group_of[target] is not group_of[origin]:
            group_of[origin] |= group_of[target]
            for name in group_of[target]:
                group_of[name] = group_of[origin]
    seen: set[int] = set()
    for group in group_of.values():
        if len(group) > 1 and id(group) not in seen:
            seen.add(id(group))
            yield group


def may_be_missing(model: Any, name: str) -> bool:
    """Whether transformers itself expects checkpoints without this parameter."""
    patterns = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    return any(re.search(pattern, name) for pattern in patterns)


def head_and_embedding(model: Any) -> tuple[str | None, str | None]:
    """Parameter names of the output head and of the input embedding, None where the model has none."""
    return _weight_name(model, "get_output_embeddings"), _weight_name(model, "get_input_embeddings")


def _weight_name(model: Any, getter: str) -> str | None:
    try:
        wanted = getattr(model, getter)()
    except (NotImplementedError, AttributeError):
        return None
    for name, module in model.named_modules():
        if module is wanted and isinstance(getattr(module, "weight", None), torch.nn.Parameter):
            return f"{name}.weight"
    return None


def _targets(source: Source) -> list[str]:
    """Parameters that a converter makes. Sources go by the first target; the others differ in that one part."""
    if source.converter is None:
        return [source.target]
    first, *others = source.converter.target_patterns
    return [source.target, *(source.target.replace(first, other) for other in others)]


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        settings = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        if (directory / "adapter_config.json").exists():
            raise CheckpointError(
                f"{directory} holds an adapter, not a model; merge it into its base model, or scan that"
            ) from error
        if any(directory.glob("*.gguf")):
            raise CheckpointError(
                f"{directory} holds GGUF files only, which are quantized; scan the original checkpoint"
            ) from error
        raise CheckpointError(f"{directory} has no config.json, so it is no transformers model") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path} is no JSON object")
    method = settings.get("quantization_config") or settings.get("compression_config")
    if method:
        name = method.get("quant_method", "an unnamed method") if isinstance(method, dict) else "an unnamed method"
        raise CheckpointError(f"{directory} is quantized ({name}); scan the original checkpoint")
    return settings


def _config(directory: Path, settings: dict[str, Any], class_name: str | None, *, trust_remote_code: bool) -> Any:
    model_type = settings.get("model_type")
    remote = "AutoConfig" in (settings.get("auto_map") or {})
    if model_type not in transformers.CONFIG_MAPPING and not (remote and trust_remote_code):
        if remote:
            raise CheckpointError(
                f"the model type {model_type!r} of {directory} needs code from its repository; "
                "read that code, then allow it with --trust-remote-code"
            )
        if model_type is None:
            raise CheckpointError(f"{directory / 'config.json'} has no model_type, so it is no transformers model")
        raise CheckpointError(
            f"transformers {transformers.__version__} does not know the model type {model_type!r} of {directory}; "
            "a newer transformers may"
        )
    try:
        return transformers.AutoConfig.from_pretrained(str(directory), trust_remote_code=trust_remote_code)
    except Exception as error:  # configs validate themselves, each in its own way
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"transformers cannot read {directory / 'config.json'}: {reason}") from error


def _builder(directory: Path, config: Any, class_name: str | None, *, trust_remote_code: bool) -> Callable[[], Any]:
    remote = getattr(config, "auto_map", None) or {}
    if class_name is not None:
        known: Any = getattr(transformers, class_name, None)
        if known is None or not hasattr(known, "from_pretrained"):
            raise CheckpointError(f"transformers {transformers.__version__} has no model class {class_name!r}")
        if hasattr(known, "from_config"):
            return lambda: known.from_config(config, trust_remote_code=trust_remote_code)
        return lambda: known(config)
    architecture = next(iter(getattr(config, "architectures", None) or ()), None)
    if not (trust_remote_code and remote) and (known := getattr(transformers, architecture or "", None)):
        return lambda: known(config)
    for name in _AUTO_CLASSES:
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping or (trust_remote_code and name in remote):
            return lambda: auto.from_config(config, trust_remote_code=trust_remote_code)
    raise CheckpointError(f"no model class of transformers fits {directory}; name one with --model-class")


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' own advice is for those who load the model; here it would stand between our own lines."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
