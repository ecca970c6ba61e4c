"""One class: build it tiny, save it, read every weight, and compare with what transformers loads."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from spectrum.checkpoint.checkpoint import Checkpoint
from spectrum.checkpoint.mapping.isolation import nothing_fetched, quiet
from spectrum.checkpoint.reader import open_checkpoint
from spectrum.errors import SpectrumError
from spectrum.records import LayerSnr, LayerWeight
from spectrum.scanning.assemble import assemble
from spectrum.selection.selection import top_percent
from spectrum.trainers.checking.check import check_list
from spectrum.trainers.lists import read_list
from tests.sweep.build import NotBuiltError, build

Result = Literal["exact", "wrong", "refused", "not saved", "needs package", "not built"]
Reader = Callable[[Checkpoint, LayerWeight, int], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one class.

    Args:
        name: of the class.
        result: `exact` if every weight is read as transformers loads it; `not saved` if transformers itself does not
            load what it has saved, `needs package` if it cannot be built without one that is not installed, `not built`
            if no tiny config was found.
        reason: for all results but `exact`.
        num_weights: how many were compared.
        unscored: the share of the elements of matrices that are not scored.
        remarks: what is wrong with the list of an exact class.
    """

    name: str
    result: Result
    reason: str = ""
    num_weights: int = 0
    unscored: float = 0.0
    remarks: tuple[str, ...] = field(default=())


def examine(name: str, directory: Path, read: Reader = Checkpoint.read) -> Row:
    """Examine a class, with its checkpoint in an empty directory."""
    try:
        with quiet(), nothing_fetched():
            model = build(name)
    except NotBuiltError as error:
        return Row(name, "not built", str(error))
    except ImportError as error:
        return Row(name, "needs package", _line(error).split(" but ")[0])
    reason = _save(model, directory)
    if reason:
        return Row(name, "not saved", reason)
    del model
    try:
        with quiet(), nothing_fetched():
            loaded, report = getattr(transformers, name).from_pretrained(
                directory, dtype="auto", output_loading_info=True
            )
    except Exception as error:
        return Row(name, "not saved", f"from_pretrained: {_line(error)}")
    filled = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    try:
        checkpoint = open_checkpoint(str(directory))
    except SpectrumError as error:
        if filled:
            return Row(name, "not saved", f"transformers fills {len(filled)} parameters at random: {filled[0]}")
        return Row(name, "refused", _line(error).replace(f"{directory}", "the checkpoint"))
    if filled:
        return Row(name, "wrong", f"it is read, though transformers fills {filled[0]} at random")
    values = dict(loaded.named_parameters(remove_duplicate=False))
    differences = list(_differences(checkpoint, loaded, values, read))
    num_weights = len(checkpoint.weights)
    unscored = _unscored(checkpoint, values)
    if differences:
        more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
        return Row(name, "wrong", f"{differences[0]}{more}", num_weights, unscored)
    return Row(name, "exact", "", num_weights, unscored, tuple(_remarks(checkpoint, directory / "list.yaml")))


def _save(model: Any, directory: Path) -> str:
    try:
        with quiet(), nothing_fetched():
            model.save_pretrained(directory)
    except Exception as error:
        return f"save_pretrained: {_line(error)}"
    return ""


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _differences(checkpoint: Checkpoint, model: Any, values: dict[str, torch.Tensor], read: Reader) -> Iterator[str]:
    """How what is read differs from the model that transformers loads."""
    info = checkpoint.provenance.info
    # Positions that are computed are not stored, and therefore not scored.
    optional = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    left_out = {name for name in values.keys() - info.parameters.keys() if any(re.search(p, name) for p in optional)}
    if info.parameters.keys() != values.keys() - left_out:
        yield f"other names of parameters: {sorted(info.parameters.keys() ^ values.keys() - left_out)[0]}"
        return
    owned = {f"{path}.weight".removeprefix(".") for path, module in model.named_modules(remove_duplicate=False)}
    listed = {_parameter(w, values) for w in checkpoint.weights}
    for name in sorted(owned & values.keys() - left_out):
        if values[name].numel() and name not in listed:
            yield f"{name} is not among the weights"
    for weight in checkpoint.weights:
        name = _parameter(weight, values)
        try:
            found = torch.stack([read(checkpoint, weight, index) for index in range(weight.num_matrices)])
        except SpectrumError as error:
            yield _line(error)
            continue
        expected = _in_matrices(model, name, values[name].detach(), found.dtype)
        if weight.shape != tuple(values[name].shape):
            yield f"{name} has shape {list(weight.shape)}, transformers loads {list(values[name].shape)}"
        elif not _same_bits(found.reshape(-1), expected.reshape(-1)):
            yield f"{name} has other values than transformers loads"


