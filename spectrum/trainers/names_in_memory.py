"""The parameters of a model in memory, under the names that they have without wrappers and adapters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spectrum.layer_types import paths_above, unwrapped

if TYPE_CHECKING:
    import torch

# DDP and DeepSpeed put the first before the name of every parameter, PEFT the second.
_PREFIXES = ("module.", "base_model.model.")

# PEFT inserts these into the name of a parameter of a module that it adapts.
_BASE = re.compile(r"\.token_adapter(?=\.base_layer\.)|\.base_layer(?=\.)")


@dataclass(frozen=True, slots=True)
class NamedParameter:
    """A parameter of the model.

    Args:
        name: its name in the model without wrappers and adapters.
        value: the parameter.
        is_adapter: whether PEFT added it. The `requires_grad` of such a parameter stays as it is.
    """

    name: str
    value: torch.nn.Parameter
    is_adapter: bool


def possible_names(model: torch.nn.Module) -> Iterator[list[NamedParameter]]:
    """The parameters of a model, tied ones under each name, with and then without what may come from wrappers.

    If all names start with one of `_PREFIXES`, it may come from a wrapper, or be the name of a module. So the names
    first have the prefix, then they do not.
    """
    values = {unwrapped(name): value for name, value in model.named_parameters(remove_duplicate=False)}
    while True:
        yield list(_without_adapters(values))
        prefix = next((p for p in _PREFIXES if values and all(name.startswith(p) for name in values)), None)
        if prefix is None:
            return
        values = {name.removeprefix(prefix): value for name, value in values.items()}


def _without_adapters(values: Mapping[str, torch.nn.Parameter]) -> Iterator[NamedParameter]:
    """The parameters of a model, under the names that they have without PEFT.

    A module that PEFT adapts is kept as the submodule `base_layer` of the module that replaces it. All other submodules
    of the replacement are PEFT's, and are left out.

    A module that PEFT trains as a whole is kept as the submodule `original_module`, which is not used and is left out.
    A copy in the submodule `modules_to_save` is used in its place.
    """
    adapted = _modules_with("base_layer", values)
    copied = _modules_with("original_module", values)
    for name, value in values.items():
        modules = paths_above(name)
        copied_module = next((module for module in modules if module in copied), None)
        if copied_module is not None:
            submodule, _, rest = name[len(copied_module) + 1 :].partition(".")
            if submodule == "modules_to_save":
                # After `modules_to_save` comes the adapter's name, then the parameter's.
                yield NamedParameter(f"{copied_module}.{rest.partition('.')[2]}", value, is_adapter=True)
        elif all(name.startswith(f"{module}.base_layer.") for module in modules if module in adapted):
            yield NamedParameter(_BASE.sub("", name), value, is_adapter=False)


def _modules_with(submodule: str, names: Iterable[str]) -> set[str]:
    """The paths of all modules that have parameters in a submodule of this name."""
    return {module for name in names for module in paths_above(name) if name.startswith(f"{module}.{submodule}.")}
