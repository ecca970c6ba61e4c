"""What does a place hold that has no weights which transformers loads? And what is to be done about it?

A place is a directory (a Path in the functions here) or a repository on the Hub (a str: what messages call it). Only
the names in it are looked at: paths below it, with a slash after a directory's. Repositories do not list directories.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

# In transformers' order of preference. Each may be split into shards, with an index `<name>.index.json`.
SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
WEIGHT_NAMES = tuple(name for single in SINGLE_FILES for name in (single, f"{single}.index.json"))

ADAPTER_CONFIG = "adapter_config.json"
_MAX_NAMES = 20_000  # a directory may hold any number of files
_UNFINISHED = Path(".cache", "huggingface", "download")  # where `hf download --local-dir` keeps unfinished files

_SCAN_A_MODEL = "give the directory of a model as save_pretrained writes it"
_COPY_CONFIG = "copy config.json into OUTPUT_DIR, and use that"
_ZERO = r"global_step\d+/.*|[^/]+/(?:bf16_|fp16_)?zero_pp_rank_\d+_.*|[^/]+/mp_rank_\d+_model_states\.pt"
_SHARDED_BY_ZERO = "{where} holds no whole weights, but what each process of DeepSpeed's ZeRO saved of them"
_SHARDED_BY_FSDP = "{where} holds no whole weights, but what each process of FSDP saved of them"

# Kinds of places. If all patterns of a row match names of the place, the message says what it holds. The first such row
# counts. In a message, {name} is the name that the last pattern matches, {folder} the directory that this is in.
_KINDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        (r"adapter_config\.json",),
        "{where} holds an adapter, not a model; merge it into its base model, or use that model",
    ),
    # Training
    (
        (r"zero_to_fp32\.py", _ZERO),
        f"{_SHARDED_BY_ZERO}; run `python zero_to_fp32.py . OUTPUT_DIR` in it, {_COPY_CONFIG}",
    ),
    (
        (_ZERO,),
        f"{_SHARDED_BY_ZERO}; run `python -m deepspeed.utils.zero_to_fp32 . OUTPUT_DIR` in it, {_COPY_CONFIG}",
    ),
    (
        (r"(?:bf16_|fp16_)?zero_pp_rank_\d+_.*|mp_rank_\d+_model_states\.pt",),
        f"{_SHARDED_BY_ZERO}; run `python zero_to_fp32.py . OUTPUT_DIR` in the directory above it, {_COPY_CONFIG}",
    ),
    (
        (r"latest_checkpointed_iteration\.txt|(?:.*/)?(?:iter_\d{7}/.*|model_optim_rng\.pt)|.*\.nemo",),
        "{where} holds a checkpoint of Megatron or NeMo ({name}); export it to Hugging Face's format, for example with "
        "Megatron Bridge, and use that",
    ),
    (
        (r"pytorch_model_fsdp_\d+/.*",),
        f"{_SHARDED_BY_FSDP}; run `accelerate merge-weights {{folder}} OUTPUT_DIR` in it, {_COPY_CONFIG}",
    ),
    (
        (r"pytorch_model_fsdp\.bin",),
        "{where} holds whole weights under FSDP's name; rename {name} to pytorch_model.bin, and put config.json "
        "beside it",
    ),
    (
        (r"pytorch_model_fsdp_.*rank\d+\.bin",),
        f"{_SHARDED_BY_FSDP}; load the checkpoint into the training that wrote it, and save it with save_model",
    ),
    (
        (r"(?!optim)(?:.*/)?__\d+_\d+\.distcp",),
        "{where} holds shards of torch.distributed.checkpoint; run `accelerate merge-weights {folder} OUTPUT_DIR` in "
        f"it, or the export of the trainer that wrote them, {_COPY_CONFIG}",
    ),
    # Other formats
    (
        (r"(?:original/)?consolidated.*\.(?:pth|pt|safetensors)",),
        "{where} holds weights in the original format of Meta or Mistral ({name}); use the model in Hugging Face's "
        "format, or convert it with transformers' script for that (convert_..._weights_to_hf.py)",
    ),
    (
        (r".*\.gguf",),
        "{where} holds GGUF files only, which are quantized; use the original checkpoint",
    ),
    (
        (r"(?:.*/)?(?:.*\.(?:onnx|engine|plan|tflite|pte)|openvino_model.*\.xml|.*\.mlpackage/.*)",),
        "{where} holds a model that was exported to run ({name}); use the checkpoint that it was exported from",
    ),
    (
        (r"tf_model.*\.h5|flax_model.*\.msgpack|model\.ckpt.*",),
        "{where} holds weights of TensorFlow or Flax only ({name}), which transformers 5 does not read; load them with "
        "transformers 4 (from_tf=True or from_flax=True), and save them with save_pretrained",
    ),
    (
        (r"weights(?:\.\d+)?\.npz",),
        "{where} holds weights for MLX only ({name}); use the checkpoint that they were converted from",
    ),
    # Places above a model
    (
        (r"refs/.*", r"snapshots/[^/]+/.*"),
        "{where} is a repository in the Hub's cache; give its id, or the directory {folder} in it",
    ),
    (
        (r"model_index\.json",),
        "{where} holds a pipeline of diffusers; give the directory of one of its models",
    ),
)

# Files of a training's state. Their endings are those of weight files.
_TRAINING_STATE = re.compile(
    r"(?:training_args|optimizer\w*|scheduler\w*|scaler|rng_state\w*|random_states\w*|sampler\w*|dl_state\w*)\.\w+"
)
_WEIGHTS = re.compile(r"[^/]*\.(?:safetensors|bin|pt|pth|h5|msgpack)")
_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+(\.safetensors|\.bin)")
_PARTIAL = re.compile(r"[^/]*\.(?:safetensors|bin)\.?[\w-]*\.(?:incomplete|part|partial|tmp|crdownload|aria2)")
_CHECKPOINT = re.compile(r"(checkpoint-\d{1,18})/.*")


def names_below(directory: Path) -> list[str]:
    """The names in a directory, in the directories in it, and of its unfinished downloads.

    Names only improve a message, so a directory that may not be listed has none.
    """
    return list(islice(_names(directory), _MAX_NAMES))


def _names(directory: Path) -> Iterator[str]:
    inner: list[str] = []
    with suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            is_directory = entry.is_dir(follow_symlinks=False)
            yield f"{entry.name}/" if is_directory else entry.name
            if is_directory:
                inner.append(entry.name)
    with suppress(OSError):
        yield from os.listdir(directory / _UNFINISHED)
    for name in sorted(inner):
        with suppress(OSError), os.scandir(directory / name) as entries:
            yield from (f"{name}/{entry.name}{'/' * entry.is_dir(follow_symlinks=False)}" for entry in entries)


def not_a_model_reason(where: Path | str, names: Collection[str]) -> str | None:
    """A message that says what a place with these names holds instead of a model, None if that is not known."""
    if has_weights(names):
        return None
    return _kind_reason(where, names) or _model_below_reason(where, sorted(names))


def has_weights(names: Collection[str]) -> bool:
    """Whether a place with these names has weights as transformers saves them."""
    return any(name in WEIGHT_NAMES for name in names)


def _kind_reason(where: Path | str, names: Collection[str]) -> str | None:
    """A message for a place of one of the `_KINDS`, None if it is of none."""
    ordered = sorted(names)
    for patterns, message in _KINDS:
        found = [_first(pattern, ordered) for pattern in patterns]
        if all(found):
            name = found[-1] or ""
            return message.format(where=where, name=name, folder=name.rpartition("/")[0] or ".")
    return None


def _first(pattern: str, names: Collection[str]) -> str | None:
    whole = re.compile(pattern)
    return next(filter(whole.fullmatch, names), None)


def _model_below_reason(where: Path | str, names: Collection[str]) -> str | None:
    """A message for a place that has no model itself, but one in a directory; None if it has none there either."""
    found = {match[1] for name in names if (match := _CHECKPOINT.fullmatch(name))}
    checkpoints = sorted(found, key=lambda folder: (int(folder.rpartition("-")[2]), folder), reverse=True)
    for folder in checkpoints:
        if _holds_model(folder, names):
            return f"{where} holds checkpoints of a training run; use the newest with a model, {_path(where, folder)}"
    if checkpoints:
        folder = checkpoints[0]
        below = [name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")]
        inner = where / folder if isinstance(where, Path) else f"{folder} of {where}"
        return None if has_weights(below) else _kind_reason(inner, below)
    folders = {name.partition("/")[0] for name in names if name.endswith("/config.json")}
    folder = next((folder for folder in sorted(folders) if _holds_model(folder, names)), "")
    return (
        f"{where} has no model itself, but its directory {folder} does; use {_path(where, folder)}" if folder else None
    )


def _holds_model(folder: str, names: Collection[str]) -> bool:
    return f"{folder}/config.json" in names and any(f"{folder}/{name}" in names for name in WEIGHT_NAMES)


def _path(where: Path | str, folder: str) -> str:
    return str(where / folder) if isinstance(where, Path) else f"{folder} of a local copy"


def no_weights_reason(where: Path | str, names: Collection[str]) -> str:
    """A message for a place with these names, none of which transformers would load weights from."""
    if reason := not_a_model_reason(where, names):
        return reason
    ordered = sorted(names)
    if unfinished := unfinished_download(ordered):
        return f"{where} has an unfinished download ({unfinished}), and no whole weight file; finish the download"
    if shard := next(filter(None, map(_SHARD.fullmatch, ordered)), None):
        return f"{where} has shards ({shard[0]}), but not their index; download {shard[1]}{shard[2]}.index.json too"
    similar = [name for name in ordered if _WEIGHTS.fullmatch(name) and not _TRAINING_STATE.fullmatch(name)]
    if similar:
        return (
            f"{where} has weight files ({', '.join(similar[:3])}) but neither model.safetensors, pytorch_model.bin "
            f"nor an index of either; {_SCAN_A_MODEL}"
        )
    missing = "no weight files (model.safetensors, pytorch_model.bin, or shards with an index)"
    if state := next(filter(_TRAINING_STATE.fullmatch, ordered), None):
        return f"{where} has the state of a training ({state}), but {missing}; save the model with save_model"
    return f"{where} has {missing}"


def unfinished_download(names: Collection[str]) -> str | None:
    """The first name of a weight file that is still being downloaded, or was when its download ended; None without."""
    return next(filter(_PARTIAL.fullmatch, sorted(names)), None)


def adapter_warning(directory: Path, commit: str | None) -> str:
    """The warning if an adapter lies beside a model's weights.

    Where peft is installed, `from_pretrained` attaches such an adapter to the model that it loads. In the case of a
    repository, even that is another model: the one that the adapter names as its base.

    Args:
        directory: the model's.
        commit: of a repository; None for a local directory.
    """
    if commit is None:
        return (
            f"{directory} also holds an adapter: where peft is installed, transformers attaches it to the model, and "
            "the names that a trainer sees are others; if it is merged already, remove adapter_config.json and "
            "adapter_model.*"
        )
    return (
        "the repository also holds an adapter: where peft is installed, transformers loads the adapter's base "
        "model in place of these weights, and attaches the adapter; to train these weights, download the "
        "repository without adapter_config.json"
    )
