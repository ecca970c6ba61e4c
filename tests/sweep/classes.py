"""Sweep over the classes of transformers: is every weight read as transformers loads it?

    python -m tests.sweep.classes                       all classes
    python -m tests.sweep.classes --only 'Qwen3*' --jobs 2

Each class is built tiny, saved, read, and compared with what `from_pretrained` loads, in a process of its own. The
table has a row for each class. The exit status is 1 if a row needs work: one that is not as it should be, and that
`KNOWN` does not explain.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path

import torch
import transformers
from transformers.models.auto import modeling_auto

from spectrum.checkpoint.checkpoint import Checkpoint
from tests.sweep.examine import Reader, Row, examine

MAPPINGS = (
    "MODEL_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
)

# Why a class is not exact, and need not be: a pattern of class names, and the beginning of the reason.
KNOWN: dict[str, str] = {
    # transformers makes the row of the padding token zero on loading, whatever is stored.
    "ChineseCLIPModel": "text_model.embeddings.word_embeddings.weight has other values",
    # Their default configs are not whole models.
    "Granite4Vision*": "TypeError: object of type 'NoneType' has no len()",
    "PPOCRV6MediumDetModel": "TypeError: 'NoneType' object is not subscriptable",
}

MAX_SECONDS = 120
MAX_BYTES = 12 << 30  # of addresses, for each process

# What all classes import. Processes are forked from one that has it.
SHARED = ("conversion_mapping", "integrations.hub_kernels", "integrations.accelerate", "modeling_layers")
SHARED_MODELS = ("llama", "llava", "t5", "whisper")


def classes(patterns: Sequence[str]) -> list[str]:
    """The names of all classes that one of the patterns matches, in alphabetical order."""
    names: set[str] = set()
    for mapping in MAPPINGS:
        for value in getattr(modeling_auto, mapping).values():
            names |= {value} if isinstance(value, str) else set(value)
    known = (name for name in names if hasattr(transformers, name))
    return sorted(name for name in known if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


def rows(names: Sequence[str], jobs: int, read: Reader) -> Iterator[Row]:
    """The row of each class, as soon as it is known, with so many processes at once."""
    context = multiprocessing.get_context("fork")
    left = list(reversed(names))
    running: dict[Connection, tuple[str, ForkProcess, float, str]] = {}
    while left or running:
        while left and len(running) < jobs:
            name, directory = left.pop(), tempfile.mkdtemp(prefix="spectrum-sweep-")
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_examine, args=(name, Path(directory), read, theirs))
            process.start()
            theirs.close()
            running[mine] = name, process, time.monotonic() + MAX_SECONDS, directory
        ready = wait(list(running), timeout=1)
        for connection, (name, process, deadline, directory) in list(running.items()):
            if connection not in ready and time.monotonic() < deadline:
                continue
            try:
                row = connection.recv() if connection in ready else Row(name, "wrong", f"no end in {MAX_SECONDS} s")
            except EOFError:
                row = Row(name, "wrong", "its process died")
            process.kill()
            process.join()
            connection.close()
            shutil.rmtree(directory, ignore_errors=True)
            del running[connection]
            yield row


def _examine(name: str, directory: Path, read: Reader, connection: Connection) -> None:
    """Send the row of one class. What transformers prints about it is not shown."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    try:
        row = examine(name, directory, read)
    except BaseException as error:  # a class that cannot be examined is a row too
        row = Row(name, "wrong", f"not examined: {type(error).__name__}: {error}"[:300])
    connection.send(row)


def needs_work(row: Row) -> bool:
    """Whether a row is not as it should be."""
    if any(fnmatch.fnmatchcase(row.name, name) and row.reason.startswith(why) for name, why in KNOWN.items()):
        return False
    return row.result in ("wrong", "refused", "not built") or bool(row.remarks)


def line(row: Row) -> str:
    """A row as text."""
    parts = [row.name.ljust(52), str(row.num_weights).rjust(5), f"{row.unscored:7.1%} ", row.result.ljust(14)]
    mark = "! " if needs_work(row) else "  "
    return f"{mark}{' '.join(parts)} {'; '.join(filter(None, [row.reason, *row.remarks]))}".rstrip()


def summary(found: Iterable[Row]) -> str:
    """The last lines: how many of each result, and of how many weights."""
    found = list(found)
    counts = Counter(row.result for row in found)
    weights = sum(row.num_weights for row in found if row.result == "exact")
    results = ", ".join(f"{count} {result}" for result, count in counts.most_common())
    versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
    work = sum(map(needs_work, found))
    return f"{len(found)} classes: {results}; {weights:,} weights are exact; {work} rows need work ({versions})"


def main(arguments: Sequence[str] | None = None, read: Reader = Checkpoint.read) -> int:
    """Print the table, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.sweep.classes", description="All classes of transformers")
    parser.add_argument("--only", metavar="PATTERN", nargs="+", default=["*"], help="only these, as 'Qwen3*'")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="processes at once (default: 1)")
    options = parser.parse_args(arguments)
    names = classes(options.only)
    if not names:
        parser.error(f"no class matches {' '.join(options.only)}")
    torch.set_num_threads(1)
    for module in (*SHARED, *(f"models.{model}.modeling_{model}" for model in SHARED_MODELS)):
        importlib.import_module(f"transformers.{module}")
    found = []
    print("  class".ljust(54), "weights", "unscored", "result", flush=True)
    for row in rows(names, options.jobs, read):
        found.append(row)
        print(line(row), flush=True)
    print(summary(found))
    return 1 if any(map(needs_work, found)) else 0


if __name__ == "__main__":
    sys.exit(main())
