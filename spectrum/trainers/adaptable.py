"""Which modules can get an adapter of PEFT's (0.21: `tuners/lora`), and why can others not?"""

from __future__ import annotations

from spectrum.records import ModelInfo

# State-space models use the weights of these modules but never call them, so PEFT refuses them.
_STATE_SPACES = ("Mamba", "FalconMamba", "FalconH1", "NemotronH")
_UNCALLED = frozenset({"conv1d", "out_proj"})

_ADAPTED = frozenset({"Linear", "Embedding", "Conv1D", "Conv1d", "Conv2d", "Conv3d", "MultiheadAttention"})


def why_not(path: str, module_class: str | None, model: ModelInfo) -> str | None:
    """Why a module that has a weight takes no adapter; None if it takes one.

    Args:
        path: the module's path.
        module_class: its class, as `Parameter.module` has it.
        model: the model.
    """
    if module_class is None:
        return "PEFT does not know its class"
    if (reason := uncalled(path, model)) is not None:
        return reason
    if module_class.startswith("grouped "):
        return "it is a convolution in groups"
    return None if module_class in _ADAPTED else f"it is a {module_class}"


def uncalled(path: str, model: ModelInfo) -> str | None:
    """Why an adapter on a layer would have no effect: the weight is used, but no module is called. None if it has."""
    parent, _, name = path.rpartition(".")
    if model.model_class.startswith(_STATE_SPACES) and name in _UNCALLED:
        return "the model never calls it"
    return "torch's attention never calls it" if f"{parent}.in_proj_weight" in model.parameters else None
