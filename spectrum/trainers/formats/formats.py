"""How is a selection written for a trainer? A function for each format. Records in, text out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from spectrum.errors import SelectionError
from spectrum.records import LayerSnr, ModelInfo, Parameter
from spectrum.selection.selection import Selection
from spectrum.text import listed

# Classes of modules that PEFT's LoRA adapts. Norms and routers of other classes take no adapter.
_ADAPTED = frozenset({"Linear", "Embedding", "Conv1D", "Conv1d", "Conv2d", "Conv3d"})

# State-space models use the weights of these modules but never call the modules, so an adapter would have no effect.
_STATE_SPACES = ("Mamba", "FalconMamba", "FalconH1", "NemotronH")
_UNCALLED_IN_STATE_SPACES = ("conv1d", "out_proj")

# Names that the experts' matrices have in transformers 4. In a model with fused experts, PEFT reads a target module of
# such a name as the fused experts of all layers. It takes a target parameter of such a name literally.
_EXPERT_MATRICES = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "gate"})


@dataclass(frozen=True, slots=True)
class Export:
    """The content of a file, and notes for the user."""

    text: str
    notes: tuple[str, ...] = ()


def axolotl(selection: Selection) -> Export:
    """The `unfrozen_parameters` of Axolotl, as the reference writes them."""
    return Export(selection.yaml())


def names(selection: Selection) -> Export:
    """The names of the parameters that train, one per line."""
    return Export("".join(f"{name}\n" for name in selection.trained()))


def swift(selection: Selection) -> Export:
    """Arguments for ms-swift with `--tuner_type full`: parameters whose names start with a listed prefix train.

    A parameter whose name is the beginning of another one's is listed in a regular expression instead.
    """
    entries = [entry for group in selection.entries().values() for entry in group]
    prefixes = dict.fromkeys(
        [*selection.embedding_parameters(), *(entry for entry in entries if not entry.startswith("^"))]
    )
    lines = ["--freeze_parameters_ratio 1", f"--trainable_parameters {' '.join(prefixes)}"]
    if anchored := dict.fromkeys(entry.strip("^$") for entry in entries if entry.startswith("^")):
        # Without quotes, which the shell would keep: the file is inserted into a command line with $(cat FILE).
        lines.append(f"--trainable_parameters_regex ^({'|'.join(map(re.escape, anchored))})$")
    return Export("".join(f"{line}\n" for line in lines))


def peft(selection: Selection) -> Export:
    """Arguments for PEFT's `LoraConfig` that adapt the selected layers and nothing else.

    Modules that LoRA adapts become `target_modules`: a list of names, or one regular expression if a name is also the
    end of another module's name, since PEFT would adapt both. A parameter outside such modules, such as a stack of
    experts, becomes one of the `target_parameters`.

    Raises SelectionError if no selected layer can take an adapter, if PEFT cannot tell a parameter from another one, or
    if the scan does not describe the layers.
    """
    info = selection.result.info
    if info is None:
        raise SelectionError(
            f"the cached scan of {selection.result.model} does not say which layers take adapters; "
            "scan again with --rescan"
        )
    weights = {layer: own[0] for layer, own in selection.parameters().items()}
    has_fused_experts = _has_fused_experts(info)
    targets = {layer: _target(layer, weight, info, has_fused_experts) for layer, weight in weights.items()}
    modules = [layer for layer, target in targets.items() if target == "module"]
    parameters = [weights[layer] for layer, target in targets.items() if target == "parameter"]
    without = [layer for layer, target in targets.items() if target is None]
    if not modules and not parameters:
        raise SelectionError("no selected layer takes an adapter")
    if not info.knows_modules():
        raise SelectionError(f"the cached scan of {selection.result.model} is of an older version; use --rescan")
    _check_unambiguous(parameters, info)
    arguments: dict[str, Any] = {"target_modules": _target_modules(modules, info)}
    if parameters:
        arguments["target_parameters"] = parameters
    notes = []
    if without:
        count = f"{len(modules) + len(parameters)} of {len(weights)} selected layers get an adapter"
        notes.append(f"{count}; LoRA has none for norms and the like: {listed(without, 3)}")
    if selection.embedding_parameters():
        notes.append("input embedding and output head get no adapter unless they are selected as layers")
    return Export(_yaml(arguments), tuple(notes))


def _target(layer: str, weight: str, info: ModelInfo, has_fused_experts: bool) -> str | None:
    """How PEFT adapts a layer: "module", "parameter", or None for not at all. weight: the layer's first parameter."""
    parameter, (parent, _, name) = info.parameters.get(weight), layer.rpartition(".")
    if parameter is None:  # the layer comes from another tool's scan
        return None
    # torch's MultiheadAttention computes with the weights of its modules, and never calls them.
    in_attention = f"{parent}.in_proj_weight" in info.parameters
    if in_attention or (info.model_class.startswith(_STATE_SPACES) and name in _UNCALLED_IN_STATE_SPACES):
        return None
    if parameter.module in _ADAPTED:
        return "parameter" if has_fused_experts and name in _EXPERT_MATRICES else "module"
    return "parameter" if parameter.module is None and len(parameter.shape) in (2, 3) else None


