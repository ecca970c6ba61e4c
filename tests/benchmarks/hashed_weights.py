"""Weights with the same bits on every machine and device, and their scores on a CPU.

    python -m tests.benchmarks.hashed_weights [SHAPE ...]

writes the scores into `hashed_weights.json`: of the named shapes (`4096x14336`), or of all, which takes half an hour.
The weights are hashed and added as integers, so that no device rounds differently from another.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import cache
from pathlib import Path

import torch

from spectrum.compute import snr

SCORES = Path(__file__).with_suffix(".json")

_FULL = [
    *((768, 2048), (2048, 768), (1536, 2048), (1024, 8192), (2048, 2048)),
    *((3072, 3072), (3072, 8192), (9216, 3072), (16384, 3072)),
    *((4096, 4096), (4096, 14336), (8192, 8192), (8192, 28672), (28672, 8192), (16384, 16384), (152064, 8192)),
]
# At full size, and at the size of a rehearsal.
SHAPES = [*((rows // 16, columns // 16) for rows, columns in _FULL), *_FULL]

# Matrices of rank one, with entries of one magnitude, stand out of the noise. Their singular values, relative to the
# largest of the noise:
_OUTLIERS = (6, 4, 3, 2)
_ROWS_AT_ONCE = 16 << 20  # elements

_MASK = 2**32 - 1


def weight(rows: int, columns: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """A bfloat16 matrix: noise and a few outliers. Rows have four scales, so that the noise has a wide spectrum."""
    short, long = sorted((rows, columns))
    # Noise has a standard deviation of at most 148, and singular values of up to sqrt(n) + sqrt(m) times that.
    edge = 148 * (short**0.5 + long**0.5) / (short * long) ** 0.5
    strengths = [round(times * edge) + 1 for times in _OUTLIERS]
    matrix = torch.empty(rows, columns, dtype=torch.bfloat16, device=device)
    j = torch.arange(columns, dtype=torch.int64, device=device)
    bits_of_columns = _hash(j * 7919 + 1)
    step = max(1, _ROWS_AT_ONCE // columns)
    for first in range(0, rows, step):
        i = torch.arange(first, min(first + step, rows), dtype=torch.int64, device=device)
        bits_of_rows = _hash(i * 6271 + 2)
        bits = _hash(_hash(i * 2654435 + 3)[:, None] + j * 97)
        values = sum(((bits >> shift) & 255 for shift in (0, 8, 16, 24)), torch.tensor(-510, device=device))
        values = values >> ((bits_of_rows >> 8) & 3)[:, None]
        for position, strength in enumerate(strengths):
            values += _signs(bits_of_rows, position)[:, None] * (_signs(bits_of_columns, position) * strength)
        matrix[first : first + step] = (values.float() * 2.0**-13).bfloat16()
    return matrix


def expected(rows: int, columns: int) -> list[float] | None:
    """The fields of `snr.Scores` on the CPU for a weight of this shape; None if the file does not have it."""
    return _scores().get(f"{rows}x{columns}")


@cache
def _scores() -> dict[str, list[float]]:
    scores: dict[str, list[float]] = json.loads(SCORES.read_text())
    return scores


def _hash(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ (x >> 16)) * 0x2C1B3C6D & _MASK
    x = (x ^ (x >> 12)) * 0x297A2D39 & _MASK
    return x ^ (x >> 15)


def _signs(bits: torch.Tensor, position: int) -> torch.Tensor:
    return ((bits >> position) & 1) * 2 - 1


def main() -> None:
    """Score on the CPU, one shape after the other; print and write each score."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("shapes", nargs="*", default=[f"{rows}x{columns}" for rows, columns in SHAPES])
    torch.set_num_threads(1)
    for shape in arguments.parse_args().shapes:
        rows, columns = map(int, shape.split("x"))
        started = time.perf_counter()
        scores = [float(value.item()) for value in snr.score(weight(rows, columns)[None])]
        print(f"{shape}: {scores}, {time.perf_counter() - started:.0f} s", flush=True)
        written = json.loads(SCORES.read_text()) if SCORES.exists() else {}
        SCORES.write_text(json.dumps(written | {shape: scores}, indent=1) + "\n")


if __name__ == "__main__":
    main()
