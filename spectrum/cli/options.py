"""What does the user ask for? The command line as typed options.

A run selects layers, checks a list, or draws one layer. Each of these modes has a record of exactly the options that it
uses. `parse` refuses an option that is not in the record of the mode.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from spectrum.cli.grammar import DEFAULT_TRAINING_GPUS, hyphenated, parser
from spectrum.scanning.store import DEFAULT_RESULTS_DIR
from spectrum.selection import selection


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The options that name the model and say how it is opened. Every mode uses them."""

    model_name: str
    revision: str | None = None
    model_class: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class SelectOptions:
    """The options of the mode that scans a model, selects layers and writes the list.

    Those that need more than the text of `spectrum --help`:

    Args:
        layer_types: None if not given: the user is asked on a terminal.
        top_params: replaces `top_percent` if it is given.
        compare: a model, or the JSON file of a scan.
        batch_size: None if not given: the user is asked on a terminal.
    """

    layer_types: Sequence[str] | None = None
    rescan: bool = False
    top_percent: str = selection.DEFAULT_PERCENT
    top_params: str | None = None
    embeddings: bool = True
    compare: str | None = None
    format: str = "axolotl"
    output_dir: Path = Path()
    results_dir: Path = Path(DEFAULT_RESULTS_DIR)
    plot: Path | None = None
    training_gpus: int = DEFAULT_TRAINING_GPUS
    device: str = "auto"
    batch_size: int | Literal["auto"] | None = None


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """The options of the mode that checks the list in a YAML file."""

    check: Path
    training_gpus: int = DEFAULT_TRAINING_GPUS


@dataclass(frozen=True, slots=True)
class PlotSpectrumOptions:
    """The options of the mode that draws the singular values of one layer. plot_spectrum: the layer and the file."""

    plot_spectrum: tuple[str, str]
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class Options:
    """All options of a command line."""

    model: ModelOptions
    mode: SelectOptions | CheckOptions | PlotSpectrumOptions
    yes: bool
    quiet: bool


def parse(argv: Sequence[str]) -> Options:
    """The options in the arguments of the command. Wrong usage prints one line and raises SystemExit(2)."""
    grammar = parser()
    given = vars(grammar.parse_args(hyphenated(argv)))
    if "model_name" not in given:  # checked last, so that a misspelt --model-name is the error that is shown
        grammar.error("the following arguments are required: --model-name")
    mode: type[SelectOptions | CheckOptions | PlotSpectrumOptions] = SelectOptions
    if "check" in given:
        mode = CheckOptions
    elif "plot_spectrum" in given:
        mode = PlotSpectrumOptions
        given["plot_spectrum"] = tuple(given["plot_spectrum"])
    used = {field.name for record in (ModelOptions, mode, Options) for field in fields(record)}
    if ignored := [_spelling(grammar, name) for name in given if name not in used]:
        name = "--check" if mode is CheckOptions else "--plot-spectrum"
        grammar.error(f"{name} does not use {', '.join(ignored)}; leave {'it' if len(ignored) == 1 else 'them'} out")
    if "training_gpus" in given and given.get("format") == "peft":
        grammar.error("--format peft does not use --training-gpus: memory is estimated for training without adapters")
    return Options(
        model=_record(ModelOptions, given),
        mode=_record(mode, given),
        yes=given.get("yes", False),
        quiet=given.get("quiet", False),
    )


_Record = TypeVar("_Record", ModelOptions, SelectOptions | CheckOptions | PlotSpectrumOptions)


def _record(of: type[_Record], given: dict[str, Any]) -> _Record:
    """A record with the given options; the rest have their defaults."""
    return of(**{field.name: given[field.name] for field in fields(of) if field.name in given})


def _spelling(grammar: argparse.ArgumentParser, name: str) -> str:
    """An option's name as users write it."""
    return next(action.option_strings[-1] for action in grammar._actions if action.dest == name)
