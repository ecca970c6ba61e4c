"""Adapters on the selected layers, as PEFT, Axolotl, TRL and LLaMA-Factory spell them."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from spectrum.errors import SelectionError
from spectrum.records import ModelInfo
from spectrum.selection.selection import Selection
from spectrum.text import listed
from spectrum.trainers.formats.adapters import Adapters, adapters_of, ending_so, has_fused_experts, module_paths
from spectrum.trainers.formats.export import Export, yaml_text
from spectrum.trainers.llama_factory import NEVER

_NO_MODULE = "$^"  # a regular expression that matches no path


def peft(selection: Selection) -> Export:
    """Arguments for PEFT's `LoraConfig` that adapt the selected layers and nothing else: see `adapters`."""
    adapters = adapters_of(selection)
    arguments: dict[str, Any] = {"target_modules": _list_or_pattern(adapters)}
    if adapters.parameters:
        arguments["target_parameters"] = list(adapters.parameters)
    return Export(yaml_text(arguments), adapters.notes)


def axolotl_lora(selection: Selection) -> Export:
    """The same as keys of an Axolotl config. Axolotl allows no dropout beside `lora_target_parameters`."""
    adapters = adapters_of(selection)
    config: dict[str, Any] = {"adapter": "lora", "lora_target_modules": _list_or_pattern(adapters)}
    if adapters.parameters:
        config |= {"lora_target_parameters": list(adapters.parameters), "lora_dropout": 0}
    return Export(yaml_text(config), adapters.notes)


def trl_lora(selection: Selection) -> Export:
    """The same as arguments of TRL's command line.

    TRL takes one module as a regular expression, several as names, so a single one is written twice. Without any, PEFT
    would adapt the modules that it usually does in a model of this kind. Parameters allow no dropout, and TRL's default
    is 0.05.
    """
    adapters = adapters_of(selection)
    modules = _list_or_pattern(adapters)
    if isinstance(modules, list) and len(modules) < 2:
        modules = 2 * modules or _NO_MODULE
    # Without quotes, which the shell would keep: the file is inserted into a command line with $(cat FILE).
    lines = ["--use_peft", f"--lora_target_modules {modules if isinstance(modules, str) else ' '.join(modules)}"]
    if adapters.parameters:
        lines += [f"--lora_target_parameters {' '.join(adapters.parameters)}", "--lora_dropout 0"]
    return Export("".join(f"{line}\n" for line in lines), adapters.notes)


def llamafactory(selection: Selection) -> Export:
    """The same as keys of a LLaMA-Factory config, which takes names of modules, but no parameters and no pattern.

    In a model with a vision or audio tower, LLaMA-Factory first replaces each name by the paths of all modules in which
    it occurs, and leaves out towers and projectors unless the config unfreezes them.

    Raises SelectionError if a selected layer is no module, or is not told from another one by its name.
    """
    adapters = adapters_of(selection)
    if adapters.parameters:
        raise SelectionError(
            f"LLaMA-Factory adapts modules only, and these are parameters to PEFT: {listed(adapters.parameters, 2)}; "
            "choose other --layer-types, or use --format peft"
        )
    config: dict[str, Any] = {"finetuning_type": "lora"}
    modules, paths, notes = list(adapters.modules), module_paths(adapters.info), list(adapters.notes)
    clash = ending_so(modules, paths)
    if towers := towers_of(adapters.info):
        clash = clash or _occurring_in(modules, paths)
        without = [module for module in modules if any(word in module for word in NEVER)]
        modules = [module for module in modules if module not in without]
        if without:
            notes.append(f"LLaMA-Factory adapts no such module in some models, so it is left out: {listed(without, 3)}")
        if not modules:
            raise SelectionError("no selected layer takes an adapter of LLaMA-Factory")
        if not towers.isdisjoint(modules):
            config |= {"freeze_vision_tower": False, "freeze_multi_modal_projector": False}
    if clash:
        raise SelectionError(
            f"LLaMA-Factory cannot adapt {clash[0]} without {clash[1]}, in which that name occurs; use --format peft"
        )
    return Export(yaml_text({**config, "lora_target": ",".join(modules)}), tuple(notes))


def _list_or_pattern(adapters: Adapters) -> list[str] | str:
    """PEFT's `target_modules`: names, or one regular expression if a name is also the end of another module's.

    Raises SelectionError if there are fused experts too: in such models, PEFT replaces an expression by the ends of the
    names that it matches.
    """
    modules = list(adapters.modules)
    clash = ending_so(modules, module_paths(adapters.info))
    if clash and has_fused_experts(adapters.info):
        raise SelectionError(
            f"PEFT cannot adapt {clash[0]} without {clash[1]}, which ends with that name, in a model with fused "
            "experts; choose other --layer-types"
        )
    return "|".join(map(re.escape, modules)) if clash else modules


def towers_of(info: ModelInfo) -> set[str]:
    """The modules outside the language model: neither beside nor below the input embedding, nor the output head."""
    embedding = "" if info.embedding is None else info.owner(info.embedding)
    language_model = embedding.rpartition(".")[0].rpartition(".")[0]
    if not language_model:  # the embedding is at the top, and everything is below it
        return set()
    head = "" if info.head is None else info.head.rpartition(".")[0]
    paths = {name.rpartition(".")[0] for name in info.parameters}
    return {path for path in paths if not f"{path}.".startswith(f"{language_model}.")} - {head, ""}


def _occurring_in(modules: Collection[str], paths: Collection[str]) -> tuple[str, str] | None:
    """The first module whose path is part of another one's, and the first of those; None if there is no such module."""
    together = "\n".join(paths)
    for module in modules:
        if together.count(module) > 1:
            for path in paths:
                if module in path and path not in modules:
                    return module, path
    return None
