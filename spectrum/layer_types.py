"""How module paths group into layer types, and what a path may look like. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from spectrum.errors import LayerTypeError

# What a module or parameter may be called. Names become lines of YAML, patterns, and text on a terminal: anything that
# one of these could take differently is refused. So is what is longer than any name, and would widen every table.
MODULE_PATH = re.compile(r"\w[\w.\-/]{0,299}", re.ASCII)

# Parts of a path that FSDP, activation checkpointing and torch.compile add around a module.
WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")


def layer_types(paths: Iterable[str]) -> dict[str, str]:
    """Layer type of each module path of a model.

    A type is what follows the path's first numeric component: `model.layers.7.mlp.down_proj` -> `mlp.down_proj`.
    Where several stacks of layers share such a suffix they are towers, ranked apart: the types of each carry the
    path up to the stack (`model.visual.blocks.attn.proj`). A path with no number is its own type, and one that ends
    in its first number (`heads.0`) is of the type of the stack (`heads`).
    """
    split = {path: _stack_and_suffix(path) for path in paths}
    stacks: dict[str, set[str]] = {}
    for stack, suffix in split.values():
        if stack and suffix:
            stacks.setdefault(suffix, set()).add(stack)
    towers = {stack for sharing in stacks.values() if len(sharing) > 1 for stack in sharing}
    return {
        path: f"{stack}.{suffix}" if stack in towers and suffix else suffix or stack or path
        for path, (stack, suffix) in split.items()
    }


def _stack_and_suffix(path: str) -> tuple[str, str]:
    """A path's parts before and after its first number; it is all suffix where it has none."""
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[:i]), ".".join(parts[i + 1 :])
    return "", path


def display_order(layer_types: Iterable[str]) -> list[str]:
    """Distinct layer types by first dotted component, then alphabetically, as the reference shows them."""
    return sorted(set(layer_types), key=lambda name: (name.split(".")[0], name))


def match_types(patterns: Sequence[str], layer_types: Sequence[str]) -> list[str]:
    """The layer types that some pattern names, in the order of `layer_types`.

    A pattern is an exact type, a shell pattern, or `all`. Raises LayerTypeError for one that matches nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {t for t in layer_types if pattern in ("all", t) or fnmatchcase(t, pattern)}
        if not matched:
            raise LayerTypeError(f"no layer type matches {pattern!r}; this model has: {', '.join(layer_types)}")
        chosen |= matched
    return [t for t in layer_types if t in chosen]
