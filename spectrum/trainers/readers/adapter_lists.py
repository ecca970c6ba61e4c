"""Lists of what gets an adapter: what the keys of PEFT, Axolotl, TRL and LLaMA-Factory say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spectrum.errors import SelectionError
from spectrum.trainers.readers.text_lists import arguments_in
from spectrum.trainers.untrusted_yaml import Document, check_name, names_in, shown

_MAX_PATTERN = 1 << 20  # characters; a regular expression may have the names of all layers
ALL_LINEAR = "all-linear"  # to PEFT, in any case
_LISTS = ("lora_target_modules", "lora_target_parameters")
_OF_PEFT = ("target_modules", "target_parameters")
_FREEZE = ("freeze_vision_tower", "freeze_multi_modal_projector")
_SETTINGS = ("adapter", "finetuning_type", "lora_dropout", "use_peft")
KEYS = frozenset({*_LISTS, *_OF_PEFT, *_FREEZE, *_SETTINGS, "lora_target", "lora_target_linear"})


@dataclass(frozen=True, slots=True)
class AdapterList:
    """What a file says about which modules and parameters get an adapter.

    Args:
        reader: the program and its key, for titles: `Axolotl's lora_target_modules`.
        program: the program alone.
        modules: names of modules, or ends of their names after a dot; whole names by `within`.
        pattern: a regular expression for whole paths of modules, in place of `modules`; None if there is none.
        parameters: names of parameters, or ends of them after a dot.
        linear: which word also puts adapters on all linear layers: `all-linear`; None if none does.
        freezes_towers: whether the towers of a model that has some get no adapter. This is for LLaMA-Factory alone.
        freezes_projectors: the same of what joins towers to the language model.
        problems: settings that make the list ineffective, one line each.
        notes: other lines that inform the user.
    """

    reader: str
    program: str
    modules: tuple[str, ...] = ()
    pattern: str | None = None
    parameters: tuple[str, ...] = ()
    linear: str | None = None
    freezes_towers: bool = True
    freezes_projectors: bool = True
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_entries(self) -> int:
        """How many entries the list has."""
        return len(self.modules) + len(self.parameters) + (self.pattern is not None) + (self.linear is not None)


def peft(document: Document) -> AdapterList | None:
    """PEFT's `target_modules` and `target_parameters`."""
    content = document.content
    if content.keys().isdisjoint(_OF_PEFT):
        return None
    modules, pattern, linear = _targets(document, ["target_modules"], content.get("target_modules"))
    parameters = _names(document, "target_parameters")
    problems = [*_dropout(content, parameters, 0), *_defaults(content.get("target_modules"), "target_modules")]
    return AdapterList(
        "PEFT's LoraConfig",
        "PEFT",
        modules,
        pattern,
        parameters,
        linear,
        problems=tuple(problems),
        notes=tuple(_not_applied(content, ("exclude_modules", "layers_to_transform", "modules_to_save"))),
    )


def axolotl(document: Document) -> AdapterList | None:
    """Axolotl's `lora_target_modules`, `lora_target_parameters` and `lora_target_linear`."""
    content = document.content
    if content.keys().isdisjoint((*_LISTS, "lora_target_linear")):
        return None
    modules, pattern, linear = _targets(document, [_LISTS[0]], content.get(_LISTS[0]))
    parameters = _names(document, _LISTS[1])
    if content.get("lora_target_linear") is True:  # Axolotl then takes a regular expression for one more name
        modules, pattern, linear = (*modules, *filter(None, (pattern, linear))), None, "lora_target_linear"
    problems = list(_dropout(content, parameters, 0))
    if not content.keys() <= {*_LISTS, "lora_target_linear", "lora_dropout"} and not content.get("adapter"):
        problems.append("adapter is not set, so Axolotl trains the whole model; set it to lora")
    if linear == "lora_target_linear" and (modules or parameters):
        problems.append("lora_target_linear is true, so all linear layers get adapters besides those that are listed")
    notes = _not_applied(
        content, ("lora_exclude_modules", "peft_layers_to_transform", "lora_modules_to_save", *_OF_PEFT)
    )
    reader = f"Axolotl's {next(key for key in (*_LISTS, 'lora_target_linear') if key in content)}"
    return AdapterList(
        reader, "Axolotl", modules, pattern, parameters, linear, problems=tuple(problems), notes=tuple(notes)
    )


def trl(document: Document) -> AdapterList | None:
    """The keys of TRL's `ModelConfig`: as Axolotl's, in a file that has others of TRL."""
    content = document.content
    if content.keys().isdisjoint(_LISTS) or content.keys().isdisjoint(("use_peft", "model_name_or_path")):
        return None
    keys = (*_LISTS, "lora_dropout", "lora_modules_to_save", *_OF_PEFT)
    given = {key: content[key] for key in keys if key in content}
    return _trl(document, given, uses_peft=content.get("use_peft") is True)


