"""Quantized checkpoints: whether they are dequantized tensor by tensor, loaded as a whole, or refused."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from spectrum.checkpoint.disk.weight_files import StoredTensor
from spectrum.checkpoint.mapping.conversion import StreamedParameters
from spectrum.checkpoint.mapping.isolation import quiet
from spectrum.checkpoint.mapping.keys import keys_for
from spectrum.dtypes import WEIGHT_DTYPES
from spectrum.errors import CheckpointError, first_line

_USE_ORIGINAL = "use the original checkpoint"

# Names of tensors that quantized checkpoints of all methods in use store beside a weight or in place of it: at the end
# of the weight's key, or under its own or its module's path. Scales of activations (input_scale) and of caches
# (k_scale) are not among them, because weights are read without them.
_QUANTIZED_KEY = re.compile(
    r"(?P<weight>.+?)(?P<join>[._])((global_)?scales?(_inv|_2)?|qscale_weight|zero_point|zeros|SCB"
    r"|(nested_)?(absmax|quant_map)"
    r"|(?P<packed>q_?weight|qzeros|g_idx|quant_state\..*|packed|blocks|_weight_qdata|W_q|codes|Qidxs|trellis))",
    re.DOTALL,
)

# Suffixes of the keys of tensors that are stored beside quantized weights. These tensors need no scale.
_AUXILIARY_KEY = re.compile(r"(scales?|scale_inv|qscale_weight|zero_point|g_idx|weight_shape)$")

# Methods whose weights the mapping of transformers dequantizes one by one, each with the package that it needs.
_STREAMED = {"fp8": None, "mxfp4": None, "compressed-tensors": "compressed_tensors"}

# Methods for which transformers dequantizes only a loaded model, each with the package that it needs.
_LOADED = {"bitsandbytes": "bitsandbytes"}

ReadMode = Literal["as stored", "dequantized", "loaded"]


def method(config: Any) -> str | None:
    """The quantization method that a config names, None if the checkpoint is not quantized."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    for part in (config, text):
        for key in ("quantization_config", "compression_config"):
            if settings := getattr(part, key, None):
                if hasattr(settings, "to_dict"):
                    settings = settings.to_dict()
                if not isinstance(settings, dict):
                    return f"{settings!r:.40}"  # not a method: it will be refused under this name
                if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
                    return "bitsandbytes"
                name = settings.get("quant_method")
                return str(getattr(name, "value", name) or "without a name")
    return None


def read_mode(directory: Path, method_name: str | None) -> ReadMode:
    """How the weights of a checkpoint with this quantization method are read.

    Raises CheckpointError if the method is not supported, or if the package that it needs is not installed.
    """
    if method_name is None:
        return "as stored"
    if method_name not in _STREAMED and method_name not in _LOADED:
        raise CheckpointError(
            f"{directory} is quantized by the method {method_name!r}, which is not supported; {_USE_ORIGINAL}"
        )
    package = (_STREAMED | _LOADED)[method_name]
    if package is not None and find_spec(package) is None:
        raise CheckpointError(
            f"{directory} is quantized by the method {method_name!r}: install {package} to dequantize it, or "
            f"{_USE_ORIGINAL}"
        )
    return "loaded" if method_name in _LOADED else "dequantized"


def dequantizer(directory: Path, model: Any) -> Any:
    """The quantizer that transformers has for a model on the meta device, set to dequantize what it reads.

    Raises CheckpointError if transformers cannot do that on this machine.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    config = model.config
    settings = getattr(config, "quantization_config", None) or config.get_text_config(decoder=True).quantization_config
    try:
        with quiet():
            quantizer = AutoHfQuantizer.from_config(_with_dequantize(settings), pre_quantized=True)
            quantizer.quantization_config.dequantize = True
            quantizer.validate_environment(device_map={"": "cpu"}, weights_only=True)
            quantizer.preprocess_model(model=model)
    except Exception as error:  # each quantizer has its own requirements on packages, devices and settings
        raise CheckpointError(f"transformers cannot dequantize {directory}: {first_line(error)}") from error
    return quantizer


def _with_dequantize(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {**settings, "dequantize": True}
    settings.dequantize = True
    return settings


def weights_beside(key: str) -> tuple[str, ...]:
    """The keys that a weight may have for which a quantized checkpoint stores a tensor under this key.

    Nothing if only ordinary tensors have such a key.
    """
    match = _QUANTIZED_KEY.fullmatch(key)
    if match is None:
        return ()
    weight = match["weight"]
    return (weight, f"{weight}.weight") if match["join"] == "." else (weight,)


def _is_packed(key: str) -> bool:
    match = _QUANTIZED_KEY.fullmatch(key)
    return match is not None and match["packed"] is not None


def refuse_leftovers(directory: Path, streamed: StreamedParameters, missing: Sequence[str]) -> None:
    """Raises CheckpointError if tensors that no parameter is made of are those of quantized weights.

    Args:
        directory: the checkpoint, for messages.
        streamed: the parameters.
        missing: the names of those that the checkpoint lacks.
    """
    beside = {weight for key in streamed.unused for weight in weights_beside(key)}
    if beside:
        absent = keys_for(streamed.model, beside - streamed.stored.keys(), missing) if missing else set()
        refuse_scales(directory, streamed.unused, set(streamed.keys_of(streamed.inputs)), absent)


def refuse_scales(directory: Path, unused: Iterable[str], used: Container[str], absent: Container[str]) -> None:
    """Raises CheckpointError if an unused tensor is a scale of a weight that is used, or a weight in a packed form.

    Without its scale, the weight would be read as other numbers. Tensors beside weights that are not used either, such
    as those of an extra head, are no reason.

    Args:
        directory: the checkpoint, for messages.
        unused: the keys of tensors that no parameter is made of.
        used: the keys of tensors that parameters are made of.
        absent: the keys of tensors that are not stored, and that missing parameters would be made of.
    """
    for key in unused:
        beside = weights_beside(key)
        if any(weight in used or (weight in absent and _is_packed(key)) for weight in beside):
            raise CheckpointError(
                f"{directory} holds {key}, as quantized checkpoints do, but config.json does not say what it "
                f"scales; {_USE_ORIGINAL}"
            )


def check_scales(directory: Path, stored: Mapping[str, StoredTensor], keys: Iterable[str]) -> None:
    """Raises CheckpointError if a quantized tensor lacks its scale: some versions of transformers read it unscaled.

    Args:
        directory: the checkpoint, for messages.
        stored: all tensors of the checkpoint by their keys.
        keys: the tensors that the model's parameters are made of.
    """
    for key in keys:
        dtype = stored[key].dtype
        if dtype not in WEIGHT_DTYPES and not _AUXILIARY_KEY.search(key) and stored.keys().isdisjoint(_scales(key)):
            raise CheckpointError(
                f"{directory} holds {key} as {dtype}, but its scale is missing: the checkpoint is incomplete; "
                f"download it again, or {_USE_ORIGINAL}"
            )


def _scales(key: str) -> set[str]:
    """The keys that the scale of this tensor may have, by the methods in use."""
    weight = key.removesuffix("_packed").removesuffix("_blocks")
    module, _, own_name = weight.rpartition(".")
    of_module = (
        {f"{module}.{name}" for name in ("scale", "scale_inv", "qscale_weight")} if own_name == "weight" else set()
    )
    return of_module | {f"{weight}_{name}" for name in ("scale", "scales", "scale_inv")}
