"""What a scan of a large model on the Hub takes on a machine of two cores, from shapes alone.

    python -m tests.benchmarks.hub_sizes [--rate 65]

Work is counted as in `tests.benchmarks.kernel`. `--rate` is the speed of the machine, in 1e9 operations per second: the
work that the kernel benchmark counts over the time that it measures. Transfer is the bytes over the bandwidth. Memory
is what two lanes take for the two largest matrices, what is fetched ahead, and the largest matrix once more, which may
arrive meanwhile.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from fnmatch import fnmatch

from spectrum.checkpoint.remote.fetcher import _AHEAD_BYTES
from spectrum.compute.workspace import call_bytes
from spectrum.records import LayerWeight
from tests.benchmarks.balance import MODELS, weights
from tests.benchmarks.end_to_end import LLAMA_1B
from tests.benchmarks.kernel import operations

_MODELS = {"Llama-3.2-1B": LLAMA_1B} | {name: MODELS[name][0] for name in ("Llama-3.1-8B", "Llama-3.1-70B")}
_LINES = {"100 Mbit/s": 12.5e6, "1 Gbit/s": 125e6}
_LANES = 2
_ITEM = 2  # bytes of a bfloat16


def _num_bytes(layers: Sequence[LayerWeight]) -> int:
    return sum(_ITEM * math.prod(layer.shape) for layer in layers)


def memory(layers: Sequence[LayerWeight]) -> float:
    """What a scan takes over imports, in GiB."""
    calls = sorted(call_bytes(1, layer.matrix_shape, layer.dtype, gpu=False) for layer in layers)
    largest = max(_ITEM * math.prod(layer.shape) for layer in layers)
    return (sum(calls[-_LANES:]) + _AHEAD_BYTES + largest) / 2**30


def print_sizes(model: str, rate: float) -> None:
    """Print the rows of a model. rate: operations per second."""
    layers = list(weights(_MODELS[model]))
    for types in ("*", "mlp.*", "mlp.down_proj"):
        chosen = [layer for layer in layers if fnmatch(layer.name, f"*{types}.weight")]
        seconds = [sum(operations(layer.matrix_shape) for layer in chosen) / rate]
        seconds += [_num_bytes(chosen) / line for line in _LINES.values()]
        print(
            f"| {model} | `{types}` | {_num_bytes(chosen) / 1e9:.1f} of {_num_bytes(layers) / 1e9:.1f} GB "
            f"| {' | '.join(f'{value / 3600:.2g} h' for value in seconds)} | {memory(chosen):.1f} GiB |"
        )


def main() -> None:
    """Print a table in Markdown."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rate", type=float, default=65.0, help="speed of two cores, in 1e9 operations per second")
    rate = arguments.parse_args().rate * 1e9
    lines = " | ".join(f"transfer, {line}" for line in _LINES)
    print(f"| model | layer types | bytes | arithmetic | {lines} | memory |")
    print("|---|---|---|---|---|---|---|")
    for model in _MODELS:
        print_sizes(model, rate)


if __name__ == "__main__":
    main()
