"""A selection in the form that a trainer takes. Records in, text out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spectrum import tables, unfrozen
from spectrum.errors import SelectionError
from spectrum.layers import Parameter
from spectrum.selection import Selection

# Modules that PEFT's LoRA adapts. Norms and routers of their own classes it does not.
_ADAPTED = frozenset({"Linear", "Embedding", "Conv1D", "Conv1d", "Conv2d", "Conv3d"})


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a file, and what the user should know that is not in it."""

    text: str
    notes: tuple[str, ...] = ()


def axolotl(selection: Selection) -> Rendered:
    """`unfrozen_parameters`, as the reference writes it."""
    return Rendered(unfrozen.render_axolotl(selection.entries(), selection.embedding_parameters()))


def names(selection: Selection) -> Rendered:
    """Names of the parameters that train, one a line."""
    return Rendered("".join(f"{name}\n" for name in selection.trained()))


def swift(selection: Selection) -> Rendered:
    """ms-swift's arguments for `--tuner_type full`: what begins with one of these names trains."""
    entries = [entry for group in selection.entries().values() for entry in group]
    prefixes = dict.fromkeys([*selection.embedding_parameters(), *entries])
    return Rendered(f"--freeze_parameters_ratio 1\n--trainable_parameters {' '.join(prefixes)}\n")


def peft(selection: Selection) -> Rendered:
    """Arguments of PEFT's `LoraConfig` that put adapters on the selected layers and nothing else.

    Matrices that no module of a class that LoRA knows holds, such as fused experts, are `target_parameters`. A name
    matches wherever another one ends with it; where that is so, the modules are a regular expression instead.
    """
    made = selection.result.provenance
    if made is None:
        raise SelectionError(
            f"the cached scan of {selection.result.model} does not say which layers take adapters; "
            "scan again with --rescan"
        )
    modules, parameters, left = [], [], []
    for layer, own in selection.parameters().items():
        first = made.parameters[own[0]]
        if own[0] == f"{layer}.weight" and first.module in _ADAPTED:
            modules.append(layer)
        elif len(first.shape) in (2, 3) and first.module not in _ADAPTED:
            parameters.append(own[0])
        else:
            left.append(layer)
    if not modules and not parameters:
        raise SelectionError("no selected layer takes an adapter")
    arguments: dict[str, Any] = {"target_modules": _target(modules, made.parameters)}
    if parameters:
        arguments["target_parameters"] = parameters
    note = f"adapters are for matrices; selected, and left out: {tables.listed(left, 3)}"
    return Rendered(_yaml(arguments), (note,) if left else ())


def selected_json(selection: Selection) -> Rendered:
    """The selection for programs: each layer with its type, SNR and parameters."""
    made = selection.result.provenance
    known = made.parameters if made else {}
    snr = {layer.name: layer for kind in selection.types for layer in kind.selected}
    content = {
        "model": selection.result.model,
        "model_class": made.model_class if made else None,
        "versions": dict(made.versions) if made else None,
        "top_percent": selection.percent,
        "embeddings": _described(selection.embedding_parameters(), known),
        "layers": [
            {"name": name, "type": snr[name].layer_type, "snr": snr[name].snr, "parameters": _described(own, known)}
            for name, own in selection.parameters().items()
        ],
    }
    return Rendered(json.dumps(content, indent=1) + "\n")


# What each format writes, and the name of its file: the format, and the ending.
FORMATS: Mapping[str, tuple[Callable[[Selection], Rendered], str, str]] = {
    "axolotl": (axolotl, "unfrozenparameters", "yaml"),
    "names": (names, "names", "txt"),
    "swift": (swift, "swift", "txt"),
    "peft": (peft, "peft", "yaml"),
    "json": (selected_json, "selection", "json"),
}


def _target(modules: Sequence[str], parameters: Iterable[str]) -> list[str] | str:
    paths = {name.rpartition(".")[0] for name in parameters}
    # A name of n parts can only be the end of another one at that one's last n parts.
    ends = {".".join(path.split(".")[i:]) for path in paths for i in range(1, path.count(".") + 1)}
    if ends.isdisjoint(modules):
        return list(modules)
    return "|".join(re.escape(module) for module in modules)


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
