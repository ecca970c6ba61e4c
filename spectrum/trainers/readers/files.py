"""What does a file say about what trains? `read_any` recognises its reader by its keys; `trained_by` says what trains.

Both are for everyone who is given a list: the check, and the comparison of a trained model with its list.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from spectrum.errors import SelectionError
from spectrum.records import ModelInfo
from spectrum.trainers import lists, matching
from spectrum.trainers.lists import EntryList
from spectrum.trainers.readers import adapter_lists, parameter_lists, text_lists
from spectrum.trainers.readers.adapter_lists import AdapterList
from spectrum.trainers.readers.adapters import adapted
from spectrum.trainers.readers.parameter_lists import ParameterList
from spectrum.trainers.readers.plugin import PluginList, plugin
from spectrum.trainers.untrusted_yaml import Document, in_lines, parse, read_text, repeated

_OTHERS = (
    "; also read are NeMo Automodel's freeze_config, lists of llm-foundry, DistillKit, Ludwig and H2O LLM Studio, "
    "and the keys of adapters"
)


@dataclass(frozen=True, slots=True)
class ParameterLists:
    """The lists of parameters in one file: one, or one for each of several readers, as `--format frozen` writes them.

    Args:
        lists: at least one.
        repeated: keys that stand several times, each with the numbers of its lines. YAML keeps the last.
    """

    lists: tuple[ParameterList, ...]
    repeated: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def reader(self) -> str:
        """Whose lists they are, for titles."""
        *others, last = (found.reader for found in self.lists)
        return f"{', '.join(others)} and {last}" if others else last

    @property
    def num_entries(self) -> int:
        """How many entries they have together."""
        return sum(found.num_entries for found in self.lists)


SomeList = EntryList | ParameterLists | AdapterList | PluginList

_PARAMETER_LISTS: Sequence[Callable[[Document], ParameterList | None]] = (
    parameter_lists.nemo,
    parameter_lists.llm_foundry,
    parameter_lists.distillkit,
    parameter_lists.ludwig,
    parameter_lists.h2o,
)
_ADAPTER_LISTS: Sequence[Callable[[Document], AdapterList | None]] = (
    adapter_lists.llama_factory,
    adapter_lists.trl,
    adapter_lists.axolotl,
    adapter_lists.peft,
)


def read_any(path: Path) -> SomeList:
    """The list in a file that others may have written: a YAML file, a whole config, or text as `--format` writes it.

    The first of these that the file has is read: Axolotl's `unfrozen_parameters`; its SpectrumPlugin, for which the
    scan in the working directory is read too; lists of parameters or modules; keys of adapters. A text file holds
    names, or arguments for ms-swift or TRL.

    Raises SelectionError if there is no list, if it is malformed, or if it is more than any list.
    """
    text = read_text(path)
    if text.lstrip().startswith("--") and not text.lstrip().startswith("---"):
        return _of_text(Document(path, text, None, None), None)
    document = parse(path, text, lists.KEY)
    content = document.content
    if isinstance(content, str):
        return _of_text(document, lambda document: lists.list_in(document, _OTHERS))
    if not isinstance(content, dict) or lists.KEY in content:
        return lists.list_in(document, _OTHERS)
    if (by_plugin := plugin(document)) is not None:
        return by_plugin
    found = tuple(own for read in _PARAMETER_LISTS if (own := read(document)) is not None)
    if found:
        return ParameterLists(found, tuple(repeated(document.root)))
    for read_adapters in _ADAPTER_LISTS:
        if (adapters := read_adapters(document)) is not None:
            return replace(adapters, problems=(*_repeated(document), *adapters.problems))
    return lists.list_in(document, _OTHERS)  # which says where the list is instead


def _repeated(document: Document) -> Iterator[str]:
    """Problems of keys of adapters that stand several times."""
    for key, lines in repeated(document.root):
        if key in adapter_lists.KEYS:
            yield f"{key} stands {in_lines(lines)}, and only the last counts; merge them"


def _of_text(document: Document, otherwise: Callable[[Document], SomeList] | None) -> SomeList:
    """The list in a text file, which to YAML is one text, or none."""
    found = text_lists.text_list(document)
    if found is not None:
        return ParameterLists((found,))
    adapters = adapter_lists.trl_arguments(document) if otherwise is None else None
    if adapters is not None:
        return adapters
    if otherwise is not None:
        return otherwise(document)
    raise SelectionError(f"{document.path} has arguments, and neither trainable_parameters nor lora_target_modules")


def trained_by(found: SomeList, model: ModelInfo) -> frozenset[str]:
    """The parameters of a model that a list trains: those whose values training changes.

    Of tied parameters, only the owner is among them. Of a list for adapters, they are the parameters that an adapter is
    added to. Entries that match nothing have no effect; the check tells them.

    Raises SelectionError if lists for several readers in one file differ in what trains, if the plugin has no scan to
    make its list from, or if an entry is not a valid pattern.

    Args:
        found: what `read_any` returned.
        model: the model, at least with the names of all parameters and modules, and its class if the list is for
            adapters.
    """
    if isinstance(found, AdapterList):
        return adapted(found, model).names
    if isinstance(found, ParameterLists):
        sets = {own.reader: parameter_lists.trained(own, model).names for own in found.lists}
        if len(set(sets.values())) > 1:
            raise SelectionError(f"{found.reader} differ in what trains; keep the list of your trainer only")
        return next(iter(sets.values()))
    if isinstance(found, PluginList):
        if found.entries is None:
            raise SelectionError("; ".join(found.problems))
        found = found.entries
    seen = [name for name, parameter in model.parameters.items() if parameter.tied_to is None]
    return frozenset().union(*matching.matched(matching.AXOLOTL, found.entries, seen).values())
