"""Spectrum: find the layers worth training by the signal-to-noise ratio of their weights (arXiv:2406.06623)."""

from spectrum.version import __version__

# Not from `typing`: `python -m spectrum` comes here before __main__ can see to it that no file of that name in the
# working directory is imported in its place. Type checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from spectrum.api import ScanResult, Selection, SpectrumError, Unfrozen, scan, select, unfreeze

__all__ = ["ScanResult", "Selection", "SpectrumError", "Unfrozen", "__version__", "scan", "select", "unfreeze"]


def __getattr__(name: str) -> "Any":
    """The interface, when it is first used: the command has no use for it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from spectrum import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return __all__
