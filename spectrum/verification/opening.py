"""Open the base and the trained model: by their names, or in memory, where the trained one may be wrapped."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from spectrum.checkpoint import hub
from spectrum.checkpoint.disk.other_formats import adapter_warning
from spectrum.checkpoint.local import ResolvedModel
from spectrum.checkpoint.remote.model_names import ModelName
from spectrum.errors import CheckpointError
from spectrum.records import ModelInfo, Parameter
from spectrum.trainers.names_in_memory import NamedParameter, possible_names

if TYPE_CHECKING:
    import torch

    from spectrum.checkpoint.checkpoint import Checkpoint

# Keys of tensors that PEFT stores for its adapters.
_ADAPTER = re.compile(r"\.(lora|ia3|hada|lokr|oft|vera|boft)_\w+(\.|$)|\.modules_to_save\.")

Part = tuple[str, "int | slice | None"]  # a parameter, and what of its first dimension: an element, rows, or all


class Values(Protocol):
    """The values of a model's parameters. An open checkpoint has them, and `_InMemory`."""

    def reads_rows(self, parameter: str) -> bool:
        """Whether rows of a parameter are read by themselves."""
        ...

    def read_part(self, parameter: str, index: int | slice | None) -> torch.Tensor:
        """A part of a parameter, in its stored dtype, on the CPU."""
        ...

    def fetching_parts_ahead(self, parts: Iterable[Part]) -> AbstractContextManager[None]:
        """Within the context, these parts are fetched before they are read, in this order."""
        ...


@dataclass(frozen=True, slots=True)
class OpenModel:
    """A model whose parameters are compared.

    Args:
        name: for messages.
        info: what it consists of. Of a trained model in memory, it has neither layer types nor modules.
        values: reads its parameters.
        unused: the keys of other stored tensors that the class has no place for.
        missing: the parameters of the class that the files lack.
        num_adapter_tensors: how many parameters of adapters are beside the model's own.
        quantization: the method by which the weights are quantized; None if they are not.
    """

    name: str
    info: ModelInfo
    values: Values
    unused: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    num_adapter_tensors: int = 0
    quantization: str | None = None

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        """The parameters by name, in model order."""
        return self.info.parameters

    @property
    def model_class(self) -> str:
        """The name of the model's class."""
        return self.info.model_class


def open_both(
    base: ModelName | torch.nn.Module,
    trained: ModelName | torch.nn.Module,
    *,
    model_class: str | None,
    trust_remote_code: bool,
    warn: Callable[[str], None],
) -> tuple[OpenModel, OpenModel]:
    """Open two models to compare.

    Raises CheckpointError or HubError if one of them cannot be opened, if both are the same, or if the trained one is
    quantized and the base is not. Parameters may be missing from the trained one, and may have other shapes.

    Args:
        base: the model before training.
        trained: the model after training.
        model_class: the class that names the parameters of the base; None for its own.
        trust_remote_code: whether Python files of the models may be run.
        warn: receives a message if the Hub fails and is asked again, if weights must be loaded as a whole, or if an
            adapter lies beside the trained weights.
    """
    if _inner(base) is _inner(trained):
        raise CheckpointError("base and trained model are one and the same object; give the base by its name or path")
    first, second = check_files(base, trained, trust_remote_code=trust_remote_code, warn=warn)
    if second is not None and second.has_adapter:
        warn(adapter_warning(second.directory, second.commit))
    from spectrum.checkpoint.reader import of_model, open_checkpoint

    opened: list[OpenModel] = []
    for model, files, is_trained in ((base, first, False), (trained, second, True)):
        if not isinstance(model, ModelName):
            name = _in_words(model)
            opened.append(_in_memory(model, opened[0].parameters) if is_trained else _of(of_model(model, name), name))
            continue
        checkpoint = open_checkpoint(
            model.name,
            revision=model.revision,
            model_class=None if is_trained else model_class,
            trust_remote_code=trust_remote_code,
            resolved=files,
            warn=warn,
            incomplete=is_trained,
        )
        opened.append(_of(checkpoint, model.name))
    return opened[0], opened[1]


def check_files(
    base: ModelName | torch.nn.Module,
    trained: ModelName | torch.nn.Module,
    *,
    trust_remote_code: bool,
    warn: Callable[[str], None],
) -> tuple[ResolvedModel | None, ResolvedModel | None]:
    """The files of two models, None for one in memory. What is wrong with them is found before torch is imported.

    Arguments and errors are those of `open_both`.
    """
    first, second = (_resolved(model, warn, remote_code=trust_remote_code) for model in (base, trained))
    if first is not None and second is not None:
        _refuse_same(first, second)
    if second is not None and (method := _quantization(second)) and (first is None or not _quantization(first)):
        raise CheckpointError(
            f"{second.directory} is quantized ({method}), and the base is not, so every weight differs; "
            "give the trained model in the precision of the base, before it was quantized"
        )
    return first, second


