"""How fast weights are read from a Hub, by the number of connections and the size of the parts.

    python -m tests.benchmarks.connections [--keep DIRECTORY]

The Hub is the tests' own, on loopback, on the same cores. Nothing is scored. The ranges are those of large matrices,
and those of the experts of a mixture. Where the line has a latency and no limit, the cores are the limit.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from huggingface_hub import HfApi

from spectrum.checkpoint.remote import fetcher
from spectrum.checkpoint.remote.answers import RepositoryFile
from spectrum.checkpoint.remote.connection import Connection
from spectrum.checkpoint.remote.fetcher import ByteRange, Fetcher
from tests.benchmarks.end_to_end import llama_1b, measured
from tests.benchmarks.hub import MODEL, served
from tests.benchmarks.machine import description

_CONNECTIONS = (1, 4, 8, 16, 32)
_PARTS = (2, 4, 8, 32)  # MiB
_MATRIX = 32 << 20  # bytes: a matrix of Llama-3.2-1B's MLP
_EXPERT = 3 << 20  # bytes: a matrix of an expert of Qwen3-30B-A3B

_BYTES = 512 << 20  # to read for each figure


def read(size: int) -> tuple[float, float, float]:
    """Read ranges of a size (bytes) from the Hub. MB/s, ranges a second, CPU seconds of this process per GB."""
    info = HfApi().model_info(MODEL, files_metadata=True)
    files = [
        RepositoryFile(MODEL, info.sha or "", file.rfilename, file.size or 0)
        for file in info.siblings or ()
        if file.rfilename.endswith(".safetensors")
    ]
    ranges = [ByteRange(file, at, size) for file in files for at in range(0, file.size - size, size)][: _BYTES // size]
    reader = Fetcher(Connection(print, lambda error: None))
    started, cpu = time.perf_counter(), time.process_time()
    with reader.ahead((wanted, [wanted]) for wanted in ranges):
        for wanted in ranges:
            reader.read(wanted)
            reader.done(wanted)
    seconds, cpu, read = time.perf_counter() - started, time.process_time() - cpu, len(ranges) * size
    return read / seconds / 1e6, len(ranges) / seconds, cpu / read * 1e9


def print_rates(latency: float) -> None:
    """Print a row for each size of the parts, with a figure for each number of connections."""
    for part in _PARTS:
        rates = []
        for count in _CONNECTIONS:
            fetcher._NUM_CONNECTIONS, fetcher._PART_BYTES = count, part << 20
            rates.append(f"{read(_MATRIX)[0]:.0f} MB/s")
        print(f"| {latency * 1e3:.0f} ms | {part} MiB | {' | '.join(rates)} |")


def print_costs(line: str) -> None:
    """Print a row for each size of the ranges."""
    for size in (_MATRIX, _EXPERT):
        rate, count, cpu = read(size)
        print(f"| {size >> 20} MiB | {line} | {rate:.0f} | {count:.0f} | {cpu:.2f} |")


def main() -> None:
    """Print two tables in Markdown. Each part of one comes from a process that has the Hub's address."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--keep", type=Path, help="directory of the checkpoint; written if missing")
    options = arguments.parse_args()
    print(f"{description()}\n")
    with tempfile.TemporaryDirectory() as scratch, served(llama_1b(options.keep, scratch), scratch) as hub:

        def show(call: str) -> None:
            code = f"from tests.benchmarks import connections; connections.{call}"
            print(measured(["-c", code], scratch, hub.environment).output, end="", flush=True)

        print("| latency | parts | " + " | ".join(f"{n} at once" for n in _CONNECTIONS) + " |")
        print("|---|---|" + "---|" * len(_CONNECTIONS))
        for latency in (0.03, 0.1):
            hub.limit(latency, None)
            show(f"print_rates({latency})")
        print("\n| ranges of | line | MB/s | ranges a second | CPU seconds per GB |")
        print("|---|---|---|---|---|")
        for line, bandwidth in (("100 MB/s, 30 ms", 100e6), ("30 ms", None)):
            hub.limit(0.03, bandwidth)
            show(f"print_costs({line!r})")


if __name__ == "__main__":
    main()
