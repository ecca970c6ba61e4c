"""Lists of what does not train, for the trainers that are told what to freeze. Each has a rule and a key of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence

from spectrum.errors import SelectionError
from spectrum.selection.selection import Selection
from spectrum.trainers.formats.export import Export, model_info, yaml_text


def frozen(selection: Selection) -> Export:
    """The parameters that do not train, as each of four trainers lists them: a YAML file with a part for each.

    DistillKit searches for regular expressions in the model's names. llm-foundry compares names, Ludwig searches for
    one regular expression, and both wrap the model, as `model`. H2O LLM Studio searches for parts of names, and wraps
    the model as `backbone`. Its part of the file is left out if a frozen name is part of a trained one.

    Raises SelectionError if every parameter trains.
    """
    info = model_info(selection, "which parameters do not train")
    trained = dict.fromkeys(map(info.owner, selection.trained()))
    # Trainers see a tied parameter under its owner's name only.
    names = [name for name in info.parameters if info.owner(name) == name and name not in trained]
    if not names:
        raise SelectionError("every parameter trains, so there is none to freeze; train without a list")
    escaped = list(map(re.escape, names))
    parts = {
        "DistillKit 2": {"frozen_res": [f"^{name}$" for name in escaped]},
        "llm-foundry": {"callbacks": {"layer_freezing": {"layer_names": [f"model.{name}" for name in names]}}},
        "Ludwig, without an adapter": {"trainer": {"layers_to_freeze_regex": rf"^model\.({'|'.join(escaped)})$"}},
    }
    notes = []
    if found := _part_of_trained(names, [f"backbone.{name}" for name in trained]):
        notes.append(
            f"the list has nothing for H2O LLM Studio, which would freeze {found[1].removeprefix('backbone.')} with "
            f"{found[0]}, part of that name"
        )
    else:
        parts["H2O LLM Studio"] = {"training": {"lora": False, "freeze_layers": names}}
    texts = [f"# {trainer}\n{yaml_text(part)}" for trainer, part in parts.items()]
    return Export("# Copy the part for your trainer into its config.\n\n" + "\n".join(texts), tuple(notes))


def _part_of_trained(names: Sequence[str], trained: Sequence[str]) -> tuple[str, str] | None:
    """A frozen name that is part of a trained one, and that one; None if there is no such name."""
    together = "\n".join(trained)
    part = next((name for name in names if name in together), None)
    return None if part is None else (part, next(name for name in trained if part in name))
