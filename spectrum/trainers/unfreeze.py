"""Apply a selection, or a list on disk, to a model in memory: set `requires_grad` of its parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spectrum.errors import SelectionError
from spectrum.layer_types import WRAPPERS
from spectrum.selection.entries import ParameterIndex
from spectrum.selection.selection import Selection
from spectrum.text import listed, plural
from spectrum.trainers import lists, matching

if TYPE_CHECKING:
    import torch

# DDP and DeepSpeed, and PEFT, put these before the name of every parameter.
_PREFIXES = ("module.", "base_model.model.")

# These look at `requires_grad` once, when they wrap the model.
_READ_ONCE = ("DistributedDataParallel", "DeepSpeedEngine")

# PEFT puts these before the last part of a parameter's name.
_BASE = re.compile(r"\.token_adapter(?=\.base_layer\.)|\.base_layer(?=\.)")
_ADVICE = "the model must be of the class that was scanned, and must not be sharded yet"


@dataclass(frozen=True, slots=True, repr=False)
class Unfrozen:
    """What trains in a model.

    Args:
        names: the parameters that train, as the model names them. Tied ones count once.
        trained: how many elements they have.
        total: how many elements all parameters of the model have.
    """

    names: tuple[str, ...]
    trained: int
    total: int

    def __repr__(self) -> str:
        names, share = plural(len(self.names), "parameter"), 100 * self.trained / max(self.total, 1)
        return f"{names} with {self.trained:,} of {self.total:,} elements train, {share:.3g} percent"


@dataclass(frozen=True, slots=True)
class _NamedParameter:
    """A parameter of the model.

    Args:
        name: the name that it has in the model without wrappers and adapters.
        value: the parameter.
        is_adapter: whether it is PEFT's own, whose setting stays.
    """

    name: str
    value: torch.nn.Parameter
    is_adapter: bool


def unfreeze(model: torch.nn.Module, selection: Selection | str | Path) -> Unfrozen:
    """Let exactly the selected parameters of a model train, freeze all others, and return what trains.

    Names are understood through the wrappers of PEFT, DDP, FSDP, DeepSpeed, torch.compile and activation checkpointing.
    Parameters that PEFT added keep their setting. A tied parameter trains if any of its names is selected.

    Call this before you make an optimizer, and before DDP or DeepSpeed wraps the model: they look only once at what
    trains.

    Raises SelectionError, and leaves the model as it was, if an entry matches nothing, if a parameter cannot have
    gradients, or if a wrapper has already looked at what trains.

    Args:
        model: the model to train.
        selection: what `select` returned, or the path of a YAML file with `unfrozen_parameters`, whose entries are
            matched by Axolotl's rule.
    """
    if not isinstance(selection, Selection | str | Path):
        raise ValueError(f"a selection, or the path of a list, is expected, not {selection!r}")
    parameters, selected = _resolve(model, selection)
    trained = {id(parameter.value) for parameter in parameters if parameter.name in selected}
    _check_gradients(parameter for parameter in parameters if id(parameter.value) in trained)
    changeable = trained | {id(parameter.value) for parameter in parameters if not parameter.is_adapter}
    values = [value for value in model.parameters() if id(value) in changeable]
    wrapper = next((name for module in model.modules() if (name := type(module).__name__) in _READ_ONCE), None)
    if wrapper is not None and any(value.requires_grad != (id(value) in trained) for value in values):
        raise SelectionError(f"{wrapper} has already looked at what trains; unfreeze the model before it is wrapped")
    for value in values:
        value.requires_grad_(id(value) in trained)
    return _summarize(model)


def _check_gradients(parameters: Iterable[_NamedParameter]) -> None:
    for parameter in parameters:
        if not parameter.value.is_floating_point():
            raise SelectionError(
                f"{parameter.name} is stored as {str(parameter.value.dtype).removeprefix('torch.')}, which has no "
                "gradients: a quantized model takes adapters (--format peft)"
            )


def _summarize(model: torch.nn.Module) -> Unfrozen:
    # Under DeepSpeed ZeRO-3 a parameter is empty, and `ds_numel` is its size.
    sizes = {name: int(getattr(value, "ds_numel", value.numel())) for name, value in model.named_parameters()}
    names = tuple(name for name, value in model.named_parameters() if value.requires_grad)
    return Unfrozen(names, sum(sizes[name] for name in names), sum(sizes.values()))


def _resolve(model: torch.nn.Module, selection: Selection | str | Path) -> tuple[list[_NamedParameter], set[str]]:
    """The parameters of a model, and the names of the selected ones.

    A prefix that every name starts with may be a wrapper's, or a module of the model's own. So the names are tried with
    the prefix first, and without it if they do not fit the selection.
    """
    values = {_unwrapped(name): value for name, value in model.named_parameters(remove_duplicate=False)}
    while True:
        parameters = list(_without_adapters(values))
        names = sorted({parameter.name for parameter in parameters})
        prefix = next((p for p in _PREFIXES if values and all(name.startswith(p) for name in values)), None)
        try:
            if isinstance(selection, Selection):
                return parameters, _selected(model, selection, names)
            return parameters, _listed(model, selection, names)
        except SelectionError:
            if prefix is None:
                raise
        values = {name.removeprefix(prefix): value for name, value in values.items()}


def _selected(model: torch.nn.Module, selection: Selection, names: Sequence[str]) -> set[str]:
    """The names that a selection selects. Raises SelectionError if the model lacks one of its layers."""
    index = ParameterIndex(names)
    own = {layer: index.own(layer) for layers in selection.layers().values() for layer in layers}
    own |= {name: [name] if name in names else [] for name in selection.embedding_parameters()}
    if missing := [name for name, parameters in own.items() if not parameters]:
        raise SelectionError(_missing(model, selection, missing))
    if not own:
        raise SelectionError(f"{selection.percent} percent of {selection.result.model} selects nothing to train")
    return {name for parameters in own.values() for name in parameters}


def _missing(model: torch.nn.Module, selection: Selection, missing: Sequence[str]) -> str:
    provenance, advice, scanned = selection.result.provenance, _ADVICE, ""
    if provenance is not None:
        version = provenance.versions.get("transformers")
        scanned = f", a {provenance.info.model_class} under transformers {version}"
    elif set(missing) <= set(selection.embedding_parameters()):
        advice = "the scan does not say what this model calls them; select with embeddings=False"
    return f"{type(model).__name__} has no {listed(missing, 3)}, which {selection.result.model} has{scanned}; {advice}"


def _listed(model: torch.nn.Module, path: str | Path, names: Sequence[str]) -> set[str]:
    """The names that a list on disk selects. Raises SelectionError if an entry cannot be applied."""
    entries = lists.read_list(Path(path)).entries
    for entry in entries:
        if matching.without_rows(entry) != entry:
            raise SelectionError(f"{path}: {entry!r} selects some rows of a parameter, which only Axolotl can train")
    matched = matching.matched(matching.AXOLOTL, entries, names)
    for entry, parameters in matched.items():
        if not parameters:
            raise SelectionError(f"{path}: {entry!r} matches no parameter of this {type(model).__name__}; {_ADVICE}")
    return set().union(*matched.values())


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _without_adapters(values: Mapping[str, torch.nn.Parameter]) -> Iterator[_NamedParameter]:
    """The parameters, under the names that they have without PEFT.

    PEFT replaces a module that it adapts, and keeps the module itself as `base_layer`. A module that PEFT trains as a
    whole stays as `original_module`, unused, beside a copy under `modules_to_save`, which is used instead.
    """
    adapted, copied = (
        {path for name in values for path in _above(name) if name.startswith(f"{path}.{part}.")}
        for part in ("base_layer", "original_module")
    )
    for name, value in values.items():
        copied_module = next((path for path in _above(name) if path in copied), None)
        if copied_module is not None:
            copy, _, rest = name[len(copied_module) + 1 :].partition(".")
            if copy == "modules_to_save":
                # After `modules_to_save` comes the adapter's name, then the parameter's.
                yield _NamedParameter(f"{copied_module}.{rest.partition('.')[2]}", value, is_adapter=True)
        elif all(name[len(path) + 1 :].startswith("base_layer.") for path in _above(name) if path in adapted):
            yield _NamedParameter(_BASE.sub("", name), value, is_adapter=False)


def _above(name: str) -> list[str]:
    """The paths of the modules that a parameter is in, outermost first."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]
