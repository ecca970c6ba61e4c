"""Which modules and parameters get an adapter by PEFT's rule (0.21: `tuners/tuners_utils.py`), and which cannot?"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from spectrum.errors import SelectionError
from spectrum.records import ModelInfo
from spectrum.trainers import matching
from spectrum.trainers.adaptable import why_not
from spectrum.trainers.llama_factory import Composite, composite
from spectrum.trainers.readers.adapter_lists import ALL_LINEAR, AdapterList
from spectrum.trainers.readers.rules import pattern_problem

_LINEAR = frozenset({"Linear", "Conv1D"})

# What PEFT makes of the names that experts and router have in transformers 4, and the classes in which it does so. It
# then adapts those of all layers, whatever comes before the name.
_OF_MIXTRAL = {"gate": "gate.weight", "w1": "gate_up_proj", "w3": "gate_up_proj", "w2": "down_proj"}
_OF_OTHERS = {"gate": "gate.weight", "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj", "down_proj": "down_proj"}
_TOGETHER = ({"w1", "w3"}, {"gate_proj", "up_proj"})
_WITH_FORMER = (
    *("Mixtral", "MiniMax", "Afmoe", "DeepseekV2", "DeepseekV3", "DeepseekV32", "Dots1", "Ernie4_5_Moe", "Glm4Moe"),
    *("GlmMoeDsa", "Glm4vMoe", "LongcatFlash", "SolarOpen", "Qwen3Moe", "Qwen3Next", "Qwen3OmniMoe", "HunYuanMoEV1"),
    *("FlexOlmo", "Olmoe", "ExaoneMoe", "Cohere2Moe"),
)


@dataclass(frozen=True, slots=True)
class Adapted:
    """What gets an adapter.

    Args:
        by_entry: for each entry, the modules and parameters that it selects.
        modules: the paths of all modules that get an adapter.
        parameters: the names of all other parameters that get one.
        unfit: modules and parameters that are selected but take no adapter, each with the reason.
        former: entries that PEFT takes for the fused experts, or the routers, of all layers.
        halves: entries at which PEFT stops, because they name only one of two matrices that are fused.
        widened: what the pattern selects beyond what it matches, because PEFT puts names in its place.
        names: the parameters that the adapters change. Of tied parameters, only the owner is among them.
    """

    by_entry: Mapping[str, frozenset[str]]
    modules: frozenset[str]
    parameters: frozenset[str]
    unfit: Mapping[str, str]
    former: frozenset[str]
    halves: frozenset[str]
    widened: frozenset[str]
    names: frozenset[str]


def adapted(found: AdapterList, model: ModelInfo) -> Adapted:
    """What gets an adapter in a model. Raises SelectionError if a pattern is not valid, or takes too long."""
    # For each entry, the names that PEFT looks for in its place.
    words: dict[str, tuple[str, ...]] = {entry: (entry,) for entry in found.modules}
    modules: dict[str, frozenset[str]] = {}
    matched = frozenset[str]()
    if found.pattern is not None:
        matched = modules[found.pattern] = _matching(found.pattern, model.modules)
        if _former_names(model):
            words[found.pattern] = _ends_matching(found.pattern, modules.pop(found.pattern), model)
    if found.linear is not None:
        words[found.linear] = _linear(found, found.linear, model)
    former = {word: new for own in words.values() for word in own if (new := _former(word, model)) is not None}
    plain = [word for own in words.values() for word in own if word not in former]
    parts = composite(model.model_class) if found.program == "LLaMA-Factory" else None
    by_word = _ending(plain, model.modules) if parts is None else _within(plain, model, _left_out(found, parts))
    # PEFT looks at the parameters of each module, so it finds a tied one under each of its names.
    parameters = _ending(list(dict.fromkeys([*found.parameters, *former.values()])), model.parameters)
    by_word |= {word: parameters[new] for word, new in former.items()}
    modules |= {entry: _all({word: by_word[word] for word in own}) for entry, own in words.items()}
    paths = _all(modules) & model.modules
    names = (_all(modules) - model.modules) | _all({entry: parameters[entry] for entry in found.parameters})
    unfit = {path: why for path in paths if (why := _unfit_module(path, model)) is not None}
    unfit |= {name: why for name in names if (why := _unfit_parameter(name, paths, model)) is not None}
    own_modules, own_parameters = paths - unfit.keys(), names - unfit.keys()
    ends = {word.rpartition(".")[2] for word in former}
    apart = {end for pair in _TOGETHER if len(pair & ends) == 1 for end in pair}
    weights = {model.owner(name) for path in own_modules for name in _weights(path, model)}
    return Adapted(
        by_entry=modules | {entry: parameters[entry] for entry in found.parameters},
        modules=own_modules,
        parameters=own_parameters,
        unfit=unfit,
        former=frozenset(entry for entry, own in words.items() if not former.keys().isdisjoint(own)),
        halves=frozenset(
            entry for entry, own in words.items() if any(word.rpartition(".")[2] in apart for word in own)
        ),
        widened=modules[found.pattern] - matched if found.pattern is not None else frozenset(),
        names=frozenset(weights | set(map(model.owner, own_parameters))),
    )


def _all(found: Mapping[str, Iterable[str]]) -> frozenset[str]:
    return frozenset().union(*found.values())


def _ending(entries: Sequence[str], names: Collection[str]) -> dict[str, frozenset[str]]:
    """For each entry, the names that it is, or that end with it after a dot."""
    found: dict[str, set[str]] = {entry: set() for entry in entries}
    for name in names:
        for start in (0, *(i + 1 for i, letter in enumerate(name) if letter == ".")):
            if (own := found.get(name[start:])) is not None:
                own.add(name)
    return {entry: frozenset(own) for entry, own in found.items()}


def _left_out(found: AdapterList, parts: Composite) -> frozenset[str]:
    """Words of the paths of modules that get no adapter of LLaMA-Factory in a model with towers."""
    towers = parts.towers if found.freezes_towers else frozenset[str]()
    return parts.never | towers | (parts.projectors if found.freezes_projectors else frozenset[str]())


def _within(entries: Sequence[str], model: ModelInfo, left_out: frozenset[str]) -> dict[str, frozenset[str]]:
    """For each entry, the modules in whose paths it occurs, as LLaMA-Factory takes it in a model with towers."""
    paths = [path for path in model.modules if not any(word in path for word in left_out)]
    return {entry: frozenset(path for path in paths if entry in path) for entry in entries}


def _matching(pattern: str, paths: Collection[str]) -> frozenset[str]:
    try:
        return frozenset(matching.match_patterns([pattern], sorted(paths), "fullmatch")[0])
    except matching.PatternError as error:
        raise SelectionError(pattern_problem(pattern[:100], error)) from error


def _linear(found: AdapterList, word: str, model: ModelInfo) -> tuple[str, ...]:
    """The names that a word for all linear layers stands for.

    By PEFT's, they are whole paths, but not the output head's. By that of others, they are the ends of paths, which
    also select all other modules with such an end.
    """
    is_peft = word.lower() == ALL_LINEAR
    classes = _LINEAR if is_peft else {"Linear"}
    linear = {path for path in model.modules if _class(path, model) in classes}
    head = (model.head or "").removesuffix(".weight")
    if is_peft:
        if (former := _former_names(model)) is None:
            return tuple(sorted(linear - {head}))
        return tuple(sorted({path.rpartition(".")[2] for path in linear - {head}} | former.keys()))
    if found.program == "LLaMA-Factory":
        parts = composite(model.model_class)
        left_out = {"lm_head"} if parts is None else {"lm_head", *parts.projectors}
        left_out |= parts.towers if parts is not None and found.freezes_towers else frozenset()
        linear = {path for path in linear if not any(word in path for word in left_out)}
    return tuple(sorted({path.rpartition(".")[2] for path in linear if path != head}))


def _former_names(model: ModelInfo) -> Mapping[str, str] | None:
    """The names that PEFT takes for fused parameters in models of this class; None if it takes none so."""
    if not model.model_class.startswith(_WITH_FORMER):
        return None
    return _OF_MIXTRAL if model.model_class.startswith(("Mixtral", "MiniMax")) else _OF_OTHERS


def _former(entry: str, model: ModelInfo) -> str | None:
    """The fused parameter that PEFT takes an entry for; None if it takes it as it is."""
    return (_former_names(model) or {}).get(entry.rpartition(".")[2])


def _ends_matching(pattern: str, paths: Iterable[str], model: ModelInfo) -> tuple[str, ...]:
    """The ends of the names that a pattern matches, which PEFT puts in its place where it knows former names.

    So it then adapts all layers, even if the pattern is for some of them.
    """
    former = _former_names(model) or {}
    before = [
        f"{name.rpartition('.')[0]}.{old}"
        for name in model.parameters
        for old, new in former.items()
        if name.rpartition(".")[2] == new
    ]
    matched = {*paths, *_matching(pattern, {*model.parameters, *before})}
    return tuple(sorted({name.rpartition(".")[2] for name in matched}))


def _class(path: str, model: ModelInfo) -> str | None:
    """The class of a module, as `Parameter.module` has it."""
    parameter = next((model.parameters[name] for name in _weights(path, model)), None)
    return None if parameter is None else parameter.module


def _weights(path: str, model: ModelInfo) -> list[str]:
    """The parameters of a module to which its adapter adds."""
    own = [f"{path}.{name}" for name in ("weight", "in_proj_weight")]
    return [name for name in own if name in model.parameters]


def _unfit_module(path: str, model: ModelInfo) -> str | None:
    """Why a module takes no adapter; None if it takes one."""
    if not _weights(path, model):
        return "it has no weight of its own"
    return why_not(path, _class(path, model), model)


def _unfit_parameter(name: str, adapted_modules: Collection[str], model: ModelInfo) -> str | None:
    """Why a parameter takes no adapter; None if it takes one. adapted_modules: the modules that are to get one."""
    module = name.rpartition(".")[0]
    if not module:
        return "it is in no module"
    if module in adapted_modules:
        return "its module gets an adapter too"
    dimensions = len(model.parameters[name].shape)
    return None if dimensions in (2, 3) else f"it has {dimensions} dimension{'' if dimensions == 1 else 's'}"
