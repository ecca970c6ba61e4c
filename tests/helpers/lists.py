"""Lists that no reader should take."""

from __future__ import annotations


def of_aliases(levels: int) -> str:
    """Each level is nine times the one before: a small file, and with some more levels more than any memory."""
    lists = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, levels)]
    return f"a0: &a0 [lol]\n{''.join(lists)}"
