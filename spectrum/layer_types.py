"""Layer types: the groups in which layers are ranked. They follow from module paths, and are chosen by patterns."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from spectrum.errors import LayerTypeError
from spectrum.text import listed, nearest

# The names that a module or a parameter may have. Names are written to YAML, used in patterns and shown on terminals:
# characters that one of these might interpret are refused. Longer names are refused because they widen every table.
MODULE_PATH = re.compile(r"\w[\w.\-/]{0,299}", re.ASCII)

# Parts of a path that are put around a module, each with what puts it there.
WRAPPERS: Mapping[str, str] = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
}

# Words for a stack of layers. A number after one of them may count the blocks of a stage.
_STACK_WORDS = frozenset({"layers", "layer", "blocks", "block", "stages", "stage"})

_MAX_BEGINNING = 4  # parts of a name

_SHORT_NORM = re.compile(r"(ln|bn)_?[0-9a-z]?")  # ln_1, bn2


def unwrapped(path: str) -> str:
    """A path without the parts that wrappers have put into it."""
    return ".".join(part for part in path.split(".") if part not in WRAPPERS)


def layer_types(paths: Iterable[str]) -> dict[str, str]:
    """The layer type of each module path of a model.

    A type is the part of the path after the number that counts layers: `model.layers.7.mlp.down_proj` ->
    `mlp.down_proj`. This is the first number. In a hierarchical model it is the second: the first counts stages, which
    differ in width, and the second counts the blocks of a stage; see `_stages`.

    Stacks of layers that share such a type are called towers, and are ranked separately: their types keep the path of
    the stack (`model.visual.blocks.attn.proj`, `swin.encoder.layers.0.blocks.output.dense`). So do types that would
    begin with a number (`resampler.layers.0.to_q`). A path without a number is its own type. A path that ends in its
    first number (`heads.0`) has the stack as its type (`heads`).
    """
    parts_of = {path: path.split(".") for path in paths}
    stages = _stages(parts_of.values())
    split = {path: _stack_and_suffix(parts, stages) for path, parts in parts_of.items()}
    stacks: dict[str, set[str]] = {}
    for stack, suffix in split.values():
        if stack and suffix:
            stacks.setdefault(suffix, set()).add(stack)
    towers = {stack for sharing in stacks.values() if len(sharing) > 1 for stack in sharing}
    return {
        path: f"{stack}.{suffix}"
        if suffix and stack and (stack in towers or suffix.partition(".")[0].isdigit())
        else suffix or stack or path
        for path, (stack, suffix) in split.items()
    }


def layer_number(path: str, layer_type: str) -> str | None:
    """The number that counts layers in a path, as text; None if the path has no number.

    The type shows which number it is: `layer_types` has made the type by leaving it out.
    """
    parts = path.split(".")
    numbers = _numbers(parts)
    for i in numbers:
        if layer_type in (".".join(parts[i + 1 :]), ".".join(parts[:i] + parts[i + 1 :])):
            return parts[i]
    return parts[numbers[0]] if numbers else None  # the type is of another tool


def possible_types(path: str) -> set[str]:
    """The types that a layer may have in some model, given its path."""
    parts = path.split(".")
    after = {".".join(parts[i + 1 :]) for i in _numbers(parts)}
    return {*after, *(".".join(parts[:i] + parts[i + 1 :]) for i in _numbers(parts)), path} - {""}


def _stack_and_suffix(parts: Sequence[str], stages: Collection[tuple[str, str]]) -> tuple[str, str]:
    """Split a path at the number that counts layers. A path without a number is all suffix."""
    numbers = _numbers(parts)
    if not numbers:
        return "", ".".join(parts)
    at = numbers[1] if _stage_key(parts, numbers) in stages else numbers[0]
    return ".".join(parts[:at]), ".".join(parts[at + 1 :])


def _numbers(parts: Sequence[str]) -> list[int]:
    """The places of the parts of a path that are numbers."""
    return [i for i, part in enumerate(parts) if part.isdigit()]


def _stages(paths: Iterable[Sequence[str]]) -> set[tuple[str, str]]:
    """The stacks of stages in which a second number counts blocks, by their `_stage_key`.

    It does if a stage has two blocks that are built alike: all layers below the one number, apart from norms, are found
    below the other too. This rule leaves out the sublayers of T5's blocks, which are of different kinds. The numbers of
    a stage's blocks also run from 0 without a gap. That rule leaves out the convolutions of a `Sequential`, which has
    activations between them.
    """
    blocks: dict[tuple[str, str], dict[str, dict[str, set[str]]]] = {}  # key -> stage -> block -> suffixes
    for parts in paths:
        numbers = _numbers(parts)
        key = _stage_key(parts, numbers)
        if key is not None:
            first, second = numbers[:2]
            of_stage = blocks.setdefault(key, {}).setdefault(parts[first], {})
            of_stage.setdefault(parts[second], set()).add(".".join(parts[second + 1 :]))
    return {
        key
        for key, of_stages in blocks.items()
        if any(map(_has_blocks_alike, of_stages.values()))
        and all(of_stage.keys() == set(map(str, range(len(of_stage)))) for of_stage in of_stages.values())
    }


def _stage_key(parts: Sequence[str], numbers: Sequence[int]) -> tuple[str, str] | None:
    """The stack of stages that a path may be in: what is before its first number, and between the first two.

    None if the second number cannot count blocks: it follows the first number or a word for a stack, and it is not the
    end of the path.
    """
    if len(numbers) < 2 or numbers[1] == len(parts) - 1:
        return None
    first, second = numbers[:2]
    if second > first + 1 and parts[second - 1] not in _STACK_WORDS:
        return None
    return ".".join(parts[:first]), ".".join(parts[first + 1 : second])


def _has_blocks_alike(blocks: Mapping[str, set[str]]) -> bool:
    """Whether two blocks of a stage are built alike. blocks: the suffixes of the layers of each block.

    Norms do not count: sublayers of any kind have one.
    """
    layers = [{suffix for suffix in suffixes if not _is_norm(suffix)} for suffixes in blocks.values()]
    return any(a <= b or b <= a for a, b in itertools.combinations(filter(None, layers), 2))


def _is_norm(path: str) -> bool:
    return any("norm" in part.lower() or _SHORT_NORM.fullmatch(part) for part in path.split("."))


def display_order(layer_types: Iterable[str]) -> list[str]:
    """The distinct layer types, sorted by their first dotted component, then by name, as the reference does."""
    return sorted(set(layer_types), key=lambda name: (name.split(".")[0], name))


def match_types(patterns: Sequence[str], layers: Mapping[str, Collection[str]]) -> list[str]:
    """The layer types that at least one pattern chooses, in the order of `layers`.

    A pattern is an exact type, a shell pattern, or `all`. It chooses a type if it matches the type's name, or the paths
    of all layers of the type. Raises LayerTypeError if a pattern chooses nothing.

    Args:
        patterns: what to choose.
        layers: the names of the layers of each type. A type whose layers are not known has none, and is chosen by its
            name only.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        matched = _matched(pattern, layers)
        if not matched:
            raise LayerTypeError(_no_match(patterns, layers))
        chosen |= matched
    return [name for name in layers if name in chosen]


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


