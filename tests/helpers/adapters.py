"""Where PEFT has put adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn

Adapted = tuple[set[str], set[str]]  # modules, parameters


def names_of(model: nn.Module) -> dict[int, str]:
    """The names of a model's parameters, by their identity, which adapters do not change."""
    return {id(value): name for name, value in model.named_parameters()}


def adapted(wrapped: nn.Module, names: Mapping[int, str]) -> Adapted:
    """Where adapters are. names: of the parameters of the model as it was before, by their identity."""
    modules, parameters = set(), set()
    for name, module in wrapped.named_modules():
        if isinstance(module, ParamWrapper):
            base: Any = module
            while isinstance(base, ParamWrapper):
                base = base.base_layer
            parameters.add(names[id(getattr(base, module.parameter_name))])
        elif isinstance(module, LoraLayer):
            assert "default" in {*module.lora_A, *module.lora_embedding_A}
            modules.add(name.removeprefix("base_model.model."))
    return modules, parameters


def weights(found: Adapted) -> set[str]:
    """Their parameters. A module that peft would take for a model's experts by its name is adapted as a parameter."""
    modules, parameters = found
    return {f"{module}.weight" for module in modules} | parameters


def trainable(model: nn.Module) -> set[str]:
    """The parameters that train, by the names under which trainers see them."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


class Wrapped(nn.Module):
    """A model inside a trainer's own, under a name of the trainer's."""

    def __init__(self, name: str, model: torch.nn.Module) -> None:
        super().__init__()
        self.add_module(name, model)
