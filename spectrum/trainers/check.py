"""Whether a list of unfrozen parameters does in a trainer what it says, by the names of the model that trains."""

from __future__ import annotations

import difflib
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spectrum.records import ModelInfo
from spectrum.text import listed, plural
from spectrum.trainers import matching
from spectrum.trainers.lists import EntryList
from spectrum.trainers.matching import AXOLOTL, REGULAR_EXPRESSION, RULES, SUBSTRING

# An entry that is no pattern, but what names begin with; and a name, whether or not something says that it is whole.
_PLAIN = re.compile(r"[\w.\-/]+", re.ASCII)
_NAME = re.compile(r"\^?([\w.\-/]*\w)\$?", re.ASCII)
_TOLD = 5  # entries that match nothing

# What Axolotl's freeze_mm_modules goes by.
_MULTIMODAL = {
    *("vision_tower", "vision_model", "vision_encoder", "embed_vision", "multi_modal_projector", "visual"),
    *("audio_tower", "audio_model", "embed_audio"),
}


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What was found.

    trained: under each rule, the parameters that train, tied ones under the name that trainers see. matching: under
    each, how many entries match any. problems: what makes the list do other than it says. notes: what else to know.
    """

    trained: Mapping[str, frozenset[str]]
    matching: Mapping[str, int]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def check_list(read: EntryList, model: ModelInfo) -> CheckReport:
    """Compare a list with a model's parameters under the rule of each of those that read it."""
    # Trainers go through `named_parameters()`, where a tied parameter is listed once.
    seen = [name for name, parameter in model.parameters.items() if parameter.tied_to is None]
    matched = {rule: matching.matched(rule, read.entries, seen) for rule in RULES}
    trained = {rule: frozenset().union(*of.values()) for rule, of in matched.items()}
    of_axolotl = matched[AXOLOTL]
    known = {*model.parameters, *model.modules}
    nothing = _tied([entry for entry, names in of_axolotl.items() if not names], model)
    problems = [
        *_unmatched(nothing, trained[AXOLOTL], model),
        *(text for entry, names in of_axolotl.items() for text in _beyond(entry, names, model, known)),
        *(text for entry, names in of_axolotl.items() for text in _rows(entry, names, model)),
    ]
    notes = [
        f"{entry} is tied to {through}, and trains through that"
        for entry, through in nothing.items()
        if through in trained[AXOLOTL]
    ]
    notes += [
        f"{entry} is the name of no module, and matches as their beginning {listed(sorted(names), 2)}"
        for entry, names in of_axolotl.items()
        if names and _PLAIN.fullmatch(entry) and entry not in known
    ]
    if not trained[AXOLOTL]:
        problems.append("nothing trains")
    elif len(trained[AXOLOTL]) == len(seen):
        notes.append("every parameter trains")
    differences = _differences(matched, trained)
    if read.settings:  # a trainer's config, which no other reads
        problems += _settings(read, sorted(trained[AXOLOTL]))
        notes += differences
    else:
        problems += [*differences, *_lines(read)]
    patterns = [entry for entry, names in of_axolotl.items() if names and not _PLAIN.fullmatch(entry)]
    if patterns:
        notes.append(f"{SUBSTRING}: nothing matches what is more than a name, {listed(patterns)}")
    if any(matching.without_rows(entry) != entry for entry in read.entries):
        notes.append("entries for some rows: the others' gradients are zero, but weight decay moves them")
    num_matching = {rule: sum(map(bool, of.values())) for rule, of in matched.items()}
    return CheckReport(trained, num_matching, tuple(problems), tuple(notes))


def _unmatched(entries: Mapping[str, str | None], trained: frozenset[str], model: ModelInfo) -> Iterator[str]:
    """Entries that match nothing that trainers see, and what theirs is tied to.

    Of a list for another model, these are all: a few are told.
    """
    for entry, through in entries.items():
        if through is not None and through not in trained:
            yield f"{entry} is tied to {through}, which is all that trainers see; write ^{through}$"
    nothing = [entry for entry, through in entries.items() if through is None]
    for entry in nothing[:_TOLD]:
        close = _nearest(entry, model)
        yield f"{entry} matches nothing{f'; the nearest name is {close}' if close else ''}"
    if len(nothing) > _TOLD:
        rest = plural(len(nothing) - _TOLD, "more entry matches", "more entries match")
        yield f"{rest} nothing; is the list for another model, or another class of this one (--model-class)?"


def _lines(read: EntryList) -> Iterator[str]:
    """What readers of lines see otherwise than readers of YAML."""
    advice = "write each in a line of its own, at the left, without quotes and comments"
    if len(read.lines) != len(read.entries):
        seen = plural(len(read.lines), "entry", "entries")
        yield f"readers of lines that begin with '- ' see {seen}, not {len(read.entries)}: {advice}"
    elif read.lines != read.entries:
        yield f"readers of lines that begin with '- ' see other entries: {advice}"


