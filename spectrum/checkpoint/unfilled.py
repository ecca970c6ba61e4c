"""Why a checkpoint does not fill a model, judged from the names and shapes of its tensors alone. No weight is read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from spectrum.checkpoint import meta_model
from spectrum.checkpoint.disk.weight_files import StoredTensor
from spectrum.checkpoint.mapping.conversion import StreamedParameters
from spectrum.checkpoint.mapping.keys import keys_for
from spectrum.checkpoint.matrices import fills
from spectrum.dtypes import WEIGHT_DTYPES
from spectrum.errors import CheckpointError
from spectrum.layer_types import WRAPPERS, beginnings, unwrapped
from spectrum.text import listed, plural

# The part that DDP, DataParallel and DeepSpeed put before all names. In other places, it is an ordinary name.
_AT_START = "module"

_FLATTENED = re.compile(r"(^|[._])flat_param(_\d+)?$")
_UNMERGED = re.compile(
    r"(^base_model\.model\.|\.(base_layer|lora_(A|B|embedding_A|embedding_B|magnitude_vector)|modules_to_save)\.)"
)

# Formats of other programs, by keys that only they have.
_FORMATS = (
    (re.compile(r"(^|\.)layers\.\d+\.attention\.w[qkvo]\.weight$"), "Meta or Mistral"),
    (re.compile(r"(^|\.)(linear_qkv|linear_fc1|linear_proj)\.weight$"), "Megatron"),
    (re.compile(r"^blk\.\d+\.\w+\.weight$"), "llama.cpp"),
)

# Where classes of one family are looked for. A class that more specific ones contain comes after them.
_AUTO_CLASSES = (
    "AutoModelForImageTextToText",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModel",
)
MAX_MODULES = 20_000  # of a class that is only tried. Mixtures of experts have 10,000, as their experts are fused.
_MAX_ARCHITECTURES = 4  # of a config that are tried, so that a long list does not take long

# Buffers that older versions of transformers stored, and newer ones compute.
_FORMER_BUFFER = re.compile(r"(^|\.)(inv_freq|position_ids|masked_bias)$")


def missing_reason(
    directory: Path,
    model: Any,
    missing: Sequence[str],
    unused: Sequence[str],
    others: Iterable[tuple[Any, StreamedParameters]],
) -> str:
    """A message that says why a checkpoint lacks parameters of a model, and what to do.

    Args:
        directory: the checkpoint.
        model: on the meta device.
        missing: the names of the parameters that the checkpoint lacks, one or more, in model order.
        unused: the keys of tensors that no parameter is made of.
        others: models of other classes, each with the parameters that the checkpoint provides for it.
    """
    model_class = type(model).__name__
    lacks = f"{directory} lacks the parameter {listed(missing, limit=1)} of {model_class}"
    num_unused = len(unused)
    unused = [key for key in unused if not _FORMER_BUFFER.search(key)]
    if reason := wrapped_reason(directory, unused, lambda keys: keys_for(model, keys, missing)):
        return reason
    if fitting := _fitting_class(model, num_unused, others):
        return f"{lacks}, but has all those of {fitting}: scan it with --model-class {fitting}"
    if not unused:
        return f"{lacks}: it is incomplete, or config.json is that of another model"
    if reason := _misnamed_reason(directory, model, missing, unused):
        return reason
    key = max(unused, key=lambda key: _likeness(key, missing[0]))
    more = f" (and {plural(len(unused) - 1, 'other such key')})" if len(unused) > 1 else ""
    return f"{lacks}, which has no place for the key {key}{more}: config.json, or its class, is that of another model"


def misnamed_reason(directory: Path, model: Any, missing: Sequence[str], unused: Sequence[str]) -> str | None:
    """A message if parameters are missing because their tensors have names that transformers does not know.

    None if a checkpoint is merely incomplete. The arguments are those of `missing_reason`.
    """
    unused = [key for key in unused if not _FORMER_BUFFER.search(key)]
    return wrapped_reason(directory, unused, lambda keys: keys_for(model, keys, missing)) or _misnamed_reason(
        directory, model, missing, unused
    )


def _misnamed_reason(directory: Path, model: Any, missing: Sequence[str], unused: Sequence[str]) -> str | None:
    """A message if keys are those of another program, or begin otherwise than they should; None if not."""
    for pattern, owner in _FORMATS:
        if foreign := _first(unused, pattern):
            return f"{directory} holds {foreign}: it is in the format of {owner}; convert it to that of transformers"
    if change := _change_of_prefix(model, missing, unused):
        return (
            f"{directory} holds {change.key} in place of {type(model).__name__}'s {change.name}, so transformers would "
            f"train random numbers instead; {change.advice}, and save it again"
        )
    return None


def wrapped_reason(
    directory: Path, unused: Collection[str], known: Callable[[Collection[str]], Collection[str]]
) -> str | None:
    """A message if keys are those of a model inside a wrapper or with adapters, None if they are not.

    Args:
        directory: the checkpoint.
        unused: the keys of tensors that no parameter is made of.
        known: selects from other keys those that a missing parameter would be made of.
    """
    if unmerged := _first(unused, _UNMERGED):
        return (
            f"{directory} holds {unmerged}: it is a PEFT model whose adapter is not merged; save what its "
            "merge_and_unload() returns, or use the base model"
        )
    if flattened := _first(unused, _FLATTENED):
        return f"{directory} holds {flattened}, parameters that FSDP has flattened; {_MERGE_FSDP}"
    in_module = {_unwrapped(key): key for key in unused if key.startswith(f"{_AT_START}.")}
    found = [in_module[key] for key in known(in_module)] if in_module else []
    shown: dict[str, str] = {_AT_START: min(found)} if found else {}  # a key for each part that a wrapper has added
    for key in unused:
        for part in key.split("."):
            if part in WRAPPERS:
                shown.setdefault(part, key)
    if not shown:
        return None
    causes = " and ".join(WRAPPERS.get(part, "data-parallel training") for part in shown)
    parts = " and ".join(repr(part) for part in shown)
    return (
        f"{directory} holds {next(iter(shown.values()))}: {causes} put {parts} into its keys, so transformers would "
        f"train random numbers instead; save the model inside that wrapper, or take {parts} out of every key"
    )


def refuse_unloadable(directory: Path, model: Any, stored: Mapping[str, StoredTensor]) -> None:
    """Raises CheckpointError if a checkpoint cannot fill a model, as far as that is known without the mapping of keys.

    Loading would allocate memory for all of the model. An element of a packed tensor holds up to 8 weights.
    """
    names = model.state_dict().keys()
    unknown = [key for key in stored if key not in names]
    if reason := wrapped_reason(directory, unknown, lambda keys: names & set(keys)):
        raise CheckpointError(reason)
    num_stored = sum(math.prod(tensor.shape) for tensor in stored.values())
    if sum(parameter.numel() for parameter in model.parameters()) > 16 * num_stored + 2**20:
        raise CheckpointError(f"{directory} lacks most of the parameters of {type(model).__name__}")


_MERGE_FSDP = (
    "make a model of the sharded checkpoint in the training folder with `accelerate merge-weights`, or save a full "
    "state dict"
)


def partitioned_reason(directory: Path, model: Any, streamed: StreamedParameters) -> str | None:
    """A message if tensors are what sharded training leaves of parameters on one process, None if they are whole."""
    empty, flat, whole = [], [], 0
    for name, value in meta_model.named_parameters(model):
        for key in streamed.keys_of([name]):
            tensor = streamed.stored[key]
            if 0 in tensor.shape and value.numel():
                empty.append(key)
            elif len(tensor.shape) == 1 < value.ndim and tensor.dtype in WEIGHT_DTYPES:
                flat.append(key)
            elif value.ndim > 1:
                whole += 1
    if flat and not whole:
        return f"{directory} holds {listed(flat, limit=1)} in one dimension, as FSDP flattens parameters; {_MERGE_FSDP}"
    if empty:
        return (
            f"{directory} holds {listed(empty, limit=1)} without elements, as DeepSpeed's ZeRO-3 leaves parameters "
            "that are not gathered; run the zero_to_fp32.py of the training folder, or train with "
            "stage3_gather_16bit_weights_on_model_save"
        )
    return None


def _first(keys: Collection[str], pattern: re.Pattern[str]) -> str | None:
    return next((key for key in keys if pattern.search(key)), None)


def _unwrapped(key: str) -> str:
    """A key without the parts that wrappers have put into it, also those before all names."""
    key = unwrapped(key)
    while key.startswith(f"{_AT_START}."):
        key = key.removeprefix(f"{_AT_START}.")
    return key


def _fitting_class(model: Any, max_unused: int, others: Iterable[tuple[Any, StreamedParameters]]) -> str | None:
    """The name of the first of the other classes that the checkpoint fills, None if there is none.

    Skip a class that leaves more tensors unused than the model's own class does. Skip the model's own base class too,
    if the checkpoint is not of that class alone: the rest is missing.
    """
    base_prefix, base_class = f"{model.base_model_prefix}.", type(model.base_model)
    for other, streamed in others:
        is_part = type(other) is base_class and any(key.startswith(base_prefix) for key in streamed.stored)
        try:
            if not is_part and len(streamed.unused) <= max_unused and fills(other, streamed):
                return type(other).__name__
        except CheckpointError:  # stored tensors do not fit together
            continue
    return None


def family(config: Any) -> list[str]:
    """The names of classes for a model: those that its config names, and those that the auto classes have for it.

    Those for the config of its text model are among them. Classes that cannot be imported are not.
    """
    names = list(config.architectures or ())[:_MAX_ARCHITECTURES]
    for part in (config, config.get_text_config(decoder=True)):
        for auto in _AUTO_CLASSES:
            with suppress(Exception):  # of a package that some classes need
                found = getattr(transformers, auto)._model_mapping.get(type(part), ())
                names += [model_class.__name__ for model_class in (found if isinstance(found, tuple) else (found,))]
    return list(dict.fromkeys(names))


@dataclass(frozen=True, slots=True)
class _ChangeOfPrefix:
    """A change at the beginning of keys, the first key that it concerns, the key's parameter then, and advice."""

    key: str
    name: str
    advice: str