def _has_fused_experts(info: ModelInfo) -> bool:
    """Whether a model has experts whose matrices are stacked in one three-dimensional parameter."""
    return any(
        parameter.module is None and len(parameter.shape) == 3 and "expert" in name
        for name, parameter in info.parameters.items()
    )


def _check_unambiguous(targets: list[str], info: ModelInfo) -> None:
    """Raise SelectionError if a target's name is the end of another parameter's name: PEFT would adapt both."""
    for target in _ends(info.parameters).intersection(targets):
        for name in info.parameters:
            if name.endswith(f".{target}") and name not in targets:
                raise SelectionError(f"PEFT cannot adapt {target} without {name}, which ends with that name")


def _target_modules(modules: list[str], info: ModelInfo) -> list[str] | str:
    """The `target_modules` that adapt exactly these modules."""
    paths = {name.rpartition(".")[0] for name in info.parameters}
    return modules if _ends(paths).isdisjoint(modules) else "|".join(map(re.escape, modules))


def _ends(names: Iterable[str]) -> set[str]:
    """For each dot in each name, the rest of the name after it."""
    return {name[i + 1 :] for name in names for i, letter in enumerate(name) if letter == "."}


def _yaml(content: object) -> str:
    import yaml

    text: str = yaml.safe_dump(content, sort_keys=False, width=1 << 20)
    return text


def selected_json(selection: Selection) -> Export:
    """The selection as JSON for programs: each layer with its type, its SNR (null for infinity) and its parameters."""
    provenance, info = selection.result.provenance, selection.result.info
    parameters = info.parameters if info else {}
    scores = {layer.name: layer for ranked in selection.types for layer in ranked.selected}
    content = {
        "model": selection.result.model,
        "model_class": info.model_class if info else None,
        "versions": dict(provenance.versions) if provenance else None,
        "top_percent": float(selection.percent),
        "order": selection.order,
        "embeddings": _parameter_entries(selection.embedding_parameters(), parameters),
        "layers": [
            {**_layer_entry(scores[layer]), "parameters": _parameter_entries(own, parameters)}
            for layer, own in selection.parameters().items()
        ],
    }
    return Export(json.dumps(content, indent=1, allow_nan=False) + "\n")


def _layer_entry(layer: LayerSnr) -> dict[str, Any]:
    """The JSON entry of a layer, without its parameters."""
    return {"name": layer.name, "type": layer.layer_type, "snr": layer.snr if math.isfinite(layer.snr) else None}


def _parameter_entries(names: Iterable[str], parameters: Mapping[str, Parameter]) -> list[dict[str, Any]]:
    """The JSON entries of parameters. One that the scan does not describe has only its name."""
    return [
        {"name": name, "shape": list(parameters[name].shape), "dtype": parameters[name].dtype}
        if name in parameters
        else {"name": name}
        for name in names
    ]


class Format(NamedTuple):
    """A format of the list.

    Args:
        render: turns a selection into the content of the file.
        name: the word for the format in the file's name.
        ending: the ending of the file's name, without the dot.
        use: what the user does with the list. `LIST` stands for its path.
        can_check: whether `--check` reads the list.
    """

    render: Callable[[Selection], Export]
    name: str
    ending: str
    use: str
    can_check: bool = False


FORMATS: Mapping[str, Format] = {
    "axolotl": Format(
        axolotl,
        "unfrozenparameters",
        "yaml",
        "Axolotl: paste the list into your config at the top level; leave adapter unset.\n"
        "Trainer, TRL: spectrum.unfreeze(model, LIST), before you create the trainer.",
        can_check=True,
    ),
    "names": Format(names, "names", "txt", "Each line is the name of a parameter that trains; freeze all others."),
    "swift": Format(swift, "swift", "txt", "ms-swift: swift sft --tuner_type full $(cat LIST) ..."),
    "peft": Format(peft, "peft", "yaml", "PEFT: LoraConfig(r=16, **yaml.safe_load(open(LIST)))"),
    "json": Format(selected_json, "selection", "json", "The list is JSON for your own program."),
}
