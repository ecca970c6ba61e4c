"""Does the list in a file do what it says? By the rule of whoever reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from spectrum.records import ModelInfo
from spectrum.trainers import matching
from spectrum.trainers.checking import of_adapters, of_parameters
from spectrum.trainers.checking.check import check_list
from spectrum.trainers.checking.report import CheckReport
from spectrum.trainers.lists import EntryList
from spectrum.trainers.matching import AXOLOTL
from spectrum.trainers.readers.adapter_lists import AdapterList
from spectrum.trainers.readers.files import ParameterLists, SomeList
from spectrum.trainers.readers.plugin import FIRST_LINES, NAME, PluginList


def check_any(found: SomeList, model: ModelInfo, renamed: Callable[[str], str] = lambda name: name) -> CheckReport:
    """Compare a list with a model, under the rule of its reader.

    Raises SelectionError if an entry is not a valid pattern, or if matching takes too long.

    Args:
        found: what `read_any` returned.
        model: the model.
        renamed: the model's name for the parameter that a stored tensor of some name becomes; any other name as it is.
    """
    if isinstance(found, EntryList):
        return check_list(found, model, renamed)
    if isinstance(found, ParameterLists):
        return of_parameters.check(found, model, renamed)
    if isinstance(found, AdapterList):
        return of_adapters.check(found, model, renamed)
    return _check_plugin(found, model, renamed)


def _check_plugin(found: PluginList, model: ModelInfo, renamed: Callable[[str], str]) -> CheckReport:
    """Compare the list that Axolotl's SpectrumPlugin makes with a model, by Axolotl's rule."""
    if found.entries is None:
        seen = frozenset(name for name, parameter in model.parameters.items() if parameter.tied_to is None)
        return CheckReport({AXOLOTL: seen}, {AXOLOTL: 0}, False, found.problems, found.notes)
    # The lines that the plugin always writes are told in another way: the user did not write them, and cannot.
    in_model = list(model.parameters)
    without = [line for line, own in matching.matched(AXOLOTL, FIRST_LINES, in_model).items() if not own]
    own = tuple(entry for entry in found.entries.entries if entry not in without)
    report = check_list(replace(found.entries, entries=own, lines=own), model, renamed)
    problems = [*found.problems, *report.problems]
    ends = [name for name in dict.fromkeys((model.embedding, model.head)) if name is not None]
    frozen = [name for name in map(model.owner, ends) if name not in report.trained[AXOLOTL]]
    if without:
        stays = f"; frozen stays: {', '.join(dict.fromkeys(frozen))}" if frozen else ""
        verb = "matches" if len(without) == 1 else "match"
        problems.append(f"{' and '.join(without)}, which {NAME} always writes, {verb} nothing in this model{stays}")
    if problems:
        problems.append(
            f"{NAME}'s list cannot be edited: remove it from the plugins, and paste the list that spectrum writes"
        )
    return replace(report, problems=tuple(problems), notes=(*found.notes, *report.notes))
