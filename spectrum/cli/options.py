"""The command line's grammar."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from spectrum.compute.batches import parse_batch_size
from spectrum.selection import selection
from spectrum.text import in_line
from spectrum.trainers import formats
from spectrum.version import __version__

DEFAULT_FORMAT = "axolotl"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {in_line(message)} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    p = _Parser(
        prog="spectrum",
        description="Score the weight matrices of a Hugging Face model by signal-to-noise ratio and write the list "
        "of the top percent of each layer type, to be left trainable in fine-tuning.",
        epilog="Long options take hyphens or underscores. See also https://arxiv.org/abs/2406.06623.",
        allow_abbrev=False,
    )
    p.add_argument("--model-name", type=_name, metavar="NAME_OR_PATH", help="local directory, or Hugging Face repo id")
    share = p.add_mutually_exclusive_group()
    share.add_argument(
        "--top-percent",
        type=_percent,
        metavar="P",
        help=f"percent of each layer type to leave trainable, 0 < P <= 100 (default: {selection.DEFAULT_PERCENT})",
    )
    share.add_argument(
        "--top-params",
        type=_percent,
        metavar="P",
        help="in its place: the most of each layer type that makes at most P percent of all parameters trainable",
    )
    p.add_argument(
        "--batch-size",
        type=_batch_size,
        metavar="N",
        help="same-shape matrices decomposed together: a number, or auto (asked; default: auto)",
    )
    p.add_argument(
        "--layer-types",
        nargs="+",
        metavar="TYPE",
        help="layer types to scan: exact types or shell patterns ('mlp.*'), or all (asked; default: all)",
    )
    p.add_argument("-y", "--yes", action="store_true", help="ask nothing, take the defaults")
    p.add_argument(
        "--results-dir",
        type=Path,
        default=Path("model_snr_results"),
        metavar="DIR",
        help="where scans are cached (default: model_snr_results)",
    )
    p.add_argument(
        "--output-dir",
        type=Path,
        default=Path(),
        metavar="DIR",
        help="where the YAML and the sorted JSON go (default: the working directory)",
    )
    p.add_argument("--rescan", action="store_true", help="ignore a cached scan")
    p.add_argument(
        "--device",
        default="auto",
        help="auto (every visible GPU, else the CPU), cpu, cuda, cuda:1, ... (default: auto)",
    )
    p.add_argument("--revision", metavar="REV", help="Hub revision (default: the repository's own)")
    p.add_argument(
        "--model-class",
        metavar="CLASS",
        help="transformers class to take module names from (default: from the checkpoint's config)",
    )
    p.add_argument("--trust-remote-code", action="store_true", help="allow code from the model's repository")
    p.add_argument("--no-embeddings", action="store_true", help="leave input embedding and output head frozen")
    p.add_argument(
        "--format",
        choices=formats.FORMATS,
        default=DEFAULT_FORMAT,
        help="for Axolotl and scripts, as parameter names, for ms-swift, for PEFT, as JSON (default: axolotl)",
    )
    p.add_argument(
        "--gpus",
        type=_gpus,
        default=8,
        metavar="N",
        help="devices that training is sharded over, where its memory is estimated (default: 8)",
    )
    p.add_argument("--plot", type=Path, metavar="FILE", help="draw all scores and the selection (.png, .svg, .pdf)")
    p.add_argument(
        "--compare", type=_name, metavar="OTHER", help="also select from another model, or a scan's file, and compare"
    )
    instead = p.add_mutually_exclusive_group()
    instead.add_argument(
        "--plot-spectrum",
        nargs=2,
        metavar=("LAYER", "FILE"),
        help="only draw the singular values of one layer, or of LAYER[i], a matrix of a stack",
    )
    instead.add_argument(
        "--check",
        type=Path,
        metavar="CONFIG",
        help="only check the unfrozen_parameters of a YAML file against the model's parameters",
    )
    p.add_argument("-q", "--quiet", action="store_true", help="print only the path of the file that is written")
    p.add_argument("--version", action="version", version=f"spectrum {__version__}")
    return p


def hyphenated(argv: Sequence[str]) -> list[str]:
    """Long options written with underscores, as accelerate accepts them, with hyphens; values as they are."""
    tokens = []
    for token in argv:
        name, equals, value = token.partition("=")
        tokens.append(f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else token)
    return tokens


def _name(text: str) -> str:
    """A model's name without the slash that shells complete a directory's with."""
    return text.rstrip("/") or text[:1]


def _percent(text: str) -> str:
    try:
        return selection.parse_percent(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _gpus(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 0 < int(text) <= 1_000_000):
        raise argparse.ArgumentTypeError(f"a number of devices is expected, such as 8, not {text!r}")
    return int(text)


def _batch_size(text: str) -> int | str:
    try:
        return parse_batch_size(text) or text
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