def _beyond(entry: str, names: Iterable[str], model: ModelInfo, known: Container[str]) -> Iterator[str]:
    """What an entry matches that is not in the module, or is not the parameter, that it names."""
    named = _NAME.fullmatch(matching.without_rows(entry))
    if named is None or named[1] not in known:
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
        yield f"{entry} also matches {listed(others, 2)}; {instead}"


def _rows(entry: str, names: Iterable[str], model: ModelInfo) -> Iterator[str]:
    """Rows that a parameter does not have, which Axolotl refuses."""
    rows = matching.rows(entry)
    if rows is None:
        return
    start, end = rows
    if end is not None and start >= end:
        yield f"{entry} is for no row, which Axolotl refuses"
        return
    short = [name for name in sorted(names) if max(start + 1, end or 0) > (model.parameters[name].shape or (0,))[0]]
    if short:
        yield f"{entry} is for rows that {listed(short, 2)} does not have, which Axolotl refuses"


def _tied(entries: Sequence[str], model: ModelInfo) -> dict[str, str | None]:
    """Entries, and the parameter that the one which each names is tied to, where it names one that trainers do not see.

    None for all others.
    """
    seen = model.tied()
    matched = matching.matched(AXOLOTL, entries, list(seen))
    return {entry: next((seen[name] for name in seen if name in matched[entry]), None) for entry in entries}


def _nearest(entry: str, model: ModelInfo) -> str | None:
    names = [*model.parameters]
    modules = {name.removesuffix(end) for name in names for end in (".weight", ".bias") if name.endswith(end)}
    return next(iter(difflib.get_close_matches(entry.strip("^$"), [*names, *sorted(modules)], 1, 0.8)), None)


def _differences(
    matched: Mapping[str, Mapping[str, frozenset[str]]], trained: Mapping[str, frozenset[str]]
) -> Iterator[str]:
    """Where another rule trains other parameters than Axolotl's, but for patterns, which no substring is."""
    for rule in (REGULAR_EXPRESSION, SUBSTRING):
        expected = trained[AXOLOTL]
        if rule == SUBSTRING:
            kept = [names for entry, names in matched[AXOLOTL].items() if _PLAIN.fullmatch(entry)]
            expected = frozenset().union(*kept)
        for more, verb in ((trained[rule] - expected, "trains"), (expected - trained[rule], "does not train")):
            if more:
                yield f"{rule}: {verb} {listed(sorted(more), 2)}, unlike Axolotl"


def _settings(read: EntryList, trained: Iterable[str]) -> Iterator[str]:
    """What else in a config of Axolotl's keeps its list from doing what it says."""
    settings = read.settings
    if adapter := settings.get("adapter"):
        name = f": {adapter}" if isinstance(adapter, str) else ""
        yield f"adapter{name} is set: with the list, its own parameters are frozen too; leave it unset"
    for quantized in ("load_in_4bit", "load_in_8bit"):
        if settings.get(quantized) is True and not settings.get("adapter"):
            yield f"{quantized} is set: quantized weights take adapters, and do not train"
    plugins = settings.get("plugins")
    if isinstance(plugins, list) and any(isinstance(each, str) and "SpectrumPlugin" in each for each in plugins):
        yield "SpectrumPlugin is among the plugins, and replaces this list with its own; remove one of the two"
    if _within(settings.get("gradient_checkpointing_kwargs"), "use_reentrant"):
        yield "gradient_checkpointing_kwargs: use_reentrant must be false where parameters are frozen"
    if settings.get("freeze_mm_modules") is True:
        frozen = [name for name in trained if not _MULTIMODAL.isdisjoint(name.split("."))]
        if frozen:
            yield f"freeze_mm_modules freezes again {listed(frozen, 2)}; leave it unset, or the entries out"
    fsdp = _fsdp(settings)
    if fsdp is not None and not fsdp.get("use_orig_params") and fsdp.get("version") not in (2, "2"):
        yield "FSDP 1 needs use_orig_params: true in fsdp_config to mix frozen and trainable parameters"
    if _is_zero3(settings.get("deepspeed")) and any(matching.without_rows(entry) != entry for entry in read.entries):
        yield "DeepSpeed ZeRO-3 shards parameters, so it takes names and no ranges of rows"


def _fsdp(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """A config's settings of FSDP, however they are spelt; None where it has none."""
    config = settings.get("fsdp_config")
    if not settings.get("fsdp") and not config:
        return None
    own = config if isinstance(config, dict) else {}
    spelt = {str(key): value for key, value in own.items() if isinstance(key, str)}
    return {"version": settings.get("fsdp_version"), **{key.removeprefix("fsdp_"): spelt[key] for key in spelt}}


def _is_zero3(deepspeed: object) -> bool:
    """DeepSpeed's settings are in a file, that usually says which stage it is for, or in the config itself."""
    if isinstance(deepspeed, str):
        return "zero3" in deepspeed
    return _within(_within(deepspeed, "zero_optimization"), "stage") in (3, "3")


def _within(settings: object, key: str) -> Any:
    return settings.get(key) if isinstance(settings, dict) else None
