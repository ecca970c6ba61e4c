"""Lists of parameters or modules that train, or that are frozen: what each reader's file says, and what trains by it.

The rules are those of the readers' own code: NeMo Automodel 0.7 (`components/utils/model_utils.py`), llm-foundry 0.22
(`callbacks/resumption_callbacks.py`), DistillKit 2 (`main.py`), Ludwig 0.11 (`utils/trainer_utils.py`), H2O LLM Studio
(`src/utils/modeling_utils.py`) and ms-swift 4.6 (`utils/transformers_utils.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spectrum.errors import SelectionError
from spectrum.records import ModelInfo
from spectrum.trainers.readers import rules
from spectrum.trainers.readers.rules import Names
from spectrum.trainers.untrusted_yaml import MAX_ENTRIES, Document, check_name, names_in

_NEMO_BOOLEANS = {
    "freeze_vision_tower": ("vision", "visual", "image_encoder"),
    "freeze_audio_tower": ("audio", "audio_encoder", "speech", "sound"),
    "freeze_language_model": ("language", "text", "llm"),
    "freeze_video_embedder": ("patch_generator.video_embedder",),
}
_NEMO_KEYS = ("freeze_modules", "unfreeze_modules", *_NEMO_BOOLEANS)


@dataclass(frozen=True, slots=True)
class Step:
    """Entries that are matched by one rule, and what becomes of the parameters that they select.

    Args:
        key: where the entries stand.
        rule: of `rules`.
        entries: the entries.
        trains: whether what they select trains from then on; if not, it is frozen.
        must_match: whether the reader stops with an error at an entry that matches nothing.
    """

    key: str
    rule: str
    entries: tuple[str, ...]
    trains: bool
    must_match: bool = False


@dataclass(frozen=True, slots=True)
class ParameterList:
    """What a file says about which parameters train.

    Args:
        reader: the program and its key, for titles: `NeMo Automodel's freeze_config`.
        program: the program alone.
        steps: what the reader does, in order.
        others_train: whether parameters that no entry selects train.
        prefix: what the program puts before the names of the model, because it wraps it.
        problems: settings that make the list ineffective, one line each.
        notes: other lines that inform the user.
    """

    reader: str
    program: str
    steps: tuple[Step, ...]
    others_train: bool
    prefix: str = ""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_entries(self) -> int:
        """How many entries the list has."""
        return sum(len(step.entries) for step in self.steps)


@dataclass(frozen=True, slots=True)
class Trained:
    """What a list does to a model.

    Args:
        names: the parameters that train. Of tied parameters, only the owner is among them.
        by_entry: for each step, what each of its entries selects, under the names that the reader sees.
    """

    names: frozenset[str]
    by_entry: tuple[Mapping[str, frozenset[str]], ...] = field(repr=False)


def trained(found: ParameterList, model: ModelInfo) -> Trained:
    """What a list does to a model. Raises SelectionError if an entry is not a valid pattern, or takes too long."""
    names = Names.of(model, found.prefix)
    train = set(names.seen) if found.others_train else set()
    by_entry = tuple(rules.matched(step.rule, step.entries, names) for step in found.steps)
    for step, own in zip(found.steps, by_entry, strict=True):
        for selected in own.values():
            train = train | selected if step.trains else train - selected
    return Trained(frozenset(name.removeprefix(found.prefix) for name in train), by_entry)


# Whole configs, or the part with the list alone. Each returns None if the keys are not there.


def nemo(document: Document) -> ParameterList | None:
    """NeMo Automodel's `freeze_config`, at the top level of a recipe; or what stands under it, alone."""
    content = document.content
    keys = ["freeze_config"] if "freeze_config" in content else []
    config = content["freeze_config"] if keys else content
    if not keys and content.keys().isdisjoint(_NEMO_KEYS[:2]):
        return None
    name = f"freeze_config in {document.path}"
    if not isinstance(config, dict):
        raise SelectionError(f"{name} is not a mapping with freeze_modules and unfreeze_modules")
    if keys and (unknown := [str(key)[:40] for key in config if key not in _NEMO_KEYS]):
        known = ", ".join(_NEMO_KEYS)
        raise SelectionError(f"{name} has {unknown[0]!r}, which NeMo Automodel refuses; it knows {known}")
    steps = list(_nemo_booleans(config, name))
    for key, trains in (("freeze_modules", False), ("unfreeze_modules", True)):
        paths, globs = _nemo_selectors(config.get(key, []), key, name)
        where = ".".join([*keys, key])
        steps += [
            Step(where, rule, entries, trains, must_match=True)
            for rule, entries in ((rules.MODULE, paths), (rules.GLOB, globs))
            if entries
        ]
    has_adapters = bool(keys) and bool(content.get("peft"))
    notes = ["peft is set too: adapters train besides what unfreeze_modules selects"] if has_adapters else []
    if _get(content.get("model"), "force_hf") is not True:
        notes.append("NeMo Automodel has classes of its own for some models; model.force_hf: true keeps these names")
    if not steps:
        raise SelectionError(f"{name} is empty; NeMo Automodel trains everything then")
    reader = "NeMo Automodel's freeze_config"
    return ParameterList(reader, "NeMo Automodel", tuple(steps), not has_adapters, notes=tuple(notes))


