"""Which settings of an Axolotl config contradict its list of unfrozen parameters?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from spectrum.text import listed
from spectrum.trainers import matching
from spectrum.trainers.lists import EntryList
from spectrum.trainers.untrusted_yaml import in_lines

# The settings that are checked.
_KEYS = frozenset(
    {
        *("adapter", "load_in_4bit", "load_in_8bit", "plugins", "gradient_checkpointing_kwargs", "freeze_mm_modules"),
        *("fsdp", "fsdp_config", "fsdp_version", "deepspeed", "optimizer"),
    }
)

# Axolotl's `freeze_mm_modules` freezes the modules that have one of these in their path.
VISION = frozenset(
    {"vision_tower", "vision_model", "vision_encoder", "embed_vision", "multi_modal_projector", "visual"}
)
AUDIO = frozenset({"audio_tower", "audio_model", "embed_audio"})


def problems(config: EntryList, trained: Iterable[str]) -> Iterator[str]:
    """What is wrong with the settings, one line for each. trained: the parameters that the list selects."""
    settings = config.settings
    selects_rows = any(map(matching.selects_rows, config.entries))
    for key, lines in config.repeated.items():
        if key.partition(".")[0] in _KEYS:
            yield f"{key} stands {in_lines(lines)}, and only the last counts; remove the others"
    yield from _adapters(settings)
    plugins = settings.get("plugins")
    if isinstance(plugins, list) and any(isinstance(name, str) and "SpectrumPlugin" in name for name in plugins):
        yield "SpectrumPlugin is among the plugins, and replaces this list with its own; remove one of the two"
    if settings.get("optimizer") == "polora":
        yield "optimizer: polora trains adapters only, and refuses the list; choose another"
    if _get(settings.get("gradient_checkpointing_kwargs"), "use_reentrant"):
        yield "gradient_checkpointing_kwargs: use_reentrant must be false if parameters are frozen"
    if settings.get("freeze_mm_modules") is True:
        frozen = [name for name in trained if not (VISION | AUDIO).isdisjoint(name.split("."))]
        if frozen:
            yield f"freeze_mm_modules freezes {listed(frozen, 2)} again; leave it unset, or remove their entries"
    fsdp = _fsdp(settings)
    if fsdp is not None and not fsdp.get("use_orig_params") and fsdp.get("version") not in (2, "2"):
        yield "FSDP 1 needs use_orig_params: true in fsdp_config to mix frozen and trainable parameters"
    if _is_zero3(settings.get("deepspeed")) and selects_rows:
        yield "DeepSpeed ZeRO-3 shards parameters, so entries cannot select rows of them"


def _adapters(settings: Mapping[str, Any]) -> Iterator[str]:
    if adapter := settings.get("adapter"):
        name = f": {adapter}" if isinstance(adapter, str) else ""
        yield f"adapter{name} is set, and the list freezes the adapter's own parameters too; leave it unset"
        return
    for quantized in ("load_in_4bit", "load_in_8bit"):
        if settings.get(quantized) is True:
            yield f"{quantized} is set: quantized weights take adapters, but do not train themselves"


def _fsdp(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of FSDP, without the prefix `fsdp_` that some configs have; None if FSDP is not used."""
    config = settings.get("fsdp_config")
    if not settings.get("fsdp") and not config:
        return None
    options = config if isinstance(config, dict) else {}
    named = {str(key): value for key, value in options.items() if isinstance(key, str)}
    return {"version": settings.get("fsdp_version"), **{key.removeprefix("fsdp_"): named[key] for key in named}}


def _is_zero3(deepspeed: object) -> bool:
    """Whether DeepSpeed's settings ask for ZeRO-3. deepspeed: the settings, or the name of their file."""
    if isinstance(deepspeed, str):
        return "zero3" in deepspeed
    return _get(_get(deepspeed, "zero_optimization"), "stage") in (3, "3")


def _get(settings: object, key: str) -> Any:
    return settings.get(key) if isinstance(settings, dict) else None
