"""Apply a selection, or a list on disk, to a model in memory: set `requires_grad` of its parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from spectrum.errors import SelectionError, short_traceback
from spectrum.selection.entries import ParameterIndex
from spectrum.selection.selection import Selection
from spectrum.text import listed, plural
from spectrum.trainers import lists, matching
from spectrum.trainers.names_in_memory import NamedParameter, possible_names

if TYPE_CHECKING:
    import torch

# These wrappers read `requires_grad` only once, when they wrap the model.
_READ_ONCE = ("DistributedDataParallel", "DeepSpeedEngine")

_ADVICE = "the model must be of the class that was scanned, and must not be sharded yet"


@dataclass(frozen=True, slots=True, repr=False)
class Unfrozen:
    """The parameters of a model that train.

    Args:
        names: their names in the model. Tied parameters count once.
        trained: how many elements they have.
        total: how many elements all parameters of the model have.
    """

    names: tuple[str, ...]
    trained: int
    total: int

    def __repr__(self) -> str:
        share, tensors = 100 * self.trained / max(self.total, 1), plural(len(self.names), "tensor")
        return f"{self.trained:,} of {self.total:,} parameters train, {share:.3g} percent, in {tensors}"


@short_traceback
def unfreeze(model: torch.nn.Module, selection: Selection | str | Path) -> Unfrozen:
    """Let exactly the selected parameters of a model train, freeze all others, and return what trains.

    The model may be wrapped by PEFT, DDP, FSDP, DeepSpeed, torch.compile and activation checkpointing: what they add to
    names is ignored. Parameters that PEFT added keep their setting. A tied parameter trains if any of its names is
    selected.

    Call this before you create an optimizer, and before DDP or DeepSpeed wraps the model: they read only once which
    parameters train.

    Raises SelectionError, and leaves the model as it was, if an entry matches nothing, if a parameter cannot have
    gradients, or if a wrapper has already looked at what trains.

    Args:
        model: the model to train.
        selection: what `select` returned, or the path of a YAML file with `unfrozen_parameters`, whose entries are
            matched by Axolotl's rule.
    """
    if not isinstance(selection, Selection | str | Path):
        raise ValueError(f"what select() returns, or the path of a list, is expected, not {type(selection).__name__}")
    if not hasattr(model, "named_parameters"):
        raise ValueError(f"a model is expected, not {model!r}")
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


def _check_gradients(parameters: Iterable[NamedParameter]) -> None:
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


def _resolve(model: torch.nn.Module, selection: Selection | str | Path) -> tuple[list[NamedParameter], set[str]]:
    """The parameters of a model, and the names of the selected ones.

    Raises the SelectionError of the last of the possible names if none fit the selection.
    """
    refusal: SelectionError | None = None
    for parameters in possible_names(model):
        names = sorted({parameter.name for parameter in parameters})
        try:
            if isinstance(selection, Selection):
                return parameters, _selected(model, selection, names)
            return parameters, _listed(model, selection, names)
        except SelectionError as error:
            refusal = error
    assert refusal is not None  # a model has names
    raise refusal


def _selected(model: torch.nn.Module, selection: Selection, names: Sequence[str]) -> set[str]:
    """The names of the parameters in a selection. Raises SelectionError if the model lacks one of its layers."""
    index = ParameterIndex(names)
    own = {layer: index.own(layer) for layers in selection.layers().values() for layer in layers}
    own |= {name: [name] if name in names else [] for name in selection.embedding_parameters()}
    if missing := [name for name, parameters in own.items() if not parameters]:
        raise SelectionError(_missing_message(model, selection, missing))
    if not own:
        raise SelectionError(f"{selection.percent} percent of {selection.result.model} selects nothing to train")
    return {name for parameters in own.values() for name in parameters}


def _missing_message(model: torch.nn.Module, selection: Selection, missing: Sequence[str]) -> str:
    provenance, advice, scanned = selection.result.provenance, _ADVICE, ""
    if provenance is not None:
        version = provenance.versions.get("transformers")
        scanned = f", a {provenance.info.model_class} under transformers {version}"
    elif set(missing) <= set(selection.embedding_parameters()):
        advice = "the scan does not say what this model calls them; select with embeddings=False"
    return f"{type(model).__name__} has no {listed(missing, 3)}, which {selection.result.model} has{scanned}; {advice}"


def _listed(model: torch.nn.Module, path: str | Path, names: Sequence[str]) -> set[str]:
    """The names of the parameters that a list on disk selects. Raises SelectionError if an entry cannot be applied."""
    entry_list = lists.read_list(Path(path).expanduser())
    if (problem := entry_list.repeated_list()) is not None:
        raise SelectionError(f"{path}: {problem}")
    entries = entry_list.entries
    for entry in entries:
        if matching.selects_rows(entry):
            raise SelectionError(f"{path}: {entry!r} selects some rows of a parameter, which only Axolotl can train")
    matched = matching.matched(matching.AXOLOTL, entries, names)
    for entry, parameters in matched.items():
        if not parameters:
            raise SelectionError(
                f"{path}: {entry!r} matches no parameter of this {type(model).__name__}; `spectrum --check` says what "
                f"to write instead; {_ADVICE}"
            )
    return set().union(*matched.values())
