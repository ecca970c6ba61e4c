"""Scores and spectra that are not cached: of a model in memory, of one layer."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spectrum.errors import CheckpointError, DeviceError, LayerTypeError
from spectrum.layer_types import match_types
from spectrum.records import LayerWeight, MatrixScore, ScanResult
from spectrum.scanning.assemble import assemble, layer_scores
from spectrum.scanning.job import open_requested
from spectrum.scanning.journal import Matrix
from spectrum.scanning.request import ScanCallbacks, ScanRequest
from spectrum.scanning.scan import _check_any, _tell_left_out
from spectrum.text import plural

if TYPE_CHECKING:
    import numpy as np
    import torch


def singular_values(request: ScanRequest, layer: str, index: int | None) -> tuple[LayerWeight, int, np.ndarray]:
    """A layer, which of its matrices, and the singular values of that, ascending.

    index: of a stack's matrices; None for the first. Raises SpectrumError where there is none, or it is not finite.
    """
    from spectrum.compute.devices import devices_for, problem_of, warm_up
    from spectrum.compute.snr import singular_values

    checkpoint = open_requested(request)
    weights = {weight.name: weight for weight in checkpoint.weights}
    if layer not in weights:
        close = difflib.get_close_matches(layer, weights, 1)
        raise LayerTypeError(f"{request.model} has no layer {layer!r}{f'; the nearest is {close[0]}' if close else ''}")
    weight, number = weights[layer], index or 0
    if number >= weight.count:
        raise LayerTypeError(
            f"{layer} has {plural(weight.count, 'matrix', 'matrices')}, so there is no {layer}[{number}]"
        )
    device = devices_for(request.device, _unheard, None)[0]
    warm_up([device])
    try:
        values = singular_values(checkpoint.read(weight, number).to(device)[None])[0].cpu().numpy()
    except (MemoryError, RuntimeError) as error:
        problem = problem_of(error)
        if problem is None:
            raise
        elsewhere = "" if device.type == "cpu" else "; --device cpu may do it"
        raise DeviceError(f"{device} {problem} {layer}, {list(weight.matrix)}{elsewhere}") from error
    if not all(map(math.isfinite, values)):
        raise CheckpointError(f"{layer} holds NaN or infinity, so it has no singular values")
    return weight, number, values


def of_model(
    model: torch.nn.Module, layer_types: Sequence[str], batch_size: int | None, device: str, attendant: ScanCallbacks
) -> ScanResult:
    """The scan of a model that is in memory, by default where it is. Raises SpectrumError where it cannot be had."""
    import torch
    from accelerate.utils import extract_model_from_parallel
    from torch.distributed.fsdp import FullyShardedDataParallel

    from spectrum.checkpoint.reader import of_model
    from spectrum.compute.batches import plan
    from spectrum.compute.devices import batch_budget, devices_for
    from spectrum.compute.executor import score

    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise CheckpointError("the model is sharded by FSDP; scan it before it is, or by its name or path")
    unwrapped = extract_model_from_parallel(model, keep_torch_compile=False)
    unwrapped = getattr(unwrapped, "_orig_mod", unwrapped)  # of torch.compile
    name = str(getattr(unwrapped, "name_or_path", "") or type(unwrapped).__name__)
    checkpoint = of_model(unwrapped, name)
    types = match_types(layer_types, checkpoint.provenance.info.layer_types)
    weights = [weight for weight in checkpoint.weights if weight.layer_type in types]
    place = next(unwrapped.parameters()).device
    devices = [place] if device == "auto" and place.type == "cuda" else devices_for(device, attendant.warn, None)
    for gpu in {parameter.device for parameter in unwrapped.parameters() if parameter.is_cuda}:
        torch.cuda.synchronize(gpu)  # the lanes' streams do not wait for what is queued there
    batches = plan(weights, batch_size, batch_budget(devices), gpu=devices[0].type == "cuda")
    scores: dict[Matrix, MatrixScore] = {}
    for batch, values in attendant.progress(score(batches, checkpoint.read, devices, attendant.warn), batches):
        scores |= zip([(weight.parameter, i) for weight, i in batch.members], values, strict=True)
    result = assemble(name, weights, layer_scores(weights, scores), checkpoint.provenance)
    _check_any(result)
    _tell_left_out(result, attendant)
    return result


def _unheard(message: str) -> None:
    """For a picture it does not matter which device makes it."""
