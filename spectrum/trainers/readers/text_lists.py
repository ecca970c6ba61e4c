"""Lists in text files, as `--format names` and `--format swift` write them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from spectrum.errors import SelectionError
from spectrum.trainers.readers import rules
from spectrum.trainers.readers.parameter_lists import ParameterList, Step
from spectrum.trainers.untrusted_yaml import MAX_ENTRIES, Document, check_name

_NAME = re.compile(r"[\w.\-/]+", re.ASCII)


def text_list(document: Document) -> ParameterList | None:
    """The list in a text file: names, one per line, or arguments for ms-swift. None if it is neither."""
    lines = [line.strip() for line in document.text.splitlines() if line.strip()]
    if lines and lines[0].startswith("--"):
        return _swift(document)
    if not lines or not all(map(_NAME.fullmatch, lines)) or not any("." in line for line in lines):
        return None
    if len(lines) > MAX_ENTRIES:
        raise SelectionError(f"{document.path} has {len(lines)} lines, more than any model has parameters")
    for place, name in enumerate(lines, 1):
        check_name(name, f"{document.path}: line {place}")
    step = Step("the file", rules.PARAMETER, tuple(lines), trains=True)
    notes = ("read as the names of the parameters that train, as --format names writes them",)
    return ParameterList("names of parameters that train", "its reader", (step,), others_train=False, notes=notes)


def _swift(document: Document) -> ParameterList | None:
    """Arguments for ms-swift; None if they hold none of its lists."""
    arguments = arguments_in(document)
    keys: Mapping[str, str] = {"--trainable_parameters": rules.PREFIX, "--trainable_parameters_regex": rules.SEARCH}
    steps = [Step(key, rule, tuple(arguments[key]), trains=True) for key, rule in keys.items() if arguments.get(key)]
    if not steps:
        return None
    ratio = arguments.get("--freeze_parameters_ratio")
    others_train = ratio is None or ratio not in (["1"], ["1.0"])
    problems = [] if not others_train else ["--freeze_parameters_ratio 1 is missing, so everything else trains too"]
    if arguments.get("--tuner_type", ["full"]) != ["full"]:
        problems.append(f"--tuner_type is {' '.join(arguments['--tuner_type'])[:40]}; only full reads the list")
    return ParameterList(
        "ms-swift's trainable_parameters", "ms-swift", tuple(steps), others_train, problems=tuple(problems)
    )


def arguments_in(document: Document) -> dict[str, list[str]]:
    """The options in a text file of arguments, each with its words, as a shell splits what `$(cat FILE)` inserts."""
    words = document.text.split()
    if len(words) > MAX_ENTRIES:
        raise SelectionError(f"{document.path} has {len(words)} words, more than any model has parameters")
    options: dict[str, list[str]] = {}
    values: list[str] = []
    for word in words:
        if word.startswith("--"):
            option, is_set, value = word.partition("=")
            values = options[option.replace("-", "_").replace("__", "--", 1)] = [value] if is_set else []
        else:
            if not word.isprintable():
                raise SelectionError(f"{document.path} holds an unprintable character: {word[:40]!r}")
            values.append(word)
    return options
