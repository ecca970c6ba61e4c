"""What a mode hands to what runs it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModeOutcome:
    """The result of a mode.

    Args:
        text: the output for stdout, safe to print on a terminal.
        problem: an error that makes the command fail after the text is printed; None for success.
    """

    text: str
    problem: str | None = None