def _matched(pattern: str, layers: Mapping[str, Collection[str]]) -> set[str]:
    return {name for name, paths in layers.items() if _chooses(pattern, name, paths)}


def _chooses(pattern: str, layer_type: str, paths: Collection[str]) -> bool:
    if pattern in ("all", layer_type) or fnmatchcase(layer_type, pattern):
        return True
    return bool(paths) and all(fnmatchcase(path, pattern) for path in paths)


def _no_match(patterns: Sequence[str], layers: Mapping[str, Collection[str]]) -> str:
    """The message about patterns of which at least one chooses nothing. It proposes what all of them may mean."""
    wrong = [pattern for pattern in dict.fromkeys(patterns) if not _matched(pattern, layers)]
    for pattern in wrong:
        in_part = [name for name, paths in layers.items() if any(fnmatchcase(path, pattern) for path in paths)]
        if in_part:
            return (
                f"{pattern!r} matches only some of the layers of a type, but layers are ranked within their whole "
                f"type; give the type itself: {', '.join(in_part)}"
            )
    # The shell replaces a pattern without quotes by the files that it matches.
    files = [pattern for pattern in wrong if os.path.lexists(pattern)]
    meant = [_meant(pattern, layers, is_file=pattern in files) for pattern in wrong]
    hint = "; this"
    if all(meant):
        hint = f"; did you mean {' '.join(dict.fromkeys(filter(None, meant)))}? This"
    elif files:
        hint = ". Put a pattern in quotes, or the shell replaces it by the names of files. This"
    return f"no layer type matches {listed(list(map(repr, wrong)))}{hint} model has: {', '.join(layers)}"


def _meant(pattern: str, layers: Mapping[str, Collection[str]], *, is_file: bool) -> str | None:
    """The pattern, as a shell takes it, that one which matches nothing most likely means."""
    stem = pattern.strip(".*")
    wider = [f"{stem}.*", f"*.{stem}", pattern.replace(".*", "*"), f"*{stem}*"] if stem else []
    if is_file:
        wider.append(f"{stem.partition('.')[0]}.*")
    for candidate in wider:
        matched = _matched(candidate, layers)
        if len(matched) == 1:
            return matched.pop()
        if matched:
            return f"'{candidate}'"
    return nearest(pattern, layers)


def beginnings(name: str) -> Iterator[str]:
    """The beginnings of a dotted name that have no number and leave two parts or more, from the empty one on."""
    parts = name.split(".")
    yield ""
    for length in range(1, min(_MAX_BEGINNING, len(parts) - 2) + 1):
        if parts[length - 1].isdigit():
            break
        yield "".join(f"{part}." for part in parts[:length])


def paths_above(name: str) -> list[str]:
    """The paths of the modules that a parameter or a module is in, outermost first."""
    return [name[:i] for i, letter in enumerate(name) if letter == "."]


def without_indexes(name: str) -> str:
    """A name without its indexes: `model.layers.#.mlp`."""
    return ".".join("#" if part.isdigit() else part for part in name.split("."))
