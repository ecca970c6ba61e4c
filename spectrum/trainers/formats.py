"""A selection in the form that a trainer takes. Records in, text out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from spectrum.errors import SelectionError
from spectrum.records import ModelInfo, Parameter
from spectrum.selection import entries
from spectrum.selection.selection import Selection
from spectrum.text import listed

# Modules that PEFT's LoRA adapts. Norms and routers of their own classes it does not, nor what computes from the
# weights of its modules instead of by these: attention in one piece, state spaces.
_ADAPTED = frozenset({"Linear", "Embedding", "Conv1D", "Conv1d", "Conv2d", "Conv3d"})
_STATE_SPACES = ("Mamba", "FalconMamba", "FalconH1", "NemotronH")
_OF_STATE_SPACES = ("conv1d", "out_proj")

# Names of experts' matrices in models of transformers 4. In a model with fused experts PEFT takes any module that is
# called so for all experts of all layers; as parameters they are what they are.
_OF_EXPERTS = frozenset({"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3", "gate"})


@dataclass(frozen=True, slots=True)
class Export:
    """The text of a file, and what the user should know that is not in it."""

    text: str
    notes: tuple[str, ...] = ()


def axolotl(selection: Selection) -> Export:
    """`unfrozen_parameters`, as the reference writes it."""
    return Export(entries.render_axolotl(selection.entries(), selection.embedding_parameters()))


def names(selection: Selection) -> Export:
    """Names of the parameters that train, one a line."""
    return Export("".join(f"{name}\n" for name in selection.trained()))


def swift(selection: Selection) -> Export:
    """ms-swift's arguments for `--tuner_type full`: what begins with one of these names trains."""
    entries = [entry for group in selection.entries().values() for entry in group]
    prefixes = dict.fromkeys([*selection.embedding_parameters(), *entries])
    return Export(f"--freeze_parameters_ratio 1\n--trainable_parameters {' '.join(prefixes)}\n")


def peft(selection: Selection) -> Export:
    """Arguments of PEFT's `LoraConfig` that put adapters on the selected layers and nothing else.

    Matrices that no module of a class that LoRA knows holds, such as fused experts, are `target_parameters`. A name
    matches wherever another one ends with it; where that is so, the modules are a regular expression instead.
    Raises SelectionError where no selected layer takes an adapter, or a parameter cannot be told from another one.
    """
    info = selection.result.info
    if info is None:
        raise SelectionError(
            f"the cached scan of {selection.result.model} does not say which layers take adapters; "
            "scan again with --rescan"
        )
    first = {layer: own[0] for layer, own in selection.parameters().items()}
    fused = _has_fused_experts(info)
    targets = {layer: _adapter(layer, parameter, info, fused) for layer, parameter in first.items()}
    modules = [layer for layer, kind in targets.items() if kind == "module"]
    parameters = [first[layer] for layer, kind in targets.items() if kind == "parameter"]
    left = [layer for layer, kind in targets.items() if kind is None]
    if not modules and not parameters:
        raise SelectionError("no selected layer takes an adapter")
    if not info.knows_modules():
        raise SelectionError(f"the cached scan of {selection.result.model} is of an older version; use --rescan")
    for parameter in _ends(info.parameters).intersection(parameters):
        for other in info.parameters:
            if other.endswith(f".{parameter}") and other not in parameters:
                raise SelectionError(f"PEFT cannot adapt {parameter} without {other}, which ends with that name")
    paths = _ends({name.rpartition(".")[0] for name in info.parameters})
    target = modules if paths.isdisjoint(modules) else "|".join(map(re.escape, modules))
    arguments: dict[str, Any] = {"target_modules": target}
    if parameters:
        arguments["target_parameters"] = parameters
    notes = [f"no adapter fits {listed(left, 3)}, so they are left out"] if left else []
    if selection.embedding_parameters():
        notes.append("input embedding and output head get no adapter unless they are selected as layers")
    return Export(_yaml(arguments), tuple(notes))


def _adapter(layer: str, parameter: str, info: ModelInfo, fused: bool) -> str | None:
    """Whether PEFT is to adapt a layer as a `module` or as a `parameter`; None where it cannot.

    fused: whether the model has fused experts.
    """
    first, name = info.parameters.get(parameter), layer.rpartition(".")[2]
    if first is None:  # merged from another tool's scan
        return None
    in_one_piece = f"{layer.rpartition('.')[0]}.in_proj_weight" in info.parameters  # torch's MultiheadAttention
    if in_one_piece or (info.model_class.startswith(_STATE_SPACES) and name in _OF_STATE_SPACES):
        return None
    if first.module in _ADAPTED:
        return "parameter" if fused and name in _OF_EXPERTS else "module"
    return "parameter" if first.module is None and len(first.shape) in (2, 3) else None


def selected_json(selection: Selection) -> Export:
    """The selection for programs: each layer with its type, SNR (null for infinity) and parameters."""
    provenance, info = selection.result.provenance, selection.result.info
    known = info.parameters if info else {}
    snr = {layer.name: layer for kind in selection.types for layer in kind.selected}
    content = {
        "model": selection.result.model,
        "model_class": info.model_class if info else None,
        "versions": dict(provenance.versions) if provenance else None,
        "top_percent": float(selection.percent),
        "embeddings": _described(selection.embedding_parameters(), known),
        "layers": [
            {
                "name": name,
                "type": snr[name].layer_type,
                "snr": snr[name].snr if math.isfinite(snr[name].snr) else None,
                "parameters": _described(own, known),
            }
            for name, own in selection.parameters().items()
        ],
    }
    return Export(json.dumps(content, indent=1, allow_nan=False) + "\n")


# What each format writes, and the name of its file: the format, and the ending.
FORMATS: Mapping[str, tuple[Callable[[Selection], Export], str, str]] = {
    "axolotl": (axolotl, "unfrozenparameters", "yaml"),
    "names": (names, "names", "txt"),
    "swift": (swift, "swift", "txt"),
    "peft": (peft, "peft", "yaml"),
    "json": (selected_json, "selection", "json"),
}


def _has_fused_experts(info: ModelInfo) -> bool:
    known = info.parameters.items()
    return any(each.module is None and len(each.shape) == 3 and "expert" in name for name, each in known)


def _ends(names: Iterable[str]) -> set[str]:
    """What names end with, from one of their parts on, but for their whole."""
    return {name[i + 1 :] for name in names for i, letter in enumerate(name) if letter == "."}


def _described(names: Iterable[str], known: Mapping[str, Parameter]) -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": list(known[name].shape), "dtype": known[name].dtype}
        if name in known
        else {"name": name}
        for name in names
    ]


def _yaml(content: object) -> str:
    import yaml

    text: str = yaml.safe_dump(content, sort_keys=False, width=1 << 20)
    return text
