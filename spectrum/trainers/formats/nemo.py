"""NeMo Automodel's `freeze_config`: freeze every module, then unfreeze some by their paths."""

from __future__ import annotations

from spectrum.errors import SelectionError
from spectrum.layer_types import paths_above
from spectrum.selection.selection import Selection
from spectrum.trainers.formats.export import Export, model_info, yaml_text


def nemo(selection: Selection) -> Export:
    """The `freeze_config` of NeMo Automodel 0.7 and later.

    A `path` is a module's exact path, and unfreezes all parameters in the module and below it. So the modules are those
    that hold a trained parameter itself.

    Raises SelectionError if such a module also holds a parameter that does not train, or if a parameter that does not
    train is in no module, since `glob: '*'` matches modules only.
    """
    info = model_info(selection, "which parameters each module holds")
    names = [name for name in selection.trained() if name in info.parameters]
    trained = set(map(info.owner, names))
    modules: dict[str, str] = {}  # each with the first parameter that it trains
    for name in names:
        modules.setdefault(name.rpartition(".")[0], name)
    modules.pop("", None)  # the model itself, whose own parameters are never frozen
    for name in info.parameters:
        if info.owner(name) in trained:
            continue
        if "." not in name:
            raise SelectionError(f"NeMo Automodel freezes modules, and {name} is in none; use another --format")
        if module := next((path for path in paths_above(name) if path in modules), None):
            embedding = modules[module] in selection.embedding_parameters()
            advice = "use --no-embeddings" if embedding else "choose other --layer-types"
            raise SelectionError(
                f"NeMo Automodel trains modules as a whole, and {module} holds {modules[module]}, which trains, and "
                f"{name}, which does not; {advice}, or use another --format"
            )
    config = {
        "freeze_modules": [{"glob": "*"}],
        "unfreeze_modules": [{"path": module} for module in modules],
    }
    return Export(yaml_text({"freeze_config": config}))
