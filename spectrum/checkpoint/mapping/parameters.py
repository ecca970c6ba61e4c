"""Where the values of a model's parameters come from.

`conversion.StreamedParameters` reads them from a checkpoint's files, one at a time. `LoadedParameters` takes them from
a model in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from spectrum.checkpoint.disk.tensors import read_tensor
from spectrum.checkpoint.disk.weight_files import StoredTensor
from spectrum.checkpoint.mapping.isolation import failure_reason, nothing_fetched, quiet
from spectrum.errors import CheckpointError
from spectrum.records import Parameter
from spectrum.text import listed


class ParameterSource(Protocol):
    """The values of a model's parameters."""

    def __contains__(self, name: str) -> bool:
        """Whether the parameter of this name has values of its own."""
        ...

    def spec(self, name: str) -> Parameter:
        """The shape and the dtype in which the parameter is read."""
        ...

    def is_remote(self, name: str) -> bool:
        """Whether values of the parameter are neither in memory nor in a directory."""
        ...

    def reads_rows(self, name: str) -> bool:
        """Whether rows of the parameter are read by themselves. If not, it is read as a whole for each of them."""
        ...

    def read(self, name: str, index: int | slice | None) -> torch.Tensor:
        """The parameter or, if `index` is given, that element or those rows of its first dimension."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedParameters:
    """Parameters of a model that is in memory."""

    tensors: Mapping[str, torch.Tensor]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def spec(self, name: str) -> Parameter:
        """The shape and the dtype of the parameter."""
        value = self.tensors[name]
        return Parameter(tuple(value.shape), str(value.dtype).removeprefix("torch."))

    def is_remote(self, name: str) -> bool:
        """Never true."""
        return False

    def reads_rows(self, name: str) -> bool:
        """Always true."""
        return True

    def read(self, name: str, index: int | slice | None) -> torch.Tensor:
        """The parameter or, if `index` is given, that element or those rows of its first dimension."""
        value = self.tensors[name].detach()
        return value if index is None else value[index]


def load(
    directory: Path, model: Any, stored: Mapping[str, StoredTensor], *, dequantize: bool = False
) -> LoadedParameters:
    """Load a whole model with transformers, from tensors that this package has read.

    It does not get the files, because it would map them, which `read_tensor` avoids. Raises CheckpointError if loading
    fails, or if it would fill a parameter with random numbers.

    Args:
        directory: the checkpoint, for messages.
        model: of the class and with the config to load.
        stored: the tensors of the checkpoint, by their keys.
        dequantize: whether the loaded model is to be dequantized.
    """
    tensors = {key: read_tensor(tensor) for key, tensor in stored.items()}
    model_class = type(model)
    try:
        with quiet(), nothing_fetched():
            model, info = model_class.from_pretrained(
                None,
                config=model.config,
                state_dict=tensors,
                dtype="auto",
                device_map="cpu",
                output_loading_info=True,
            )
            if dequantize:
                model = model.dequantize()
    except Exception as error:  # anything, from missing packages to a full memory
        raise CheckpointError(f"transformers cannot load {directory}: {failure_reason(error)}") from error
    unfilled = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if unfilled:
        raise CheckpointError(
            f"{directory} lacks the parameter {listed(unfilled, limit=1)} of {model_class.__name__}, "
            "or holds it in another shape: config.json, or its class, is that of another model"
        )
    return LoadedParameters(dict(model.named_parameters(remove_duplicate=False)))
