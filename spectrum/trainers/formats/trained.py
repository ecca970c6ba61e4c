"""Lists of what trains, for full fine-tuning: Axolotl's, ms-swift's, plain names."""

from __future__ import annotations

import re

from spectrum.selection.selection import Selection
from spectrum.trainers.formats.export import Export


def axolotl(selection: Selection) -> Export:
    """The `unfrozen_parameters` of Axolotl, as the reference writes them."""
    return Export(selection.yaml())


def names(selection: Selection) -> Export:
    """The names of the parameters that train, one per line."""
    return Export("".join(f"{name}\n" for name in selection.trained()))


def swift(selection: Selection) -> Export:
    """Arguments for ms-swift with `--tuner_type full`: parameters whose names start with a listed prefix train.

    A parameter whose name is the beginning of another one's is listed in a regular expression instead.
    """
    entries = [entry for group in selection.entries().values() for entry in group]
    prefixes = dict.fromkeys(
        [*selection.embedding_parameters(), *(entry for entry in entries if not entry.startswith("^"))]
    )
    lines = ["--freeze_parameters_ratio 1", f"--trainable_parameters {' '.join(prefixes)}"]
    if anchored := dict.fromkeys(entry.strip("^$") for entry in entries if entry.startswith("^")):
        # Without quotes, which the shell would keep: the file is inserted into a command line with $(cat FILE).
        lines.append(f"--trainable_parameters_regex ^({'|'.join(map(re.escape, anchored))})$")
    return Export("".join(f"{line}\n" for line in lines))
