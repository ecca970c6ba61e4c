"""The content of a list's file, and what every function that writes one needs."""

from __future__ import annotations

from dataclasses import dataclass

from spectrum.errors import SelectionError
from spectrum.records import ModelInfo
from spectrum.selection.selection import Selection


@dataclass(frozen=True, slots=True)
class Export:
    """The content of a file, and notes for the user."""

    text: str
    notes: tuple[str, ...] = ()


def model_info(selection: Selection, what: str) -> ModelInfo:
    """What the scanned model consists of. Raises SelectionError if the scan does not say so. what: that is needed."""
    result = selection.result
    if result.info is None:
        raise SelectionError(f"the cached scan of {result.model} does not say {what}; scan again with --rescan")
    return result.info


def yaml_text(content: object) -> str:
    """Content as YAML, in its own order, without broken lines."""
    import yaml

    text: str = yaml.safe_dump(content, sort_keys=False, width=1 << 20)
    return text
