"""Spectrum: find the layers worth training by the signal-to-noise ratio of their weights (arXiv:2406.06623)."""

from spectrum.version import __version__

# Type checkers know this name. It does not come from `typing`, because `python -m spectrum` imports this module before
# __main__ removes the working directory from the search path, where a file could have that name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from spectrum.api import (
        ScanResult,
        Selection,
        SpectrumError,
        Unfrozen,
        Verification,
        scan,
        select,
        unfreeze,
        verify,
    )

__all__ = [
    "ScanResult",
    "Selection",
    "SpectrumError",
    "Unfrozen",
    "Verification",
    "__version__",
    "scan",
    "select",
    "unfreeze",
    "verify",
]


def __getattr__(name: str) -> "Any":
    """Import the public names when they are first used: the command does not need them."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from spectrum import api

    return getattr(api, name)


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return __all__