def trl_arguments(document: Document) -> AdapterList | None:
    """TRL's arguments in a text file; None if it holds none of its lists."""
    options = {key.removeprefix("--"): words for key, words in arguments_in(document).items()}
    if options.keys().isdisjoint(_LISTS):
        return None
    given: dict[str, Any] = {key: options[key] for key in (*_LISTS, "lora_modules_to_save") if key in options}
    if options.get("lora_dropout"):
        try:
            given["lora_dropout"] = float(options["lora_dropout"][0])
        except ValueError as error:
            raise SelectionError(f"--lora_dropout in {document.path} is not a number") from error
    return _trl(document, given, uses_peft=options.get("use_peft") in ([], ["True"], ["true"]))


def _trl(document: Document, given: Mapping[str, Any], *, uses_peft: bool) -> AdapterList:
    modules, pattern, linear = _targets(document, [_LISTS[0]], given.get(_LISTS[0]))
    notes = _not_applied(given, ("lora_modules_to_save", *_OF_PEFT))
    if len(modules) == 1:  # as TRL does
        if "." not in modules[0]:
            notes.append(
                rf"TRL takes a single lora_target_modules as a regular expression for whole paths: .*\.{modules[0]}"
            )
        (pattern, linear), modules = _pattern_or_linear(modules[0]), ()
    parameters = _names(document, _LISTS[1], given.get(_LISTS[1]))
    problems = [*_dropout(given, parameters, 0.05), *_defaults(given.get(_LISTS[0]), _LISTS[0])]
    if not uses_peft:
        problems.insert(0, "use_peft is not set, so TRL trains the whole model; set it to true")
    return AdapterList(
        "TRL's lora_target_modules",
        "TRL",
        modules,
        pattern,
        parameters,
        linear,
        problems=tuple(problems),
        notes=tuple(notes),
    )


def llama_factory(document: Document) -> AdapterList | None:
    """LLaMA-Factory's `lora_target`: names with commas between them, or a list, or `all`."""
    content = document.content
    if "lora_target" not in content:
        return None
    value = content["lora_target"]
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",")]
    modules = names_in(document, ["lora_target"], value)
    if not modules:
        raise SelectionError(f"lora_target in {document.path} is empty")
    kind = content.get("finetuning_type", "lora")
    problems = []
    if kind not in ("lora", "oft"):
        problems.append(f"finetuning_type is {shown(kind)}, which does not read lora_target; set it to lora")
    return AdapterList(
        "LLaMA-Factory's lora_target",
        "LLaMA-Factory",
        () if modules == ("all",) else modules,
        linear="lora_target: all" if modules == ("all",) else None,
        freezes_towers=content.get(_FREEZE[0]) is not False,
        freezes_projectors=content.get(_FREEZE[1]) is not False,
        problems=tuple(problems),
        notes=tuple(_not_applied(content, ("additional_target", "use_llama_pro", *_LISTS, *_OF_PEFT))),
    )


def _targets(document: Document, keys: Sequence[str], value: Any) -> tuple[tuple[str, ...], str | None, str | None]:
    """The names of modules that a key has, or its regular expression, or PEFT's word for all linear layers."""
    if value is None:
        return (), None, None
    if not isinstance(value, str):
        return names_in(document, keys, value), None, None
    if not value or len(value) > _MAX_PATTERN or not value.isprintable():
        raise SelectionError(f"{keys[-1]} in {document.path} is empty, longer than any list, or cannot be printed")
    return (), *_pattern_or_linear(value)


def _pattern_or_linear(value: str) -> tuple[str | None, str | None]:
    """What PEFT takes a text for: a regular expression, or its word for all linear layers."""
    return (None, value) if value.lower() == ALL_LINEAR else (value, None)


def _names(document: Document, key: str, value: Any = None) -> tuple[str, ...]:
    value = document.content.get(key) if value is None and isinstance(document.content, dict) else value
    if isinstance(value, str):
        check_name(value, f"{key} in {document.path}")
        raise SelectionError(f"{key} in {document.path} is not a list of names; PEFT knows no patterns of parameters")
    return () if value is None else names_in(document, [key], value)


def _dropout(settings: Mapping[str, Any], parameters: Sequence[str], default: float) -> list[str]:
    """PEFT raises an error at dropout on parameters."""
    if not parameters or not (settings.get("lora_dropout", default) or 0):
        return []
    given = "" if "lora_dropout" in settings else f", which is {default} by default,"
    return [f"lora_dropout{given} must be 0 with target parameters: PEFT raises an error otherwise"]


def _defaults(value: Any, key: str) -> list[str]:
    """PEFT has modules that it adapts in models of a kind if none are named."""
    return (
        []
        if value is not None
        else [f"{key} is missing, so PEFT adapts what it chooses itself; write $^ for no module"]
    )


def _not_applied(settings: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [f"{key} is set, which is not applied here" for key in keys if settings.get(key)]
