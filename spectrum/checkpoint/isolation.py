"""transformers, kept quiet and offline."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import transformers
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from transformers import dynamic_module_utils

from spectrum.errors import first_line

_NOWHERE = os.path.join(os.devnull, "nowhere")  # no directory can be there


@contextmanager
def nothing_fetched() -> Iterator[None]:
    """Have transformers do without the Hub, and without what other programs have in its cache.

    A config can name other repositories: backbones whose configs or weights, kernels whose code is to be taken. The
    user has named one model alone.
    """
    kernels: Any = getattr(transformers.integrations, "hub_kernels", None)
    changed: list[tuple[Any, str, object]] = [
        (constants, "HF_HUB_OFFLINE", True),
        (constants, "HF_HUB_CACHE", _NOWHERE),
        (dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0),  # seconds to ask on the terminal; 0: refuse
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


def why(error: Exception) -> str:
    """What went wrong in transformers, in a line."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OfflineModeIsEnabled | LocalEntryNotFoundError):
            return (
                "it names another repository, of which nothing is fetched; what it takes from there must be in "
                "config.json itself (a backbone's config as backbone_config)"
            )
        cause = cause.__cause__ or cause.__context__
    return first_line(error)


def native_class(architectures: Sequence[str] | None) -> Any:
    """transformers' own model class of the first name in a config's `architectures`, None where there is none."""
    known = of_models(architectures[0]) if architectures else None
    return known if isinstance(known, type) and issubclass(known, transformers.PreTrainedModel) else None


def of_models(name: str) -> Any:
    """What has a name among transformers' models; None for all others, some of which do more when they are imported."""
    if not transformers._class_to_module.get(name, "").startswith("models."):  # type: ignore[attr-defined]
        return None
    with quiet(), nothing_fetched():
        return getattr(transformers, name, None)


@contextmanager
def quiet() -> Iterator[None]:
    """transformers' own advice is for those who load the model; here it would stand between our own lines."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(level)
