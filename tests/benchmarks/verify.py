"""Time and peak memory of verifying a training, compared with merely reading both checkpoints.

    python -m tests.benchmarks.verify [--runs 5] [--layers N] [--base DIRECTORY] [--from-disk]

The checkpoints are those of `tests.benchmarks.memory`, about 1 GB each, and copies in which every second layer moved.
Processes that verify alternate with processes that read the same parts of both and do nothing with them, because other
load on the machine varies. Times are those of the pass over both checkpoints, without imports and opening; figures and
ratios are medians. Memory is the peak resident size of the whole command, less that of a process that only does the
same imports. All files are in the page cache or, with --from-disk, never are.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.benchmarks.checkpoints import write
from tests.benchmarks.end_to_end import measured
from tests.benchmarks.machine import description
from tests.benchmarks.memory import MODELS

# In the list, and so in training: every second layer.
_ENTRY = "model.layers.[0-9]*[13579][.].+"

# Verifies a training, or only reads the same parts. Arguments: which of the two, the models, the list. Prints seconds.
_PASS = """
import sys, time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from spectrum.checkpoint.remote.model_names import ModelName
from spectrum.verification import verify
from spectrum.verification.expected import expected
from spectrum.verification.opening import open_both
from spectrum.verification.parts import pair_of
from spectrum.trainers.readers.files import read_any
work, first, second, listing = sys.argv[1:]
names = (ModelName(name) for name in (first, second))
base, trained = open_both(*names, model_class=None, trust_remote_code=False, warn=print)
listed = expected(read_any(Path(listing)), listing, base.info)
bar = nullcontext(SimpleNamespace(update=lambda size: None))
started = time.perf_counter()
if work == "verify":
    assert verify.verify_open(base, trained, listed, lambda size: bar).ok
else:
    for name, parameter in base.parameters.items():
        if parameter.tied_to is None:
            for part in pair_of(base, trained, name, name).parts:
                base.values.read_part(name, part)
                trained.values.read_part(name, part)
print(time.perf_counter() - started)
"""


def main() -> None:
    """Print a row for each pair of checkpoints."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=5)
    arguments.add_argument("--layers", type=int, help="layers of each model, for a quick look; default: about 1 GB")
    arguments.add_argument("--base", type=Path, help="a causal model in place of the two that are written")
    arguments.add_argument("--from-disk", action="store_true", help="before each run, drop the files from the cache")
    options = arguments.parse_args()
    where = "read from disk" if options.from_disk else "in the page cache"
    print(f"{description()}; files {where}; medians of {options.runs} rounds\n")
    print("| checkpoints | size of both | verify | read both | ratio | whole command | memory over imports |")
    print("|---|---|---|---|---|---|---|")
    for name, config in {"given": None}.items() if options.base else MODELS.items():
        with tempfile.TemporaryDirectory() as scratch:
            base = options.base or Path(scratch) / "base"
            if config is not None:
                if options.layers:
                    config.num_hidden_layers = options.layers
                write(base, config, _random)
            _print_row(name, base, Path(scratch), options.runs, from_disk=options.from_disk)


def _random(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    return (torch.randn(rows, columns, generator=generator) * 0.02).bfloat16()


def _print_row(name: str, base: Path, scratch: Path, runs: int, *, from_disk: bool) -> None:
    trained, listing = scratch / "trained", scratch / "list.yaml"
    _train(base, trained)
    listing.write_text(f"unfrozen_parameters:\n- {_ENTRY}\n")
    paths = list(map(str, (base, trained, listing)))
    command = ["-m", "spectrum", "--model-name", paths[0], "--verify", paths[1], "--list", paths[2]]
    imports = "import spectrum.checkpoint.reader, spectrum.verification.comparison; import transformers; "
    model_class = re.search(r'"architectures": \[\s*"(\w+)"', (base / "config.json").read_text())
    imports += f"transformers.{model_class[1] if model_class else 'PreTrainedModel'}"
    over = measured(["-c", imports], str(scratch)).peak
    rounds: list[tuple[float, ...]] = []
    for _ in range(runs):
        times = []
        for work in ("verify", "read"):
            if from_disk:
                _drop_from_cache(base, trained)
            times.append(float(measured(["-c", _PASS, work, *paths], str(scratch)).output))
        verified, read = times
        whole = measured(command, str(scratch))
        rounds.append((verified, read, verified / read, whole.seconds, whole.peak - over))
    verified, read, ratio, seconds, peak = (statistics.median(values) for values in zip(*rounds, strict=True))
    size = sum(file.stat().st_size for place in (base, trained) for file in place.glob("*.safetensors")) / 2**20
    shown = f"{verified:.2f} s | {read:.2f} s | {ratio:.2f} | {seconds:.1f} s"
    print(f"| {name} | {size:.0f} MiB | {shown} | {peak:.0f} MiB |", flush=True)


def _drop_from_cache(*directories: Path) -> None:
    """Have the system forget what it keeps of the weight files, so that they are read from disk."""
    for file in (file for directory in directories for file in directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _train(base: Path, trained: Path) -> None:
    """Copy a checkpoint, and move what the list says."""
    shutil.copytree(base, trained)
    for file in trained.glob("*.safetensors"):
        state: dict[str, Any] = {
            key: value * 1.5 if re.match(r"model\.layers\.[0-9]*[13579]\.", key) else value
            for key, value in load_file(file).items()
        }
        save_file(state, file, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
