"""Whether a list of unfrozen parameters does in a trainer what it says, by the names of the model that trains."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from spectrum import consumers, tables
from spectrum.consumers import AXOLOTL, REGULAR_EXPRESSION, RULES, SUBSTRING, EntryList

if TYPE_CHECKING:
    from spectrum.outline import Outline

# An entry that is a name and no pattern, but for what says that it is whole.
_NAME = re.compile(r"\^?([\w.\-/]*\w)\$?", re.ASCII)

_EXACT = re.compile(r"\^.*\$")


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found.

    trained: under each rule, the parameters that train, tied ones under the name that trainers see. matching: under
    each, how many entries match any. problems: what makes the list do other than it says. notes: what else to know.
    """

    trained: Mapping[str, frozenset[str]]
    matching: Mapping[str, int]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def check(read: EntryList, model: Outline) -> Checked:
    """Compare a list with a model's parameters under the rule of each of those that read it."""
    # Trainers go through `named_parameters()`, where a tied parameter is listed once.
    seen = [name for name, parameter in model.parameters.items() if parameter.tied_to is None]
    matched = {
        name: {entry: frozenset(filter(rule(entry), seen)) for entry in read.entries} for name, rule in RULES.items()
    }
    trained = {rule: frozenset().union(*of.values()) for rule, of in matched.items()}
    problems: list[str] = []
    notes: list[str] = []
    for entry, names in matched[AXOLOTL].items():
        if names:
            problems += _beyond(entry, names, model)
        elif through := _tied(entry, model):
            if through in trained[AXOLOTL]:
                notes.append(f"{entry} is tied to {through}, and trains through that")
            else:
                problems.append(f"{entry} is tied to {through}, which is all that trainers see; write ^{through}$")
        else:
            problems.append(f"{entry} matches nothing{_instead(entry, seen)}")
    if not trained[AXOLOTL]:
        problems.append("nothing trains")
    elif len(trained[AXOLOTL]) == len(seen):
        notes.append("every parameter trains")
    differing = list(_differences(matched, trained))
    if read.settings:  # a trainer's config, which no other reads
        problems += _settings(read)
        notes += differing
    else:
        problems += differing
        if read.lines != read.entries:
            problems.append(
                f"readers of lines that begin with '- ' see {tables.plural(len(read.lines), 'entry', 'entries')}, not "
                f"{len(read.entries)}: write each in a line of its own at the left, without quotes and comments"
                if len(read.lines) != len(read.entries)
                else "readers of lines that begin with '- ' see other entries: write them without quotes and comments"
            )
    exact = [entry for entry in read.entries if _EXACT.fullmatch(entry) and matched[AXOLOTL][entry]]
    if exact:
        notes.append(f"{SUBSTRING}: {tables.listed(exact)} match nothing there, so what they name stays frozen")
    if any(consumers.without_rows(entry) != entry for entry in read.entries):
        notes.append("entries for some rows: the others' gradients are zero, but weight decay moves them")
    return Checked(
        trained, {rule: sum(map(bool, of.values())) for rule, of in matched.items()}, *map(tuple, (problems, notes))
    )


def _beyond(entry: str, names: Iterable[str], model: Outline) -> Iterator[str]:
    """What an entry matches that is not in the module, or is not the parameter, that it names."""
    named = _NAME.fullmatch(consumers.without_rows(entry))
    if named is None or (named[1] not in model.modules and named[1] not in model.parameters):
        return  # a pattern, which may match whatever it does
    others = sorted(name for name in names if name != named[1] and not name.startswith(f"{named[1]}."))
    # The bias beside a bare parameter belongs to it.
    others = [name for name in others if name != f"{named[1]}_bias"]
    if others:
        if named[1] in model.parameters:
            instead = f"write ^{named[1]}$"
        elif f"{named[1]}.weight" in model.parameters:
            instead = f"write {named[1]}.weight"
        else:
            instead = "name the modules in it instead"
        yield f"{entry} also matches {tables.listed(others, 2)}; {instead}"


def _tied(entry: str, model: Outline) -> str | None:
    """The parameter that an entry's is tied to, where it names one that trainers do not see."""
    matches = consumers.axolotl(entry)
    for name, parameter in model.parameters.items():
        if parameter.tied_to is not None and matches(name):
            return parameter.tied_to
    return None


def _instead(entry: str, seen: Iterable[str]) -> str:
    close = difflib.get_close_matches(entry.strip("^$"), list(seen), 1, 0.8)
    return f"; the nearest parameter is {close[0]}" if close else ""


def _differences(
    matched: Mapping[str, Mapping[str, frozenset[str]]], trained: Mapping[str, frozenset[str]]
) -> Iterator[str]:
    """Where another rule trains other parameters than Axolotl's, but for `^...$`, which no substring is."""
    for rule in (REGULAR_EXPRESSION, SUBSTRING):
        expected = trained[AXOLOTL]
        if rule == SUBSTRING:
            kept = [names for entry, names in matched[AXOLOTL].items() if not _EXACT.fullmatch(entry)]
            expected = frozenset().union(*kept)
        for more, verb in ((trained[rule] - expected, "trains"), (expected - trained[rule], "does not train")):
            if more:
                yield f"{rule}: {verb} {tables.listed(sorted(more), 2)}, unlike Axolotl"


def _settings(read: EntryList) -> Iterator[str]:
    """What else in a config of Axolotl's keeps its list from doing what it says."""
    settings = read.settings
    if settings.get("adapter"):
        yield f"adapter: {settings['adapter']} is set: with the list, its own parameters are frozen too; leave it unset"
    plugins = settings.get("plugins")
    if isinstance(plugins, list) and any("SpectrumPlugin" in str(plugin) for plugin in plugins):
        yield "SpectrumPlugin is among the plugins, and replaces this list with its own; remove one of the two"
    checkpointing = settings.get("gradient_checkpointing_kwargs")
    if isinstance(checkpointing, dict) and checkpointing.get("use_reentrant"):
        yield "gradient_checkpointing_kwargs: use_reentrant must be false where parameters are frozen"
    fsdp = _fsdp(settings)
    if fsdp is not None and not fsdp.get("use_orig_params") and str(fsdp.get("fsdp_version", 1)) != "2":
        yield "FSDP 1 needs use_orig_params: true in fsdp_config to mix frozen and trainable parameters"
    if "zero3" in str(settings.get("deepspeed", "")) and any(
        consumers.without_rows(entry) != entry for entry in read.entries
    ):
        yield "DeepSpeed ZeRO-3 shards parameters, so it takes names and no ranges of rows"


def _fsdp(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    config = settings.get("fsdp_config")
    if not settings.get("fsdp") and not config:
        return None
    found = (
        {str(key).removeprefix("fsdp_"): value for key, value in (config or {}).items()}
        if isinstance(config, dict)
        else {}
    )
    return {"fsdp_version": found.get("version", settings.get("fsdp_version", 1)), **found}
