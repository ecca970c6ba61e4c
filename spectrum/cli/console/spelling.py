"""Which option does a misspelt one mean?"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from spectrum.text import nearest, proposal

# What other tools call an option, by the name that it has here. A name that is close to this one needs no entry.
_OTHER_NAMES = {
    "model-name": ("m", "model", "model-id", "model-name-or-path", "base-model", "path", "repo", "repo-id"),
    "top-percent": ("p", "percent", "percentage", "top", "top-k", "fraction", "ratio"),
    "order": ("bottom", "bottom-percent", "control", "lowest", "random", "reverse", "seed", "sort"),
    "layer-types": ("types", "layers", "modules", "target-modules", "include"),
    "rescan": ("f", "force", "overwrite", "no-cache", "refresh"),
    "device": ("gpu", "cpu", "cuda", "device-map"),
    "output-dir": ("o", "out", "output", "output-path"),
    "results-dir": ("cache", "cache-dir", "results"),
    "revision": ("branch", "tag", "commit", "rev"),
    "quiet": ("silent",),
    "version": ("V", "v"),
}
_HERE = {other: name for name, others in _OTHER_NAMES.items() for other in others}
_NOT_PROPOSED = "gpus"  # a former spelling

# Word processors and web pages put the latter in place of the former.
_DASHES = "-\N{HYPHEN}\N{NON-BREAKING HYPHEN}\N{FIGURE DASH}\N{EN DASH}\N{EM DASH}\N{MINUS SIGN}"
_NEGATIVE_NUMBER = re.compile(r"-\d+|-\d*\.\d+")  # for argparse a value, not an option


def unknown_option(args: Sequence[str], options: Collection[str]) -> str | None:
    """The message about the first argument that is written as an option and is none; None if there is no such one.

    Args:
        args: the arguments of the command. Underscores in them count as hyphens.
        options: all spellings of all options, with their hyphens.
    """
    for arg in args:
        if arg == "--":
            break
        name = arg.partition("=")[0]
        hyphenated = name.replace("_", "-") if name.startswith("--") else name
        if len(arg) < 2 or arg[0] not in _DASHES or hyphenated in options or _NEGATIVE_NUMBER.fullmatch(arg):
            continue
        meant = _meant(name.lstrip(_DASHES), options)
        if arg[0] == "-":
            is_cluster = all(f"-{letter}" in options for letter in arg[1:])  # -yq
            if not is_cluster and " " not in arg:
                return f"there is no option {name}{proposal(meant)}"
        elif meant is not None:  # otherwise the name of a file may begin with such a dash
            return f"{name} does not begin with a hyphen{proposal(meant)}"
    return None


def _meant(word: str, options: Collection[str]) -> str | None:
    """The option that a word without hyphens most likely means, or the options that it is the beginning of."""
    names = [option[2:] for option in options if option.startswith("--") and option[2:] != _NOT_PROPOSED]
    folded = word.lower().replace("_", "-")
    if folded in names:
        return f"--{folded}"
    if name := _HERE.get(word, _HERE.get(folded)):
        return f"--{name}"
    if beginning := sorted(name for name in names if folded and name.startswith(folded)):
        return " or ".join(f"--{name}" for name in beginning)
    name = nearest(folded, names)
    return f"--{name}" if name else None
