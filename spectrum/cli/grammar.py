"""Which options does the command have, and what do they mean? The argument parser, in the groups that --help shows."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn

from spectrum.checkpoint.remote.model_names import ModelName, parse_model_name
from spectrum.cli.terminal import for_stderr
from spectrum.compute.batches import parse_batch_size
from spectrum.compute.device_names import check_device_name
from spectrum.errors import DeviceError
from spectrum.scanning.store import DEFAULT_RESULTS_DIR
from spectrum.selection import order, selection
from spectrum.text import in_line, nearest, proposal
from spectrum.trainers.formats import formats
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

DEFAULT_TRAINING_GPUS = 8

_MAX_GPUS = 1_000_000
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
        type=model_name,
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
        type=_percent,
        metavar="P",
        help=f"percent of each layer type to train, at most 100 (default: {selection.DEFAULT_PERCENT})",
    )
    share.add_argument(
        "--top-params",
        type=_percent,
        metavar="P",
        help="instead of --top-percent: train at most P percent of all parameters",
    )
    group.add_argument(
        "--order",
        type=_order,
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
        type=_other_model,
        metavar="OTHER",
        help="also select from another model, or from the JSON file of a scan, and compare",
    )


def _add_what_to_write(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--format",
        type=_format,
        metavar="FORMAT",
        help="format of the list, see below (default: axolotl)",
    )
    group.add_argument(
        "--output-dir",
        type=path,
        metavar="DIR",
        help="where the list and the sorted JSON go (default: the working directory)",
    )
    group.add_argument(
        "--results-dir", type=path, metavar="DIR", help=f"where scans are cached (default: {DEFAULT_RESULTS_DIR})"
    )
    group.add_argument(
        "--plot", type=path, metavar="FILE", help="draw all scores and the selection (.png, .svg or .pdf)"
    )
    group.add_argument(
        "--training-gpus",
        type=_gpus,
        metavar="N",
        help=f"GPUs in the estimate of training memory (default: {DEFAULT_TRAINING_GPUS})",
    )
    group.add_argument("--gpus", dest="training_gpus", type=_gpus, help=argparse.SUPPRESS)  # the former spelling


def _add_where_to_run(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--device",
        type=_device,
        metavar="DEVICE",
        help="auto (every visible GPU, else the CPU), cpu, cuda, cuda:1, ... (default: auto)",
    )
    group.add_argument(
        "--batch-size",
        type=_batch_size,
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
        "--check", type=path, metavar="CONFIG", help="check the list in a config or text file against the model"
    )
    modes.add_argument(
        "--verify",
        type=model_name,
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
        type=path,
        metavar="CONFIG",
        help="for --verify: what was to train, as a list or config for --check (default: the selection)",
    )


def _add_general(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-y", "--yes", action="store_true", help="ask nothing, use the defaults")
    group.add_argument("-q", "--quiet", action="store_true", help="print only the path of the list or picture")
    group.add_argument("--version", action="version", version=f"spectrum {__version__}", help="print the version")
    group.add_argument("-h", "--help", action="help", help="print this help")


def model_name(text: str) -> ModelName:
    """A model's name in the arguments."""
    try:
        return parse_model_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def path(text: str) -> Path:
    """A path in the arguments. The shell leaves the ~ in `--output-dir=~/lists` as it is, and a ~ in quotes."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; is a shell variable not set?")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} begins with a user that this machine does not have") from error


def _other_model(text: str) -> str:
    if text.lower().endswith(".json"):  # of a scan
        return str(path(text))
    if text.lower().endswith((".yaml", ".yml")) and os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"{text} is a list; give the model itself, or the JSON file of its scan")
    model = model_name(text)
    if model.revision is not None:
        raise argparse.ArgumentTypeError(f"{text!r} names a revision, and a model to compare with has its default")
    return model.name


def _format(text: str) -> str:
    if text in _FORMATS:
        return text
    hint = proposal(nearest(text, _FORMATS)) or f"; there are {', '.join(map(repr, _FORMATS))}"
    if text.lower() not in _FORMATS and (found := formats.formats_for(text)):
        hint = f"; {next(iter(found.values()))} reads {' or '.join(found)}"
    raise argparse.ArgumentTypeError(f"there is no format {text!r}{hint}")


def _device(text: str) -> str:
    try:
        check_device_name(text)
    except DeviceError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _percent(text: str) -> str:
    try:
        return selection.parse_percent(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _order(text: str) -> str:
    try:
        return order.parse_order(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _gpus(text: str) -> int:
    if not (re.fullmatch(r"\d{1,9}", text, re.ASCII) and 0 < int(text) <= _MAX_GPUS):
        raise argparse.ArgumentTypeError(f"a number of GPUs is expected, such as 8, not {text!r}")
    return int(text)


def _batch_size(text: str) -> int | Literal["auto"]:
    try:
        return parse_batch_size(text) or "auto"
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
