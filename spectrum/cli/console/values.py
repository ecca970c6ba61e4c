"""How is the value of an option read? From text, each with the message that says what is wrong with it."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import Literal

from spectrum.checkpoint.remote.model_names import ModelName, parse_model_name
from spectrum.compute.batches import parse_batch_size
from spectrum.compute.device_names import check_device_name
from spectrum.errors import DeviceError
from spectrum.selection import order, selection
from spectrum.text import nearest, proposal
from spectrum.trainers.formats import formats

_MAX_GPUS = 1_000_000


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


def other_model(text: str) -> str:
    """A model to compare with: its name, or the JSON file of its scan."""
    if text.lower().endswith(".json"):  # of a scan
        return str(path(text))
    if text.lower().endswith((".yaml", ".yml")) and os.path.isfile(text):
        raise argparse.ArgumentTypeError(f"{text} is a list; give the model itself, or the JSON file of its scan")
    model = model_name(text)
    if model.revision is not None:
        raise argparse.ArgumentTypeError(f"{text!r} names a revision, and a model to compare with has its default")
    return model.name


def list_format(text: str) -> str:
    """The name of a format of the list."""
    if text in formats.FORMATS:
        return text
    hint = proposal(nearest(text, formats.FORMATS)) or f"; there are {', '.join(map(repr, formats.FORMATS))}"
    if text.lower() not in formats.FORMATS and (found := formats.formats_for(text)):
        hint = f"; {next(iter(found.values()))} reads {' or '.join(found)}"
    raise argparse.ArgumentTypeError(f"there is no format {text!r}{hint}")


def device(text: str) -> str:
    """The name of a device, or `auto`."""
    try:
        check_device_name(text)
    except DeviceError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def percent(text: str) -> str:
    """A percentage, as typed."""
    try:
        return selection.parse_percent(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def order_of_layers(text: str) -> str:
    """The order in which layers are selected."""
    try:
        return order.parse_order(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def gpus(text: str) -> int:
    """A number of GPUs."""
    if not (re.fullmatch(r"\d{1,9}", text, re.ASCII) and 0 < int(text) <= _MAX_GPUS):
        raise argparse.ArgumentTypeError(f"a number of GPUs is expected, such as 8, not {text!r}")
    return int(text)


def batch_size(text: str) -> int | Literal["auto"]:
    """A number of matrices, or `auto`."""
    try:
        return parse_batch_size(text) or "auto"
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
