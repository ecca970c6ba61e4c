"""Scan a model in memory, or compute the spectrum of one layer. Neither result is cached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spectrum.errors import CheckpointError, DeviceError, LayerTypeError
from spectrum.layer_types import match_types
from spectrum.records import LayerSpectrum, ScanResult
from spectrum.scanning.assemble import (
    assemble,
    layer_scores,
    refuse_without_scores,
    score_batches,
    warn_of_left_out,
)
from spectrum.scanning.request import ScanCallbacks, ScanRequest, open_checkpoint_of
from spectrum.scanning.reuse import no_such_layer
from spectrum.text import plural

if TYPE_CHECKING:
    import torch


def layer_spectrum(request: ScanRequest, layer: str, index: int | None, callbacks: ScanCallbacks) -> LayerSpectrum:
    """The singular values of one matrix of a layer, and its score.

    Raises SpectrumError if the model does not have the layer, if the layer does not have the matrix, or if the matrix
    holds NaN or infinity.

    Args:
        request: the model, and the device to compute on.
        layer: the layer's name.
        index: which matrix of a stack; None for the first.
        callbacks: for messages about the Hub.
    """
    from spectrum.compute.devices import devices_for, problem_of, warm_up
    from spectrum.compute.snr import singular_values

    checkpoint = open_checkpoint_of(request, callbacks.warn)
    weights = {weight.name: weight for weight in checkpoint.weights}
    if layer not in weights:
        raise no_such_layer(request.model, layer, weights)
    weight, number = weights[layer], index or 0
    if number >= weight.num_matrices:
        raise LayerTypeError(
            f"{layer} has {plural(weight.num_matrices, 'matrix', 'matrices')}, so there is no {layer}[{number}]"
        )
    if notice := checkpoint.fetch_notice([(weight, number)]):
        callbacks.info(notice)
    device = devices_for(request.device, _ignore_warning, None)[0]
    warm_up([device])
    try:
        values = singular_values(checkpoint.read(weight, number).to(device)[None])[0].cpu()
    except (MemoryError, RuntimeError) as error:
        problem = problem_of(error)
        if problem is None:
            raise
        elsewhere = "" if device.type == "cpu" else "; --device cpu may do it"
        raise DeviceError(f"{device} {problem} {layer}, {list(weight.matrix_shape)}{elsewhere}") from error
    if not values.isfinite().all():
        raise CheckpointError(f"{layer} holds NaN or infinity, so it has no singular values")
    return describe_spectrum(f"{layer}[{number}]" if weight.num_matrices > 1 else layer, weight.matrix_shape, values)


def describe_spectrum(name: str, shape: tuple[int, int], values: torch.Tensor) -> LayerSpectrum:
    """The spectrum of a matrix of this shape. values: its singular values, (k,) ascending float64, finite."""
    from spectrum.compute.snr import NORMAL_IQR, aspect_ratio, bulk_edge, noise_scale, signal_to_noise_ratio

    beta = aspect_ratio(shape)
    sigma = noise_scale(values[None])
    edge = bulk_edge(sigma, beta)
    return LayerSpectrum(
        name=name,
        shape=shape,
        values=tuple(values.tolist()),
        aspect_ratio=beta,
        interquartile_range=NORMAL_IQR * sigma.item(),
        sigma=sigma.item(),
        edge=edge.item(),
        snr=signal_to_noise_ratio(values[None], edge).item(),
    )


def scan_model(
    model: torch.nn.Module, layer_types: Sequence[str], batch_size: int | None, device: str, callbacks: ScanCallbacks
) -> ScanResult:
    """The scan of a model that is in memory.

    Raises SpectrumError if the model is sharded or quantized, or if a layer type is unknown.

    Args:
        model: the model, perhaps wrapped by DDP or torch.compile.
        layer_types: exact types and shell patterns.
        batch_size: matrices in a kernel call; None to fit a memory budget.
        device: `auto` for the GPU that the model is on; otherwise as for the command.
        callbacks: how the scan reports. `choose` is not called.
    """
    from spectrum.checkpoint.reader import of_model
    from spectrum.compute.batches import plan
    from spectrum.compute.devices import batch_budget
    from spectrum.compute.executor import score

    unwrapped = _unwrapped(model)
    name = str(getattr(unwrapped, "name_or_path", "") or type(unwrapped).__name__)
    checkpoint = of_model(unwrapped, name)
    types = match_types(layer_types, checkpoint.provenance.info.layers_by_type())
    weights = [weight for weight in checkpoint.weights if weight.layer_type in types]
    devices = _devices(unwrapped, device, callbacks)
    _finish_queued_work(unwrapped)
    batches = plan(weights, batch_size, batch_budget(devices))
    with callbacks.progress(batches) as progress:
        progress.start()
        stream = score(batches, checkpoint.read, devices, callbacks.warn)
        scores = dict(score_batches(stream, lambda batch, _: progress.advance(batch)))
    result = assemble(name, weights, layer_scores(weights, scores), checkpoint.provenance)
    refuse_without_scores(result)
    warn_of_left_out(result, callbacks.warn)
    return result


def _unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside the wrappers of DDP and torch.compile. Raises CheckpointError if FSDP shards it."""
    from accelerate.utils import extract_model_from_parallel
    from torch.distributed.fsdp import FullyShardedDataParallel

    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise CheckpointError("the model is sharded by FSDP; scan it before it is, or by its name or path")
    unwrapped: torch.nn.Module = extract_model_from_parallel(model, keep_torch_compile=False)
    return getattr(unwrapped, "_orig_mod", unwrapped)  # torch.compile's wrapper


def _devices(model: torch.nn.Module, device: str, callbacks: ScanCallbacks) -> list[torch.device]:
    """The devices to scan a model on. A model on a GPU is scanned there, unless another device is named."""
    from spectrum.compute.devices import devices_for

    own_device = next(model.parameters()).device
    if device == "auto" and own_device.type == "cuda":
        return [own_device]
    return devices_for(device, callbacks.warn, None)


def _finish_queued_work(model: torch.nn.Module) -> None:
    """Wait until the GPUs of a model have written its weights: the streams of a scan do not wait for other streams."""
    import torch

    for gpu in {parameter.device for parameter in model.parameters() if parameter.is_cuda}:
        torch.cuda.synchronize(gpu)


def _ignore_warning(message: str) -> None:
    """Drop a warning about the choice of the device: it does not matter for the spectrum of one layer."""
