"""Layer types: the groups in which layers are ranked. They follow from module paths, and are chosen by patterns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from spectrum.errors import LayerTypeError

# The names that a module or a parameter may have. Names are written to YAML, used in patterns and shown on terminals:
# characters that one of these might interpret are refused. Longer names are refused because they widen every table.
MODULE_PATH = re.compile(r"\w[\w.\-/]{0,299}", re.ASCII)

# Parts of a path that FSDP, activation checkpointing and torch.compile add around a module.
WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")


def layer_types(paths: Iterable[str]) -> dict[str, str]:
    """The layer type of each module path of a model.

    A type is the part of the path after its first number: `model.layers.7.mlp.down_proj` -> `mlp.down_proj`.
    Stacks of layers that share such a type are called towers, and are ranked separately: their types keep the path of
    the stack (`model.visual.blocks.attn.proj`). A path without a number is its own type. A path that ends in its first
    number (`heads.0`) has the stack as its type (`heads`).
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
    """Split a path at its first number. A path without a number is all suffix."""
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            return ".".join(parts[:i]), ".".join(parts[i + 1 :])
    return "", path


def display_order(layer_types: Iterable[str]) -> list[str]:
    """The distinct layer types, sorted by their first dotted component, then by name, as the reference does."""
    return sorted(set(layer_types), key=lambda name: (name.split(".")[0], name))


def match_types(patterns: Sequence[str], layer_types: Sequence[str]) -> list[str]:
    """The layer types that at least one pattern matches, in the order of `layer_types`.

    A pattern is an exact type, a shell pattern, or `all`. Raises LayerTypeError if a pattern matches nothing.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        matched = {t for t in layer_types if pattern in ("all", t) or fnmatchcase(t, pattern)}
        if not matched:
            raise LayerTypeError(f"no layer type matches {pattern!r}; this model has: {', '.join(layer_types)}")
        chosen |= matched
    return [t for t in layer_types if t in chosen]
