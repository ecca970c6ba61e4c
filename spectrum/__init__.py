"""Spectrum: find the layers worth training by the signal-to-noise ratio of their weights (arXiv:2406.06623)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spectrum.api import ScanResult, Selection, SpectrumError, Unfrozen, scan, select, unfreeze

__version__ = "0.1.0"

__all__ = ["ScanResult", "Selection", "SpectrumError", "Unfrozen", "scan", "select", "unfreeze"]


def __getattr__(name: str) -> Any:
    """The interface, when it is first used: the command's own modules import this one for its version alone."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from spectrum import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