def _parameter(weight: LayerWeight, names: Container[str]) -> str:
    """The parameter under whose name a weight's values are found, or the direction of one under weight norm."""
    candidates = (weight.name, f"{weight.name}.weight", f"{weight.name}.parametrizations.weight.original1")
    return next(name for name in candidates if name in names)


def _in_matrices(model: Any, name: str, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A parameter with its elements in the order in which its matrices are read: output channels first.

    For the direction of a weight under weight norm, the weight that torch computes from it in float64, in `dtype`.
    """
    module = model.get_submodule(name.rpartition(".")[0])
    if isinstance(module, torch.nn.utils.parametrize.ParametrizationList):
        norms, direction = (module.get_parameter(name).detach().double() for name in ("original0", "original1"))
        weight_norm: Any = module[0]
        name, value = f"{name.partition('.parametrizations.')[0]}.weight", weight_norm(norms, direction).to(dtype)
        module = model.get_submodule(name.rpartition(".")[0])
    if isinstance(module, torch.nn.ConvTranspose1d | torch.nn.ConvTranspose2d | torch.nn.ConvTranspose3d):
        return value.reshape(module.groups, -1, *value.shape[1:]).transpose(1, 2)
    return value


def _same_bits(read: torch.Tensor, loaded: torch.Tensor) -> bool:
    """Whether a value that is read is the loaded one. transformers widens some on loading."""
    if loaded.dtype.itemsize < read.dtype.itemsize or read.shape != loaded.shape:
        return False
    return torch.equal(read.to(loaded.dtype).view(torch.uint8), loaded.contiguous().view(torch.uint8))


def _unscored(checkpoint: Checkpoint, values: dict[str, torch.Tensor]) -> float:
    """The share of the elements of parameters of two or more dimensions that no score covers."""
    parameters = checkpoint.provenance.info.parameters
    scored = {_parameter(w, parameters) for w in checkpoint.weights}
    scored |= {parameters[name].tied_to or name for name in scored}
    matrices = {n: math.prod(p.shape) for n, p in parameters.items() if len(p.shape) > 1 and p.tied_to is None}
    total = sum(matrices.values())
    return sum(count for name, count in matrices.items() if name not in scored) / total if total else 0.0


def _remarks(checkpoint: Checkpoint, path: Path) -> Iterator[str]:
    """What is wrong with a class's layer types, and with the list of half of its layers."""
    numbered = sorted({w.layer_type for w in checkpoint.weights if w.layer_type.split(".")[0].isdigit()})
    if numbered:
        yield f"{len(numbered)} layer types begin with a number: {numbered[0]}"
    layers = [
        LayerSnr(w.name, w.layer_type, 1 + i % 7, (1.0 + i % 7,) * w.num_matrices if w.num_matrices > 1 else None)
        for i, w in enumerate(checkpoint.weights)
    ]
    result = assemble("model", checkpoint.weights, layers, checkpoint.provenance)
    half = top_percent(result, "50")
    try:
        (half if half.trained() else top_percent(result, "100")).to_yaml(path)
        problems = check_list(read_list(path), checkpoint.provenance.info).problems
    except SpectrumError as error:
        yield f"its list: {_line(error)}"
        return
    if problems:
        yield f"its list has {len(problems)} problems: {problems[0]}"
