"""What trainers put around a model of Llama's kind, and what that says on a machine without an accelerator."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

FILTERS = [
    # peft asks transformers for what it calls by another name now; torch.compile's import for what torch has left.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    # One process has nothing to share out.
    pytest.mark.filterwarnings("ignore:FSDP is switching to use `NO_SHARD`:UserWarning"),
]


def compiled(model: nn.Module) -> Any:
    return torch.compile(model)  # which compiles nothing before it is called


def layers_compiled(model: Any) -> Any:
    """As those do who have one graph for all layers."""
    for i, layer in enumerate(model.model.layers):
        model.model.layers[i] = torch.compile(layer)
    return model


def checkpointed(model: Any) -> Any:
    """Activations of each layer are computed again in the backward pass."""
    apply_activation_checkpointing(
        model, checkpoint_wrapper_fn=checkpoint_wrapper, check_fn=lambda module: isinstance(module, LlamaDecoderLayer)
    )
    return model


def with_fsdp(model: Any, *, original: bool = True, layers: bool = True) -> Any:
    """original: parameters keep their names and shapes. layers: each is wrapped by itself, too."""
    return FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({LlamaDecoderLayer}) if layers else None,
        use_orig_params=original,
        device_id=torch.device("cpu"),  # else it looks for an accelerator
    )


def with_fsdp2(model: Any) -> Any:
    mesh = init_device_mesh("cpu", (1,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model
