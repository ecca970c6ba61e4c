"""A selection applied to a model in memory: `requires_grad` of its parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spectrum.errors import SelectionError
from spectrum.selection import entries
from spectrum.selection.selection import Selection
from spectrum.text import listed, plural
from spectrum.trainers import lists, matching

if TYPE_CHECKING:
    import torch


# Put around modules by FSDP, by activation checkpointing, by torch.compile.
_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")

# Before all names of a model, by DDP and DeepSpeed, by PEFT.
_PREFIXES = ("module.", "base_model.model.")

# These make what they need for the parameters that train when they are made.
_TAKES_STOCK = ("DistributedDataParallel", "DeepSpeedEngine")

# What PEFT puts before the last part of a parameter's name.
_BASE = re.compile(r"\.token_adapter(?=\.base_layer\.)|\.base_layer(?=\.)")
_ADVICE = "the model must be of the class that was scanned, and not be sharded yet"


@dataclass(frozen=True, slots=True, repr=False)
class Unfrozen:
    """What trains in a model: names of parameters, as the model has them, tied ones once; elements, of how many."""

    names: tuple[str, ...]
    trained: int
    total: int

    def __repr__(self) -> str:
        names, share = plural(len(self.names), "parameter"), 100 * self.trained / max(self.total, 1)
        return f"{names} with {self.trained:,} of {self.total:,} elements train, {share:.3g} percent"


@dataclass(frozen=True, slots=True)
class _Known:
    """A parameter under the name that its model gives it unwrapped. adapter: PEFT's own, whose setting stays."""

    name: str
    value: torch.nn.Parameter
    adapter: bool


def unfreeze(model: torch.nn.Module, selection: Selection | str | Path) -> Unfrozen:
    """Let exactly the selected parameters of a model train; return what trains then.

    selection: or the path of a YAML file with `unfrozen_parameters`, whose entries are matched as Axolotl does. Names
    are understood through the wrappers of PEFT, DDP, FSDP, DeepSpeed, torch.compile and activation checkpointing; what
    PEFT has added keeps its setting. A tied parameter trains where any of its names is selected.
    To be called before an optimizer is made, and before DDP or DeepSpeed wrap the model: they look at what trains once.
    Raises SelectionError, with the model as it was, where an entry matches nothing, where a parameter cannot have
    gradients, and where it is too late for a change.
    """
    if not isinstance(selection, Selection | str | Path):
        raise ValueError(f"a selection, or the path of a list, is expected, not {selection!r}")
    known, wanted = _understood(model, selection)
    trained = {id(parameter.value) for parameter in known if parameter.name in wanted}
    for parameter in known:
        if id(parameter.value) in trained and not parameter.value.is_floating_point():
            raise SelectionError(
                f"{parameter.name} is stored as {str(parameter.value.dtype).removeprefix('torch.')}, which has no "
                "gradients: a quantized model takes adapters (--format peft)"
            )
    own = {id(parameter.value) for parameter in known if not parameter.adapter}
    set_here = [value for value in model.parameters() if id(value) in trained or id(value) in own]
    stock = next((kind for module in model.modules() if (kind := type(module).__name__) in _TAKES_STOCK), None)
    if stock is not None and any(value.requires_grad != (id(value) in trained) for value in set_here):
        raise SelectionError(f"{stock} has already looked at what trains; unfreeze the model before it is wrapped")
    for value in set_here:
        value.requires_grad_(id(value) in trained)
    sizes = {name: int(getattr(value, "ds_numel", value.numel())) for name, value in model.named_parameters()}
    names = tuple(name for name, value in model.named_parameters() if value.requires_grad)
    return Unfrozen(names, sum(sizes[name] for name in names), sum(sizes.values()))


def _understood(model: torch.nn.Module, selection: Selection | str | Path) -> tuple[list[_Known], set[str]]:
    """A model's parameters, and the names of those that are to train; without what wrappers put before all names,
    unless they are selected by it: a model's own module may be called so.
    """
    values = {_unwrapped(name): value for name, value in model.named_parameters(remove_duplicate=False)}
    while True:
        known = list(_without_adapters(values))
        names = sorted({parameter.name for parameter in known})
        prefix = next((p for p in _PREFIXES if values and all(name.startswith(p) for name in values)), None)
        try:
            if isinstance(selection, Selection):
                return known, _of_selection(model, selection, names)
            return known, _of_list(model, selection, names)
        except SelectionError:
            if prefix is None:
                raise
        values = {name.removeprefix(prefix): value for name, value in values.items()}


def _of_selection(model: torch.nn.Module, selection: Selection, names: Sequence[str]) -> set[str]:
    of = {layer: entries.own_parameters(layer, names) for own in selection.layers().values() for layer in own}
    of |= {name: [name] if name in names else [] for name in selection.embedding_parameters()}
    missing = [name for name, own in of.items() if not own]
    if missing:
        made = selection.result.provenance
        advice = _ADVICE
        if made is None and set(missing) <= set(selection.embedding_parameters()):
            advice = "the scan does not say what this model calls them; select with embeddings=False"
        of_class = f", a {made.info.model_class} under transformers {made.versions.get('transformers')}" if made else ""
        raise SelectionError(
            f"{type(model).__name__} has no {listed(missing, 3)}, as {selection.result.model} has{of_class}; {advice}"
        )
    if not of:
        raise SelectionError(f"{selection.percent} percent of {selection.result.model} selects nothing to train")
    return {name for own in of.values() for name in own}


def _of_list(model: torch.nn.Module, path: str | Path, names: Sequence[str]) -> set[str]:
    read = lists.read_list(Path(path))
    for entry in read.entries:
        if matching.without_rows(entry) != entry:
            raise SelectionError(f"{path}: {entry!r} is for some rows of a parameter, which only Axolotl can train")
    matched = matching.matched(matching.AXOLOTL, read.entries, names)
    for entry, of in matched.items():
        if not of:
            raise SelectionError(f"{path}: {entry!r} matches no parameter of this {type(model).__name__}; {_ADVICE}")
    return set().union(*matched.values())


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _without_adapters(values: Mapping[str, torch.nn.Parameter]) -> Iterable[_Known]:
    """Parameters by the names that they have without PEFT.

    A module that has an adapter is kept in it as its `base_layer`; of one that is trained as a whole, there is an
    `original_module`, and a copy under `modules_to_save` that is used instead.
    """
    adapted, copied = (
        {path for name in values for path in _above(name) if name.startswith(f"{path}.{part}.")}
        for part in ("base_layer", "original_module")
    )
    for name, value in values.items():
        holder = next((path for path in _above(name) if path in copied), None)
        if holder is not None:
            kind, _, rest = name[len(holder) + 1 :].partition(".")
            if kind == "modules_to_save":
                yield _Known(f"{holder}.{rest.partition('.')[2]}", value, adapter=True)
        elif all(name[len(path) + 1 :].startswith("base_layer.") for path in _above(name) if path in adapted):
            yield _Known(_BASE.sub("", name), value, adapter=False)


def _above(name: str) -> list[str]:
    """The paths of the modules that a parameter is in, outermost first."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]
