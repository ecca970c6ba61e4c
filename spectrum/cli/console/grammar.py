"""Which options does the command have, and what do they mean? The argument parser, in the groups that --help shows."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from spectrum.cli.console import values
from spectrum.cli.console.terminal import for_stderr
from spectrum.scanning.store import DEFAULT_RESULTS_DIR
from spectrum.selection import selection
from spectrum.text import in_line
from spectrum.trainers.formats import formats
from spectrum.trainers.memory import DEFAULT_DEVICES
from spectrum.version import __version__

_DESCRIPTION = """\
Score the weight matrices of a Hugging Face model by their signal-to-noise
ratio, and write the list of layers to train: the best of each layer type.
Method: https://arxiv.org/abs/2406.06623
Options also work with underscores: --top_percent."""

_FORMATS = tuple(formats.FORMATS)
_READERS = "\n".join(
    f"  {name:14}{', '.join(form.readers)}{': adapters' if form.adapters else ''}"
    for name, form in formats.FORMATS.items()
)
_EPILOG = f"""\
formats of the list:
{_READERS}

examples:
  spectrum --model-name org/model --top-percent 25
  spectrum --model-name path/to/model --layer-types 'mlp.*' --format peft
  spectrum --model-name org/model --check config.yaml
  spectrum --model-name org/model --verify path/to/trained --list config.yaml"""

_MAX_OPTION_COLUMNS = 30  # of an option in --help; the help text of a longer one begins on the next line


def parser() -> argparse.ArgumentParser:
    """The parser of the command line. Its result holds only the options that were given, without defaults."""
    grammar = _Parser(
        prog="spectrum",
        usage="%(prog)s [--model-name] NAME_OR_PATH [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=_MAX_OPTION_COLUMNS),
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    _add_what_to_scan(grammar.add_argument_group("what to scan"))
    _add_what_to_select(grammar.add_argument_group("what to select"))
    _add_what_to_write(grammar.add_argument_group("what to write"))
    _add_where_to_run(grammar.add_argument_group("where to run"))
    _add_how_to_open(grammar.add_argument_group("how the model is opened"))
    _add_other_modes(grammar.add_argument_group("other things to do, in place of a selection"))
    _add_general(grammar.add_argument_group("general"))
    return grammar


def hyphenated(argv: Sequence[str]) -> list[str]:
    """The arguments, with hyphens in place of underscores in the names of long options. Values stay as they are."""
    tokens = []
    for token in argv:
        name, equals, value = token.partition("=")
        tokens.append(f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else token)
    return tokens


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, for_stderr(f"{self.prog}: error: {in_line(message)} (see {self.prog} --help)\n"))


def _add_what_to_scan(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--model-name",
        type=values.model_name,
        action="append",  # so that `options` can refuse two
        metavar="NAME_OR_PATH",
        help="local directory or Hugging Face repository (required)",
    )
    group.add_argument(
        "--layer-types",
        nargs="+",
        metavar="TYPE",
        help="layer types to scan: exact, patterns ('mlp.*') or all (asked on a terminal; default: all)",
    )
    group.add_argument("--rescan", action="store_true", help="ignore a cached scan")


def _add_what_to_select(group: argparse._ArgumentGroup) -> None:
    share = group.add_mutually_exclusive_group()
    share.add_argument(
        "--top-percent",
        type=values.percent,
        metavar="P",
        help=f"percent of each layer type to train, at most 100 (default: {selection.DEFAULT_PERCENT})",
    )
    share.add_argument(
        "--top-params",
        type=values.percent,
        metavar="P",
        help="instead of --top-percent: train at most P percent of all parameters",
    )
    group.add_argument(
        "--order",
        type=values.order_of_layers,
        metavar="ORDER",
        help="by score, highest or lowest first, or by lot, random:SEED (default: highest)",
    )
    group.add_argument(
        "--no-embeddings",
        dest="embeddings",
        action="store_false",
        help="keep input embedding and output head frozen; otherwise they always train",
    )
    group.add_argument(
        "--compare",
        type=values.other_model,
        metavar="OTHER",
        help="also select from another model, or from the JSON file of a scan, and compare",
    )


def _add_what_to_write(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--format",
        type=values.list_format,
        metavar="FORMAT",
        help="format of the list, see below (default: axolotl)",
    )
    group.add_argument(
        "--output-dir",
        type=values.path,
        metavar="DIR",
        help="where the list and the sorted JSON go (default: the working directory)",
    )
    group.add_argument(
        "--results-dir",
        type=values.path,
        metavar="DIR",
        help=f"where scans are cached (default: {DEFAULT_RESULTS_DIR})",
    )
    group.add_argument(
        "--plot",
        type=values.path,
        metavar="FILE",
        help="draw all scores and the selection: a page to choose on (.html), or a picture (.png, .svg, .pdf)",
    )
    group.add_argument(
        "--training-gpus",
        type=values.gpus,
        metavar="N",
        help=f"GPUs in the estimate of training memory (default: {DEFAULT_DEVICES})",
    )
    group.add_argument("--gpus", dest="training_gpus", type=values.gpus, help=argparse.SUPPRESS)  # the former spelling


def _add_where_to_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--device",
        type=values.device,
        metavar="DEVICE",
        help="auto (every visible GPU, else the CPU), cpu, cuda, cuda:1, ... (default: auto)",
    )
    group.add_argument(
        "--batch-size",
        type=values.batch_size,
        metavar="N",
        help="same-shape matrices decomposed together: a number or auto (asked on a terminal; default: auto)",
    )


def _add_how_to_open(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--revision", metavar="REV", help="Hub branch, tag or commit (default: the repository's own)")
    group.add_argument(
        "--model-class",
        metavar="CLASS",
        help="transformers class whose parameter names are used (default: from the checkpoint's config)",
    )
    group.add_argument(
        "--download",
        action="store_true",
        help="first download the model's weights, to keep them; otherwise only what is scanned is read",
    )
    group.add_argument("--trust-remote-code", action="store_true", help="allow code from the model's repository")


def _add_other_modes(group: argparse._ArgumentGroup) -> None:
    modes = group.add_mutually_exclusive_group()
    modes.add_argument(
        "--check", type=values.path, metavar="CONFIG", help="check the list in a config or text file against the model"
    )
    modes.add_argument(
        "--verify",
        type=values.model_name,
        metavar="TRAINED",
        help="compare a trained model with the model, and with what was to train: this selection, or --list",
    )
    modes.add_argument(
        "--plot-spectrum",
        nargs=2,
        metavar=("LAYER", "FILE"),
        help="draw the singular values of one layer; LAYER[i] is matrix i of a stack",
    )

    group.add_argument(
        "--list",
        type=values.path,
        metavar="CONFIG",
        help="for --verify: what was to train, as a list or config for --check (default: the selection)",
    )


def _add_general(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-y", "--yes", action="store_true", help="ask nothing, use the defaults")
    group.add_argument("-q", "--quiet", action="store_true", help="print only the path of the list or picture")
    group.add_argument("--version", action="version", version=f"spectrum {__version__}", help="print the version")
    group.add_argument("-h", "--help", action="help", help="print this help")