def _change_of_prefix(model: Any, missing: Sequence[str], unused: Sequence[str]) -> _ChangeOfPrefix | None:
    """The change at the beginning of keys after which most of them fill missing parameters, None if there is none."""
    by_suffix: dict[str, str] = {}
    for name in missing:
        for prefix in beginnings(name):
            by_suffix.setdefault(name[len(prefix) :], prefix)
    pairs: Counter[tuple[str, str]] = Counter()
    for key in unused:
        old = next((prefix for prefix in beginnings(key) if key[len(prefix) :] in by_suffix), None)
        if old is not None and old != by_suffix[key[len(old) :]]:
            pairs[old, by_suffix[key[len(old) :]]] += 1
    for (old, new), _ in pairs.most_common(3):
        renamed = {new + key[len(old) :]: key for key in unused if key.startswith(old)}
        filling = keys_for(model, renamed, missing)
        if 2 * len(filling) > len(renamed):
            name = next((name for name in missing if name in filling), min(filling))
            return _ChangeOfPrefix(renamed[name], name, _advice(old, new))
    return None


def _advice(old: str, new: str) -> str:
    if not new:
        return f"take {old!r} off the keys that begin with it"
    if not old:
        return f"put {new!r} before the keys that have no place"
    return f"replace {old!r} by {new!r} where keys begin with it"


def _likeness(key: str, name: str) -> int:
    """The number of parts that two dotted names have in common at their ends."""
    count = 0
    for one, other in zip(reversed(key.split(".")), reversed(name.split(".")), strict=False):
        if one != other:
            break
        count += 1
    return count
