"""Scan, select, unfreeze and verify from Python, as in a notebook or a training script. Nothing prompts or prints."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectrum.checkpoint.remote.model_names import ModelName, parse_model_name
from spectrum.compute.batches import parse_batch_size
from spectrum.display import Drawing, draw_with
from spectrum.errors import SpectrumError, short_traceback
from spectrum.layer_types import split_patterns
from spectrum.plots import heatmap
from spectrum.plots.page.draw import draw
from spectrum.plots.small_map import small_map
from spectrum.records import ScanResult
from spectrum.scanning import distributed, uncached
from spectrum.scanning import scan as scanning
from spectrum.scanning.request import ProgressBar, ScanCallbacks, ScanRequest
from spectrum.scanning.store import DEFAULT_RESULTS_DIR
from spectrum.selection import selection
from spectrum.selection.order import HIGHEST
from spectrum.selection.selection import Selection
from spectrum.text import in_line
from spectrum.trainers.unfreeze import Unfrozen, unfreeze
from spectrum.verification.verification import Verification

if TYPE_CHECKING:
    import torch

__all__ = [
    "ScanResult",
    "Selection",
    "SpectrumError",
    "Unfrozen",
    "Verification",
    "scan",
    "select",
    "unfreeze",
    "verify",
]

_logger = logging.getLogger("spectrum")
draw_with(Drawing(heatmap.picture, draw, small_map))


@short_traceback
def scan(
    model: str | Path | torch.nn.Module,
    layer_types: str | Sequence[str] | None = None,
    *,
    results_dir: str | Path = DEFAULT_RESULTS_DIR,
    batch_size: int | str = "auto",
    device: str = "auto",
    rescan: bool = False,
    revision: str | None = None,
    model_class: str | None = None,
    trust_remote_code: bool = False,
    download: bool = False,
    show_progress: bool = True,
) -> ScanResult:
    """The SNR of every layer of a model, from the cached scan if there is one.

    Whatever may make the result unexpected is a UserWarning. Informational lines go to the logger `spectrum`. If
    several processes scan a model by name, as under torchrun, one of them scans, and the others wait and use its cache.
    With `rescan`, or with a model in memory, each process scans by itself.

    Args:
        model: a local directory, a repository id or the address of its page, as for the command, which shares the
            cache; or a model in memory, which is scanned as it is now and not cached.
        layer_types: exact types or shell patterns, also several in one string with commas between them; None for the
            types in the cached scan, or for all types if there is none.
        results_dir: where scans are cached.
        batch_size: how many same-shape matrices are decomposed together: a number, or `auto`.
        device: `auto` (every visible GPU, else the CPU), `cpu`, `cuda`, `cuda:1`, ...
        rescan: whether to ignore a cached scan.
        revision: a branch, tag or commit of a repository on the Hub; None for the one in the address, else its default.
        model_class: the transformers class that names the parameters; None for the checkpoint's own.
        trust_remote_code: whether code from the model's repository may run.
        download: whether to download the weights of a repository into the Hub's cache first, to keep them. Otherwise
            only what is scanned is read.
        show_progress: whether to show a progress bar.

    Raises:
        SpectrumError: if the model cannot be scanned. The message is one line that says what to do. What led to it is
            shown only under SPECTRUM_DEBUG=1.
        ValueError: if an argument is not of the expected form.
    """
    _check_model(model)
    size = parse_batch_size(str(batch_size))
    patterns = split_patterns([layer_types] if isinstance(layer_types, str) else layer_types or ()) or None
    if layer_types and patterns is None:
        raise ValueError(f"a layer type is expected, or a pattern, or all, not {layer_types!r}")
    _tqdm()  # first: the imports below import tqdm too, and would show its warnings
    callbacks = ScanCallbacks(
        info=lambda message: _logger.info("%s", in_line(message)),
        warn=_warn,
        choose=lambda layer_counts: (size, [layer_type for layer_type, _ in layer_counts]),
        progress=partial(ProgressBar, tqdm=partial(_bar, disable=not show_progress)),
    )
    with distributed.single_process():
        if not isinstance(model, str | Path):
            return uncached.scan_model(model, patterns or ["all"], size, device, callbacks)
        named = parse_model_name(str(model))
        request = ScanRequest(
            model=named.name,
            results_dir=Path(results_dir).expanduser(),
            revision=revision or named.revision,
            model_class=model_class,
            trust_remote_code=trust_remote_code,
            layer_types=patterns,
            device=device,
            rescan=rescan,
            download=download,
            also_written=(),
        )
        return scanning.scan(request, callbacks).result


@short_traceback
def select(
    result: ScanResult,
    top_percent: float | str | None = None,
    *,
    top_params: float | str | None = None,
    embeddings: bool = True,
    order: str = HIGHEST,
) -> Selection:
    """The layers to train: the top percent of each layer type.

    Args:
        result: what `scan` returned.
        top_percent: the percentage of each layer type, in (0, 100]; 50 if neither percentage is given.
        top_params: instead of `top_percent`: make the largest selection whose parameters are at most this percentage
            of all the model's parameters.
        embeddings: whether the input embedding and the output head always train. Otherwise they never do.
        order: which layers of a type are selected first: those of the `highest` score; or, as controls for an
            experiment, those of the `lowest`, or by lot, `random:SEED`, where SEED is a whole number.

    Raises:
        ValueError: if a percentage is outside (0, 100], if both percentages are given, or if an order is none.
        SelectionError: if even the smallest selection has more parameters than `top_params` allows.
    """
    if not isinstance(result, ScanResult):
        raise ValueError(f"what scan() returns is expected, not {result!r}")
    if top_params is not None:
        if top_percent is not None:
            raise ValueError("give top_percent or top_params, not both")
        return selection.top_params(result, _decimal(top_params), embeddings=embeddings, order=order)
    percent = selection.DEFAULT_PERCENT if top_percent is None else top_percent
    selected = selection.top_percent(result, _decimal(percent), embeddings=embeddings, order=order)
    alone = "nothing but input embedding and output head trains: " if selected.embedding_parameters() else ""
    if not any(ranked.num_selected for ranked in selected.types):
        _warn(f"{alone}{selection.no_whole_layer(selected)}")
    elif selected.only_embeddings():
        _warn("nothing but input embedding and output head trains: no other layer is selected")
    return selected


@short_traceback
def verify(
    base: str | Path | torch.nn.Module,
    trained: str | Path | torch.nn.Module,
    selection: Selection | str | Path,
    *,
    revision: str | None = None,
    trained_revision: str | None = None,
    model_class: str | None = None,
    trust_remote_code: bool = False,
    show_progress: bool = True,
) -> Verification:
    """Whether training moved the selected parameters, and no others: base and trained model are compared.

    Both are read once, a few matrices at a time. `Verification.ok` says whether all is well, `problems` and `notes` say
    what is not, and `parameters` has what became of each parameter.

    Args:
        base: the model before training: a local directory, a repository id, the address of its page, or a model in
            memory.
        trained: the model after training, named in the same way. In memory, it may be wrapped by PEFT, DDP,
            torch.compile and activation checkpointing; adapters that are not merged are not compared.
        selection: what `select` returned, or the path of a list or config that `--check` reads, which is matched by the
            rule of its reader.
        revision: a branch, tag or commit of the base's repository; None for the one in the address, else its default.
        trained_revision: the same of the trained model's repository.
        model_class: the transformers class that names the parameters of the base; None for the checkpoint's own.
        trust_remote_code: whether code from the models' repositories may run.
        show_progress: whether to show a progress bar.

    Raises:
        SpectrumError: if it cannot be told: one of the models cannot be opened, the trained one is quantized, both are
            the same, they have no parameter in common, or the file is no list.
        ValueError: if an argument is not of the expected form.
    """
    from spectrum.verification.verify import verify as run

    first, second = _named(base, revision), _named(trained, trained_revision)
    if not isinstance(selection, Selection | str | Path):
        raise ValueError(f"what select() returns, or the path of a list, is expected, not {type(selection).__name__}")
    _tqdm()  # first, as in `scan`
    return run(
        first,
        second,
        selection if isinstance(selection, Selection) else Path(selection).expanduser(),
        model_class=model_class,
        trust_remote_code=trust_remote_code,
        progress=lambda size: _bar(total=size, unit="B", unit_scale=True, disable=not show_progress),
        warn=_warn,
    )


def _named(model: str | Path | torch.nn.Module, revision: str | None) -> ModelName | torch.nn.Module:
    """What a name stands for, with a revision if one is given; a model in memory as it is."""
    _check_model(model)
    if not isinstance(model, str | Path):
        return model
    named = parse_model_name(str(model))
    return ModelName(named.name, revision or named.revision)


def _check_model(model: object) -> None:
    if isinstance(model, type) or not (isinstance(model, str | Path) or hasattr(model, "named_parameters")):
        raise ValueError(f"a name, a path or a model is expected, not {model!r}")


def _decimal(percent: float | str) -> str:
    """A percentage as a user would type it. The `str` of a float may have an exponent, or be too long."""
    if isinstance(percent, str):
        return percent
    try:
        exact = f"{Decimal(str(percent)):f}"
    except InvalidOperation:
        return str(percent)  # the selection refuses it
    if len(exact) <= selection.MAX_PERCENT_LENGTH or not isinstance(percent, float):
        return exact
    return f"{percent:.17f}".rstrip("0")


def _warn(message: str) -> None:
    """Warn of the line that called this package from outside."""
    frame, depth = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == __package__:
        frame, depth = frame.f_back, depth + 1
    warnings.warn(in_line(message), UserWarning, stacklevel=depth)


def _bar(**arguments: Any) -> Any:
    """A progress bar for a terminal or for a notebook, whichever this is."""
    try:
        return _tqdm()(**arguments)
    except ImportError:  # in a notebook without ipywidgets
        from tqdm import tqdm

        return tqdm(**arguments)


def _tqdm() -> Any:
    """The class of tqdm's bar for a terminal or for a notebook, whichever this is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that the notebook's bar is new, or that ipywidgets is missing
        from tqdm.auto import tqdm
    return tqdm
