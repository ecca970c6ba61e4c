"""Scan, select and unfreeze from Python, as in a notebook or a training script: asks nothing, prints nothing."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum.compute.batches import WeightBatch, parse_batch_size
from spectrum.errors import SpectrumError
from spectrum.layer_types import match_types
from spectrum.records import ScanResult
from spectrum.scanning import distributed, uncached
from spectrum.scanning.request import ScanCallbacks, ScanRequest, Scored, under_bar
from spectrum.scanning.scan import obtain
from spectrum.selection import selection
from spectrum.selection.selection import Selection
from spectrum.text import in_line
from spectrum.trainers.unfreeze import Unfrozen, unfreeze

if TYPE_CHECKING:
    import torch

    from spectrum.checkpoint.reader import Checkpoint

__all__ = ["ScanResult", "Selection", "SpectrumError", "Unfrozen", "scan", "select", "unfreeze"]
_logger = logging.getLogger("spectrum")


def scan(
    model: str | Path | torch.nn.Module,
    layer_types: str | Sequence[str] | None = None,
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
    Raises SpectrumError, with a line that says what to do. Of several processes that call it with a name, as under
    torchrun, one scans and those beside it use its cache; each scans by itself what is in memory, and with `rescan`.
    """
    if isinstance(model, type) or not (isinstance(model, str | Path) or hasattr(model, "named_parameters")):
        raise ValueError(f"a name, a path or a model is expected, not {model!r}")
    size = parse_batch_size(str(batch_size))
    wanted = [layer_types] if isinstance(layer_types, str) else layer_types or None
    _tqdm()  # first, since what follows imports it too, and lets its advice through
    attendant = ScanCallbacks(
        note=lambda message: _logger.info("%s", in_line(message)),
        warn=_warn,
        ask=partial(_answers, size),
        progress=_with_bar if show_progress else _bare,
    )
    with distributed.single_process():
        if not isinstance(model, str | Path):
            return uncached.of_model(model, wanted or ["all"], size, device, attendant)
        request = ScanRequest(
            model=str(model).rstrip("/") or "/",
            results_dir=Path(results_dir),
            revision=revision,
            model_class=model_class,
            trust_remote_code=trust_remote_code,
            layer_types=wanted,
            device=device,
            rescan=rescan,
            also_written=(),
        )
        return obtain(request, attendant).result


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
    if not isinstance(result, ScanResult):
        raise ValueError(f"what scan() returns is expected, not {result!r}")
    if top_params is not None:
        if top_percent is not None:
            raise ValueError("give top_percent or top_params, not both")
        return selection.top_params(result, _typed(top_params), embeddings=embeddings)
    chosen = selection.top_percent(result, _typed(50 if top_percent is None else top_percent), embeddings=embeddings)
    if not any(kind.count for kind in chosen.types):
        _warn(f"{chosen.percent} percent of no layer type is a whole layer")
    return chosen


def _typed(percent: float | str) -> str:
    """A percentage as one types it, which floats do not always show themselves."""
    if isinstance(percent, str):
        return percent
    try:
        exact = f"{Decimal(str(percent)):f}"
    except InvalidOperation:
        return str(percent)  # which is refused
    if len(exact) <= selection.LONGEST_PERCENT or not isinstance(percent, float):
        return exact
    return f"{percent:.17f}".rstrip("0")


def _warn(message: str) -> None:
    frame, depth = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(in_line(message), UserWarning, stacklevel=depth)  # where the caller's code is


def _answers(batch_size: int | None, request: ScanRequest, checkpoint: Checkpoint) -> tuple[int | None, list[str]]:
    return batch_size, match_types(request.layer_types or ["all"], checkpoint.provenance.info.layer_types)


def _bare(scored: Scored, batches: Sequence[WeightBatch]) -> Scored:
    return scored


def _with_bar(scored: Scored, batches: Sequence[WeightBatch]) -> Scored:
    def bar(**arguments: Any) -> Any:
        try:
            return _tqdm()(**arguments)
        except ImportError:  # in a notebook without ipywidgets
            from tqdm import tqdm

            return tqdm(**arguments)

    return under_bar(scored, batches, bar)


def _tqdm() -> Any:
    """The bar that fits where this runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the notebook's is new, or ipywidgets not installed
        from tqdm.auto import tqdm
    return tqdm