def _resolved(model: Any, warn: Callable[[str], None], *, remote_code: bool) -> ResolvedModel | None:
    """The files of a model, checked; None for a model in memory."""
    if not isinstance(model, ModelName):
        return None
    resolved = hub.resolve(model.name, model.revision, remote_code=remote_code, warn=warn)
    resolved.check_files()
    if resolved.remote is None:  # headers on the Hub are read when the model is opened
        with resolved.headers.naming_other_weights():
            resolved.headers.tensors()
    return resolved


def _refuse_same(base: ResolvedModel, trained: ResolvedModel) -> None:
    if base.remote is None and trained.remote is None:
        same = os.path.samefile(base.directory, trained.directory)
    else:
        same = (base.directory, base.commit) == (trained.directory, trained.commit)
    if same:
        raise CheckpointError(f"{trained.directory} is both the base and the trained model; give two different ones")


def _quantization(resolved: ResolvedModel) -> str | None:
    """The quantization method that a config.json names; None for none."""
    settings = resolved.settings.get("quantization_config") or resolved.settings.get("compression_config")
    return str(settings.get("quant_method") or "without a method's name") if isinstance(settings, dict) else None


def _of(checkpoint: Checkpoint, name: str) -> OpenModel:
    unused = tuple(key for key in checkpoint.unused if not _ADAPTER.search(key))
    return OpenModel(
        name,
        checkpoint.provenance.info,
        checkpoint,
        unused=unused,
        missing=checkpoint.missing,
        num_adapter_tensors=len(checkpoint.unused) - len(unused),
        quantization=checkpoint.quantization,
    )


# A trained model in memory.


@dataclass(frozen=True, slots=True)
class _InMemory:
    """The values of a model in memory, on any device."""

    tensors: Mapping[str, torch.Tensor]

    def reads_rows(self, parameter: str) -> bool:
        return True

    def read_part(self, parameter: str, index: int | slice | None) -> torch.Tensor:
        value = self.tensors[parameter].detach()
        return (value if index is None else value[index]).cpu()

    def fetching_parts_ahead(self, parts: Iterable[Part]) -> AbstractContextManager[None]:
        return nullcontext()


def _in_memory(model: torch.nn.Module, base: Mapping[str, Parameter]) -> OpenModel:
    """A model in memory without its wrappers and adapters, under the names that are most like those of the base.

    Raises CheckpointError if its parameters are not whole tensors of numbers.
    """
    named = max(possible_names(model), key=lambda found: sum(parameter.name in base for parameter in found))
    name = _in_words(model)
    for parameter in named:
        _check_whole(parameter, name)
    parameters: dict[str, Parameter] = {}
    owners: dict[int, str] = {}
    for parameter in named:
        value = parameter.value
        owner = owners.setdefault(id(value), parameter.name)
        dtype = str(value.dtype).removeprefix("torch.")
        tied_to = None if owner == parameter.name else owner
        parameters[parameter.name] = Parameter(tuple(value.shape), dtype, tied_to)
    embedding = _embedding(model, owners)
    num_all = len(list(model.named_parameters(remove_duplicate=False)))
    return OpenModel(
        name,
        ModelInfo(type(_inner(model)).__name__, parameters, (), None, embedding),
        _InMemory({parameter.name: parameter.value for parameter in named}),
        num_adapter_tensors=num_all - len(named),
    )


def _in_words(model: torch.nn.Module) -> str:
    """A name for a model in memory, which is not that of the files that it was loaded from: it may have changed."""
    return f"the {type(_inner(model)).__name__} in memory"


def _inner(model: Any) -> Any:
    """The model that transformers has made, inside wrappers and adapters."""
    for _ in range(8):
        inner = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        if inner is None or not hasattr(inner, "named_parameters"):
            break
        model = inner
    return model


def _embedding(model: Any, owners: Mapping[int, str]) -> str | None:
    """The name of the input embedding's parameter in a model."""
    try:
        return owners.get(id(_inner(model).get_input_embeddings().weight))
    except (NotImplementedError, AttributeError):
        return None


def _check_whole(parameter: NamedParameter, name: str) -> None:
    import torch

    value = parameter.value
    if (
        value.is_meta
        or type(value.data) is not torch.Tensor
        or hasattr(value, "ds_id")
        or "_flat_param" in parameter.name
    ):
        raise CheckpointError(
            f"{name} does not have {parameter.name} as a whole in memory; save the trained model, and give its path"
        )
    if not value.is_floating_point():
        raise CheckpointError(
            f"{name} has {parameter.name} as {str(value.dtype).removeprefix('torch.')}: it is quantized, and cannot be "
            "compared; save the model in the precision of the base"
        )
