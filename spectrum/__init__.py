"""Spectrum: find the layers worth training by the signal-to-noise ratio of their weights (arXiv:2406.06623)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spectrum.version import __version__

if TYPE_CHECKING:
    from spectrum.api import ScanResult, Selection, SpectrumError, Unfrozen, scan, select, unfreeze

__all__ = ["ScanResult", "Selection", "SpectrumError", "Unfrozen", "__version__", "scan", "select", "unfreeze"]


def __getattr__(name: str) -> Any:
    """The interface, when it is first used: the command has no use for it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from spectrum import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
