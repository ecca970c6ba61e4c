"""Quantized checkpoints: which are dequantized while they stream, which are loaded for it, which are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from spectrum.checkpoint.disk.weight_files import StoredTensor
from spectrum.checkpoint.isolation import quiet
from spectrum.errors import CheckpointError, first_line

# The dtypes of numbers that are weights by themselves.
READABLE = ("float64", "float32", "float16", "bfloat16")
_SCAN_ORIGINAL = "scan the original checkpoint"

# How the keys of quantized checkpoints end, by the methods in use: of all that no plain checkpoint has; and of what is
# stored beside weights, which may have their dtypes and needs no scale of its own.
_OF_QUANTIZED = re.compile(
    r"(scales?|scale_inv|zero_point|zeros|qweight|g_idx|absmax|quant_map|quant_state.*|weight_packed|_blocks|SCB)$"
)
_BESIDE_WEIGHTS = re.compile(r"(scales?|scale_inv|qscale_weight|zero_point|g_idx|weight_shape)$")

# Methods whose weights transformers' own mapping dequantizes one by one; and what must be installed for it.
_STREAMED = {"fp8": None, "mxfp4": None, "compressed-tensors": "compressed_tensors"}

# Methods that only a loaded model can undo.
_LOADED = {"bitsandbytes": "bitsandbytes"}


def method(config: Any) -> str | None:
    """The quantization method that a config names, None where it names none."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    for part in (config, text):
        for key in ("quantization_config", "compression_config"):
            if settings := getattr(part, key, None):
                if hasattr(settings, "to_dict"):
                    settings = settings.to_dict()
                if not isinstance(settings, dict):
                    return f"{settings!r:.40}"  # none at all, which is refused by this name
                if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
                    return "bitsandbytes"
                name = settings.get("quant_method")
                return str(getattr(name, "value", name) or "without a name")
    return None


def way_to_read(directory: Path, name: str | None) -> Literal["as stored", "dequantized", "loaded"]:
    """How the weights of a checkpoint of this method are read.

    Raises CheckpointError for a method that is not supported, or whose package is missing.
    """
    if name is None:
        return "as stored"
    if name not in _STREAMED and name not in _LOADED:
        raise CheckpointError(f"{directory} is quantized by the method {name!r}, which is not read; {_SCAN_ORIGINAL}")
    package = (_STREAMED | _LOADED)[name]
    if package is not None and find_spec(package) is None:
        raise CheckpointError(
            f"{directory} is quantized by the method {name!r}: install {package} to have it undone, or scan the "
            "original checkpoint"
        )
    return "loaded" if name in _LOADED else "dequantized"


def dequantizer(directory: Path, model: Any) -> Any:
    """transformers' quantizer of a model on the meta device, set to dequantize what it loads.

    Raises CheckpointError where transformers does not do that here.
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
    except Exception as error:  # quantizers ask for packages, devices and settings, each in its own way
        raise CheckpointError(f"transformers cannot dequantize {directory}: {first_line(error)}") from error
    return quantizer


def refuse_leftovers(directory: Path, unused: Iterable[str]) -> None:
    """Raises CheckpointError for scales that nothing takes: the weights beside them are not what they seem."""
    for key in unused:
        if _OF_QUANTIZED.search(key):
            raise CheckpointError(
                f"{directory} holds {key}, as quantized checkpoints do, but nothing in config.json says what it "
                f"scales; {_SCAN_ORIGINAL}"
            )


def check_scales(directory: Path, stored: Mapping[str, StoredTensor], keys: Iterable[str]) -> None:
    """Raises CheckpointError where a quantized tensor lacks its scale, among those that make the model's parameters.

    Some versions of transformers then take its numbers for the weight itself.
    """
    for key in keys:
        dtype = stored[key].dtype
        if dtype not in READABLE and not _BESIDE_WEIGHTS.search(key) and stored.keys().isdisjoint(_scales(key)):
            raise CheckpointError(
                f"{directory} holds {key} as {dtype}, but its scale is missing: the checkpoint is incomplete; "
                f"download it again, or {_SCAN_ORIGINAL}"
            )


def _scales(key: str) -> set[str]:
    """The names that the methods in use give the scale of a weight that is stored under this key."""
    weight = key.removesuffix("_packed").removesuffix("_blocks")
    module, _, own = weight.rpartition(".")
    of_module = {f"{module}.{name}" for name in ("scale", "scale_inv", "qscale_weight")} if own == "weight" else set()
    return of_module | {f"{weight}_{name}" for name in ("scale", "scales", "scale_inv")}


def _with_dequantize(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {**settings, "dequantize": True}
    settings.dequantize = True
    return settings
