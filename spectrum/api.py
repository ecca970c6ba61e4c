"""Scan, select and unfreeze from Python, as in a notebook or a training script: asks nothing, prints nothing."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum import processes, progress, scans, selection
from spectrum.batching import parse_batch_size
from spectrum.errors import SpectrumError
from spectrum.freezing import Unfrozen, unfreeze
from spectrum.layers import ScanResult, WeightBatch, group_by_type, match_types
from spectrum.selection import Selection

if TYPE_CHECKING:
    import torch

    from spectrum.checkpoint import Checkpoint

__all__ = ["ScanResult", "Selection", "SpectrumError", "Unfrozen", "scan", "select", "unfreeze"]

_logger = logging.getLogger("spectrum")


def scan(
    model: str | Path | torch.nn.Module,
    layer_types: Sequence[str] | None = None,
    *,
    results_dir: str | Path = "model_snr_results",
    batch_size: int | str = "auto",
    device: str = "auto",
    rescan: bool = False,
    revision: str | None = None,
    model_class: str | None = None,
    trust_remote_code: bool = False,
    show_progress: bool = True,
) -> ScanResult:
    """SNR of every layer of a model, from the cached scan where there is one.

    model: a local directory or a repository's id, as for the command, with which the cache in `results_dir` is shared;
    or a model in memory, which is scanned as it is now, and not cached. layer_types: types or shell patterns, None for
    all, or all that the cache has. The other arguments are the command's options.
    What may make the result other than expected is a UserWarning; what is merely told goes to the logger `spectrum`.
    Raises SpectrumError, with a line that says what to do. Where several processes call it, as under torchrun, one
    scans and those beside it use its cache.
    """
    size = parse_batch_size(str(batch_size))
    attendant = scans.Attendant(
        note=_logger.info, warn=_warn, ask=partial(_answers, size), progress=_with_bar if show_progress else _bare
    )
    with processes.alone():
        if not isinstance(model, str | Path):
            return scans.of_model(model, layer_types or ["all"], size, device, attendant)
        request = scans.Request(
            model=str(model),
            results_dir=Path(results_dir),
            revision=revision,
            model_class=model_class,
            trust_remote_code=trust_remote_code,
            layer_types=layer_types,
            device=device,
            rescan=rescan,
            also_written=(),
        )
        obtained = scans.obtain(request, attendant)
    wanted, result = obtained.wanted, obtained.result
    if wanted is None:
        return result
    groups = group_by_type(result.layers)
    kept = tuple(name for name in result.scanned if name in wanted)
    return replace(result, layers=tuple(layer for name in kept for layer in groups.get(name, ())), scanned=kept)


def select(
    result: ScanResult,
    top_percent: float | str | None = None,
    *,
    top_params: float | str | None = None,
    embeddings: bool = True,
) -> Selection:
    """The layers to train: the top percent of each layer type, 50 where nothing is said.

    top_params: in its place, the largest selection whose parameters are not more than this percentage of all the
    model's. embeddings: whether input embedding and output head train in any case; else they never do.
    Raises ValueError for a percentage outside (0, 100], and where both are given; SelectionError where nothing is
    small enough.
    """
    if top_params is not None:
        if top_percent is not None:
            raise ValueError("give top_percent or top_params, not both")
        return selection.top_params(result, str(top_params), embeddings=embeddings)
    return selection.top_percent(result, str(50 if top_percent is None else top_percent), embeddings=embeddings)


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=2)


def _answers(batch_size: int | None, request: scans.Request, checkpoint: Checkpoint) -> tuple[int | None, list[str]]:
    return batch_size, match_types(request.layer_types or ["all"], checkpoint.provenance.layer_types)


def _bare(scored: scans.Scored, batches: Sequence[WeightBatch]) -> scans.Scored:
    return scored


def _with_bar(scored: scans.Scored, batches: Sequence[WeightBatch]) -> scans.Scored:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the notebook's bar is new, or ipywidgets not installed
        from tqdm.auto import tqdm

    def bar(**arguments: Any) -> Any:
        try:
            return tqdm(**arguments)
        except ImportError:  # in a notebook without ipywidgets
            from tqdm import tqdm as plain

            return plain(**arguments)

    return progress.shown(scored, batches, bar)
