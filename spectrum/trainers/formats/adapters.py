"""Which layers take adapters, and the rule by which PEFT finds them again. `lora` spells them for each trainer."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from spectrum.errors import SelectionError
from spectrum.layer_types import paths_above
from spectrum.records import ModelInfo
from spectrum.selection.selection import Selection
from spectrum.text import listed
from spectrum.trainers.adaptable import uncalled, why_not
from spectrum.trainers.formats.export import model_info

# Names that the experts' matrices have in transformers 4. In a model with fused experts, PEFT reads a target module of
# such a name as the fused experts of all layers. It takes a target parameter of such a name literally.
_EXPERT_MATRICES = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "gate"})


@dataclass(frozen=True, slots=True)
class Adapters:
    """The selected layers that get adapters, and nothing else.

    Args:
        info: the model.
        modules: the paths of the modules.
        parameters: the names of the parameters outside such modules, such as stacks of experts. PEFT tells each from
            all others by the end of its name.
        notes: what gets no adapter, for the user.
    """

    info: ModelInfo
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    notes: tuple[str, ...]


def adapters_of(selection: Selection) -> Adapters:
    """The adapters of a selection.

    Raises SelectionError if no selected layer can take an adapter, if PEFT cannot tell a parameter from another one, or
    if the scan does not describe the layers.
    """
    info = model_info(selection, "which layers take adapters")
    weights = {layer: own[0] for layer, own in selection.parameters().items()}
    in_mixture = has_fused_experts(info)
    targets = {layer: adapter_target(layer, weight, info, in_mixture) for layer, weight in weights.items()}
    modules = [layer for layer, target in targets.items() if target == "module"]
    parameters = [weights[layer] for layer, target in targets.items() if target == "parameter"]
    without = [layer for layer, target in targets.items() if target is None]
    if not modules and not parameters:
        raise SelectionError("no selected layer takes an adapter")
    if not info.knows_modules():
        raise SelectionError(f"the cached scan of {selection.result.model} is of an older version; use --rescan")
    if clash := ending_so(parameters, info.parameters):
        raise SelectionError(f"PEFT cannot adapt {clash[0]} without {clash[1]}, which ends with that name")
    notes = []
    if without:
        count = f"{len(modules) + len(parameters)} of {len(weights)} selected layers get an adapter"
        notes.append(f"{count}; LoRA has none for norms and the like: {listed(without, 3)}")
    if selection.embedding_parameters():
        notes.append("input embedding and output head get no adapter unless they are selected as layers")
    return Adapters(info, tuple(modules), tuple(parameters), tuple(notes))


def module_paths(info: ModelInfo) -> list[str]:
    """The paths of all modules that hold parameters, themselves or further below, in model order."""
    return list(dict.fromkeys(path for name in info.parameters for path in paths_above(name)))


def ending_so(targets: Collection[str], names: Collection[str]) -> tuple[str, str] | None:
    """The first target whose name is the end of another name, and the first such name; None without one.

    PEFT would adapt that one too.
    """
    ends, wanted = _ends(names), set(targets)
    for target in targets:
        if target in ends:
            for name in names:
                if name.endswith(f".{target}") and name not in wanted:
                    return target, name
    return None


def adapter_target(layer: str, weight: str, info: ModelInfo, in_mixture: bool) -> str | None:
    """How PEFT adapts a layer: "module", "parameter", or None for not at all.

    Args:
        layer: the layer.
        weight: its first parameter.
        info: the model.
        in_mixture: whether the model has fused experts.
    """
    parameter, name = info.parameters.get(weight), layer.rpartition(".")[2]
    if parameter is None:  # the layer comes from another tool's scan
        return None
    has_matrices = len(parameter.shape) in (2, 3)
    if parameter.module is None:
        return "parameter" if has_matrices and uncalled(layer, info) is None else None
    if why_not(layer, parameter.module, info) is not None:
        return None
    if in_mixture and name in _EXPERT_MATRICES:
        return "parameter" if has_matrices else None
    return "module"


def has_fused_experts(info: ModelInfo) -> bool:
    """Whether a model has experts whose matrices are stacked in one three-dimensional parameter."""
    return any(
        parameter.module is None and len(parameter.shape) == 3 and "expert" in name
        for name, parameter in info.parameters.items()
    )


def _ends(names: Iterable[str]) -> set[str]:
    """For each dot in each name, the rest of the name after it."""
    return {name[i + 1 :] for name in names for i, letter in enumerate(name) if letter == "."}
