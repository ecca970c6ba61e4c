"""What does the user ask for? The command line as typed options.

A run selects layers, checks a list, verifies a training, or draws one layer. Each of these modes has a record of
exactly the options that it uses. `parse` refuses an option that is not in the record of the mode.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar

from spectrum.checkpoint.remote.model_names import ModelName
from spectrum.cli.console.grammar import hyphenated, parser
from spectrum.cli.console.spelling import unknown_option
from spectrum.cli.console.values import model_name, path
from spectrum.layer_types import split_patterns
from spectrum.scanning.store import DEFAULT_RESULTS_DIR
from spectrum.selection import selection
from spectrum.selection.order import HIGHEST
from spectrum.trainers.formats import formats
from spectrum.trainers.memory import DEFAULT_DEVICES


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
    order: str = HIGHEST
    embeddings: bool = True
    compare: str | None = None
    format: str = "axolotl"
    output_dir: Path = Path()
    results_dir: Path = Path(DEFAULT_RESULTS_DIR)
    plot: Path | None = None
    training_gpus: int = DEFAULT_DEVICES
    device: str = "auto"
    download: bool = False
    batch_size: int | Literal["auto"] | None = None


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """The options of the mode that checks the list in a YAML file. training_gpus: None if it is not given."""

    check: Path
    training_gpus: int | None = None


@dataclass(frozen=True, slots=True)
class VerifyOptions:
    """The options of the mode that compares a trained model with its base.

    Args:
        verify: the trained model.
        list: the list or config by which it was trained; None for the selection that `select` makes.
        select: the options of the selection. Those for what it writes have their defaults.
    """

    verify: ModelName
    list: Path | None = None
    select: SelectOptions = field(default_factory=SelectOptions)


# The options of a selection that do not change what it selects.
_WRITTEN = frozenset({"compare", "format", "output_dir", "plot", "training_gpus"})


@dataclass(frozen=True, slots=True)
class PlotSpectrumOptions:
    """The options of the mode that draws the singular values of one layer. plot_spectrum: the layer and the file."""

    plot_spectrum: tuple[str, str]
    device: str = "auto"
    download: bool = False
    results_dir: Path = Path(DEFAULT_RESULTS_DIR)


@dataclass(frozen=True, slots=True)
class Options:
    """All options of a command line. warnings: about values that may not mean what the user thinks."""

    model: ModelOptions
    mode: SelectOptions | CheckOptions | VerifyOptions | PlotSpectrumOptions
    yes: bool
    quiet: bool
    warnings: tuple[str, ...] = ()


def parse(argv: Sequence[str]) -> Options:
    """The options in the arguments of the command. Wrong usage prints one line and raises SystemExit(2)."""
    grammar = parser()
    if not {"-h", "--help", "--version"} & set(argv) and (problem := unknown_option(argv, _spellings(grammar))):
        grammar.error(problem)
    namespace, words = grammar.parse_known_args(hyphenated(argv))
    given = vars(namespace)
    try:
        _complete(given, [word for word in words if word != "--"])
    except argparse.ArgumentTypeError as error:
        grammar.error(str(error))
    mode: type[SelectOptions | CheckOptions | VerifyOptions | PlotSpectrumOptions] = SelectOptions
    name = "--plot-spectrum"
    if "check" in given:
        mode, name = CheckOptions, "--check"
    elif "verify" in given:
        mode, name = VerifyOptions, "--verify with --list" if "list" in given else "--verify"
    elif "list" in given:
        grammar.error("--list is the list by which a model was trained, for --verify; --check checks one")
    elif "plot_spectrum" in given:
        mode = PlotSpectrumOptions
    used = {field.name for record in (ModelOptions, mode, Options) for field in fields(record)}
    if mode is VerifyOptions and "list" not in given:
        used |= {field.name for field in fields(SelectOptions)} - _WRITTEN
        given["select"] = _record(SelectOptions, given)
    if ignored := [_spelling(grammar, name) for name in given if name not in used]:
        grammar.error(f"{name} does not use {', '.join(ignored)}; leave {'it' if len(ignored) == 1 else 'them'} out")
    form = given.get("format")
    if "training_gpus" in given and form is not None and formats.FORMATS[form].adapters:
        grammar.error(
            f"--format {form} does not use --training-gpus: memory is estimated for training without adapters"
        )
    return Options(
        model=_record(ModelOptions, given),
        mode=_record(mode, given),
        yes=given.get("yes", False),
        quiet=given.get("quiet", False),
        warnings=tuple(_warnings(given)),
    )


def _complete(given: dict[str, Any], words: Sequence[str]) -> None:
    """Check the options that the parser leaves to this module, and bring them into the form of the records.

    Raises ArgumentTypeError for wrong usage.

    Args:
        given: the options.
        words: the arguments that belong to no option. The first names the model.
    """
    if "layer_types" in given:
        given["layer_types"] = split_patterns(given["layer_types"])
        if not given["layer_types"]:
            raise argparse.ArgumentTypeError("argument --layer-types: a layer type is expected, or a pattern, or all")
    if "plot_spectrum" in given:
        layer, file = given["plot_spectrum"]
        if layer.lower().endswith((".png", ".svg", ".pdf")):
            raise argparse.ArgumentTypeError(f"argument --plot-spectrum: the layer comes first, then the file: {layer}")
        given["plot_spectrum"] = layer, str(path(file))
    model = _model(given, words)  # checked last, so that other wrong usage is the error that is shown
    given["model_name"] = model.name
    if model.revision is not None:  # an address names it
        given.setdefault("revision", model.revision)


def _model(given: Mapping[str, Any], words: Sequence[str]) -> ModelName:
    """The model that --model-name names, or a word without an option. Raises ArgumentTypeError if they name two."""
    named: list[ModelName] = [*given.get("model_name", ()), *map(model_name, words)]
    if not named:
        types = given.get("layer_types") or [""]
        hint = f"; write it before --layer-types, which has taken {types[-1]!r}" if _may_be_a_model(types[-1]) else ""
        raise argparse.ArgumentTypeError(f"the following arguments are required: --model-name{hint}")
    if len(set(named)) > 1:
        names = ", ".join(repr(model.name) for model in dict.fromkeys(named))
        raise argparse.ArgumentTypeError(f"one model is expected, not {names}; a name with spaces needs quotes")
    return named[0]


def _may_be_a_model(text: str) -> bool:
    return "/" in text or os.path.isdir(text)


def _warnings(given: Mapping[str, Any]) -> Iterator[str]:
    """Warnings about percentages that are likely to be meant as fractions of 1, and about one that is not given."""
    if "verify" in given and given.keys().isdisjoint(("list", "top_percent", "top_params")):
        yield (
            f"--verify compares with the top {selection.DEFAULT_PERCENT} percent, the default; "
            "give the --top-percent that was trained, or --list"
        )
    for name in ("top_percent", "top_params"):
        if name in given and Fraction(1, 100) <= Fraction(given[name]) < 1:
            meant = f"{(Decimal(given[name]) * 100).normalize():f}"
            option = f"--{name.replace('_', '-')}"
            yield f"{option} {given[name]} is less than one percent; write {option} {meant} for {meant} percent"


_Record = TypeVar(
    "_Record", ModelOptions, SelectOptions, SelectOptions | CheckOptions | VerifyOptions | PlotSpectrumOptions
)


def _record(of: type[_Record], given: dict[str, Any]) -> _Record:
    """A record with the given options; the rest have their defaults."""
    return of(**{field.name: given[field.name] for field in fields(of) if field.name in given})


def _spellings(grammar: argparse.ArgumentParser) -> set[str]:
    """All spellings of all options."""
    return {spelling for action in grammar._actions for spelling in action.option_strings}


def _spelling(grammar: argparse.ArgumentParser, name: str) -> str:
    """An option's name as users write it."""
    return next(action.option_strings[-1] for action in grammar._actions if action.dest == name)
