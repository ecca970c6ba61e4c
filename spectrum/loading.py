"""A model's parameters as transformers' public loader hands them out: all in memory, for what cannot be streamed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spectrum import shards
from spectrum.errors import CheckpointError
from spectrum.layers import Parameter
from spectrum.shards import StoredTensor
from spectrum.skeleton import nothing_fetched, quiet, why


@dataclass(frozen=True, slots=True)
class Loaded:
    """Parameters of a loaded model."""

    parameters: Mapping[str, torch.Tensor]

    def __contains__(self, name: str) -> bool:
        return name in self.parameters

    def form(self, name: str) -> Parameter:
        """The parameter's shape and dtype."""
        value = self.parameters[name]
        return Parameter(tuple(value.shape), str(value.dtype).removeprefix("torch."))

    def read(self, name: str, index: int | None) -> torch.Tensor:
        """The parameter; or, of a stack, element `index` of its first dimension alone."""
        value = self.parameters[name].detach()
        return value if index is None else value[index]


def load(directory: Path, model: Any, stored: Mapping[str, StoredTensor], *, dequantize: bool = False) -> Loaded:
    """The parameters of a model's class and config, loaded from a checkpoint's tensors in the dtype of the config.

    All tensors are read by this package's own reader, and are in memory. transformers maps the files that it reads
    itself, and a mapped file that is cut ends the process. Raises CheckpointError where loading fails, or leaves a
    parameter to chance.
    """
    tensors = {key: shards.read_tensor(tensor) for key, tensor in stored.items()}
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
        raise CheckpointError(f"transformers cannot load {directory}: {why(error)}") from error
    bad = sorted({*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    if bad:
        raise CheckpointError(
            f"{directory} lacks the parameter {bad[0]}{f' and {len(bad) - 1} more' if len(bad) > 1 else ''} of "
            f"{model_class.__name__}, or holds it in another shape; "
            "if it was saved from another class, name that with --model-class"
        )
    return Loaded(dict(model.named_parameters(remove_duplicate=False)))