def _nemo_booleans(config: Mapping[str, Any], name: str) -> Iterator[Step]:
    """What older keys freeze. The vision tower is frozen unless the config has lists, or says otherwise."""
    has_lists = not config.keys().isdisjoint(_NEMO_KEYS[:2])
    for key, parts in _NEMO_BOOLEANS.items():
        value = config.get(key)
        if value is not None and not isinstance(value, bool):
            raise SelectionError(f"{name}: {key} is neither true nor false")
        if value or (value is None and key == "freeze_vision_tower" and not has_lists):
            yield Step(key, rules.IN_MODULE, parts, trains=False)


def _nemo_selectors(value: Any, key: str, name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The paths and the patterns in a list of NeMo's."""
    if not isinstance(value, list) or len(value) > MAX_ENTRIES:
        raise SelectionError(f"{name}: {key} is not a list of entries such as {{path: model.norm}}")
    paths: list[str] = []
    globs: list[str] = []
    for place, entry in enumerate(value, 1):
        text = next(iter(entry.values())) if isinstance(entry, dict) and len(entry) == 1 else None
        if text is None or not isinstance(text, str) or not text or not entry.keys() <= {"path", "glob"}:
            raise SelectionError(f"{name}: entry {place} of {key} is neither {{path: ...}} nor {{glob: ...}}")
        check_name(text, f"{name}: entry {place} of {key}")
        (paths if "path" in entry else globs).append(text)
    return tuple(paths), tuple(globs)


def llm_foundry(document: Document) -> ParameterList | None:
    """llm-foundry's callback `layer_freezing`."""
    keys, value = _at(document.content, ("callbacks", "layer_freezing", "layer_names"))
    if not keys:
        return None
    names = _listed(document, keys, value)
    is_adapted = _get(_get(document.content, "model"), "peft_config")
    problems = ["model.peft_config is set, so only its adapters train; remove it"] if is_adapted else []
    step = Step(".".join(keys), rules.PARAMETER, names, trains=False, must_match=True)
    # It freezes what its own model holds as `model`.
    return _frozen("llm-foundry", "layer_freezing", (step,), prefix="model.", problems=problems)


def distillkit(document: Document) -> ParameterList | None:
    """DistillKit 2's `frozen_modules` and `frozen_res`."""
    content = document.content
    steps = [
        Step(key, rule, _listed(document, [key], content[key]), trains=False, must_match=must_match)
        for key, rule, must_match in (("frozen_modules", rules.MODULE, True), ("frozen_res", rules.SEARCH, False))
        if content.get(key)
    ]
    return _frozen("DistillKit", " and ".join(step.key for step in steps), steps) if steps else None


def ludwig(document: Document) -> ParameterList | None:
    """Ludwig's `layers_to_freeze_regex`, one regular expression."""
    keys, value = _at(document.content, ("trainer", "layers_to_freeze_regex"))
    if not keys:
        return None
    key = ".".join(keys)
    if not isinstance(value, str) or not value:
        raise SelectionError(f"{key} in {document.path} is not a regular expression")
    if len(value) > 1 << 20 or not value.isprintable():
        raise SelectionError(f"{key} in {document.path} is longer than any list, or cannot be printed")
    problems = ["adapter is set, so only the adapter trains; remove it"] if document.content.get("adapter") else []
    step = Step(key, rules.SEARCH, (value,), trains=False)
    return _frozen("Ludwig", "layers_to_freeze_regex", (step,), prefix="model.", problems=problems)


def h2o(document: Document) -> ParameterList | None:
    """H2O LLM Studio's `freeze_layers`."""
    keys, value = _at(document.content, ("training", "freeze_layers"))
    if not keys or not (isinstance(value, list) and value):
        return None
    settings = document.content.get("training")
    uses_lora = len(keys) > 1 and isinstance(settings, dict) and settings.get("lora", True) is not False
    problems = (
        ["training.lora is on, which is the default, so only the adapter trains; set it to false"] if uses_lora else []
    )
    step = Step(".".join(keys), rules.SUBSTRING, _listed(document, keys, value), trains=False)
    # It holds the model as `backbone`.
    return _frozen("H2O LLM Studio", "freeze_layers", (step,), prefix="backbone.", problems=problems)


def _frozen(
    program: str, key: str, steps: Sequence[Step], *, prefix: str = "", problems: Sequence[str] = ()
) -> ParameterList:
    return ParameterList(f"{program}'s {key}", program, tuple(steps), True, prefix, tuple(problems))


def _at(content: Mapping[str, Any], keys: Sequence[str]) -> tuple[list[str], Any]:
    """The value of the last of these keys, and the keys above it. A part of a config may lack the first ones."""
    for start in range(len(keys)):
        value: Any = content
        for key in keys[start:]:
            value = _get(value, key, _MISSING)
        if value is not _MISSING:
            return list(keys[start:]), value
    return [], None


_MISSING = object()


def _get(settings: object, key: str, default: Any = None) -> Any:
    return settings.get(key, default) if isinstance(settings, dict) else default


def _listed(document: Document, keys: Sequence[str], value: Any) -> tuple[str, ...]:
    names = names_in(document, keys, value)
    if not names:
        raise SelectionError(f"{'.'.join(keys)} in {document.path} is empty; everything trains then")
    return names
