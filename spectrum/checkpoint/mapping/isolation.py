"""Calls into transformers that keep it silent, off the Hub and away from foreign code."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import dynamic_module_utils

from spectrum.errors import first_line

_NOWHERE = os.path.join(os.devnull, "nowhere")  # no directory can have this path


@contextmanager
def nothing_fetched() -> Iterator[None]:
    """Keep transformers from asking the Hub, and from using what other programs have put into its cache.

    A config can name other repositories: backbones whose configs or weights it uses, kernels whose code it runs. The
    user has named only one model.
    """
    kernels: Any = getattr(transformers.integrations, "hub_kernels", None)
    changed: list[tuple[Any, str, object]] = [
        (constants, "HF_HUB_OFFLINE", True),
        (constants, "HF_HUB_CACHE", _NOWHERE),
        (dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0),  # seconds to wait for consent on the terminal; 0 refuses
    ]
    if hasattr(kernels, "_kernels_enabled"):
        changed.append((kernels, "_kernels_enabled", False))
    before = [getattr(module, name) for module, name, _ in changed]
    for module, name, value in changed:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(changed, before, strict=True):
            setattr(module, name, value)


def failure_reason(error: Exception) -> str:
    """One line that says what went wrong in transformers."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OfflineModeIsEnabled | LocalEntryNotFoundError):
            return (
                "it names another repository, from which nothing is downloaded; put what it takes from there into "
                "config.json itself (a backbone's config as backbone_config)"
            )
        cause = cause.__cause__ or cause.__context__
    return first_line(error)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers. Its advice is about training and running models, and would only clutter our output.

    Its progress bars are off, too. Those of huggingface_hub stay as the user's settings have them: transformers'
    `disable_progress_bar` would turn off both.
    """
    level, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging._tqdm_active = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging._tqdm_active = bars
