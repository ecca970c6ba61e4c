"""Layer types: the groups in which layers are ranked. They follow from module paths, and are chosen by patterns."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from spectrum.errors import LayerTypeError
from spectrum.text import listed, nearest

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
        matched = _matched(pattern, layer_types)
        if not matched:
            raise LayerTypeError(_no_match(patterns, layer_types))
        chosen |= matched
    return [t for t in layer_types if t in chosen]


def split_patterns(patterns: Iterable[str]) -> list[str]:
    """The patterns, where one argument may hold several with commas between them. No layer type has a comma.

    Braces and brackets keep theirs: they belong to the shell, or to one pattern.
    """
    split: list[str] = []
    for pattern in patterns:
        if "," not in pattern or re.search(r"[\[{]", pattern):
            split.append(pattern)
        else:
            split += [part.strip() for part in pattern.split(",") if part.strip()]
    return split


def _matched(pattern: str, layer_types: Iterable[str]) -> set[str]:
    return {t for t in layer_types if pattern in ("all", t) or fnmatchcase(t, pattern)}


def _no_match(patterns: Sequence[str], layer_types: Sequence[str]) -> str:
    """The message about patterns of which at least one matches nothing. It proposes what all of them may mean."""
    wrong = list(dict.fromkeys(pattern for pattern in patterns if not _matched(pattern, layer_types)))
    # The shell replaces a pattern without quotes by the files that it matches.
    files = [pattern for pattern in wrong if os.path.lexists(pattern)]
    meant = [_meant(pattern, layer_types, is_file=pattern in files) for pattern in wrong]
    hint = "; this"
    if all(meant):
        hint = f"; did you mean {' '.join(dict.fromkeys(filter(None, meant)))}? This"
    elif files:
        hint = ". Put a pattern in quotes, or the shell replaces it by the names of files. This"
    return f"no layer type matches {listed(list(map(repr, wrong)))}{hint} model has: {', '.join(layer_types)}"


def _meant(pattern: str, layer_types: Sequence[str], *, is_file: bool) -> str | None:
    """The pattern, as a shell takes it, that one which matches nothing most likely means."""
    stem = pattern.strip(".*")
    wider = [f"{stem}.*", f"*.{stem}", pattern.replace(".*", "*"), f"*{stem}*"] if stem else []
    if is_file:
        wider.append(f"{stem.partition('.')[0]}.*")
    for candidate in wider:
        matched = _matched(candidate, layer_types)
        if len(matched) == 1:
            return matched.pop()
        if matched:
            return f"'{candidate}'"
    return nearest(pattern, layer_types)
