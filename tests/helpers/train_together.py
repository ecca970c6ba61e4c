"""One step of training the selected parameters in several processes. Run by torchrun:

    torchrun --nproc-per-node 2 -m tests.helpers.train_together MODEL LIST RESULTS

In each of the wrappers. Every process writes all parameters as it gathers them after the step, and which of them were
left trainable; or the error.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import spectrum

Gathered = dict[str, torch.Tensor]


def with_ddp(model: Any) -> tuple[Any, Callable[[], Gathered]]:
    wrapped = DistributedDataParallel(model)
    return wrapped, lambda: copied(wrapped.module)


def with_fsdp(model: Any, *, original: bool = True) -> tuple[Any, Callable[[], Gathered]]:
    wrapped = FullyShardedDataParallel(
        model,
        auto_wrap_policy=ModuleWrapPolicy({LlamaDecoderLayer}),
        use_orig_params=original,
        device_id=torch.device("cpu"),  # else it looks for an accelerator
    )

    def gather() -> Gathered:
        with FullyShardedDataParallel.summon_full_params(wrapped, writeback=False):
            return {name.replace("_fsdp_wrapped_module.", ""): value for name, value in copied(wrapped).items()}

    return wrapped, gather


def with_fsdp2(model: Any) -> tuple[Any, Callable[[], Gathered]]:
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, lambda: {name: value.full_tensor().detach() for name, value in model.named_parameters()}


def copied(model: Any) -> Gathered:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


WRAPPERS: Mapping[str, Callable[[Any], tuple[Any, Callable[[], Gathered]]]] = {
    "ddp": with_ddp,
    "fsdp": with_fsdp,
    "fsdp-flat": partial(with_fsdp, original=False),
    "fsdp2": with_fsdp2,
}


def train(wrapper: str, directory: str, listed: str, results: str) -> None:
    rank = distributed.get_rank()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    trainable = list(spectrum.unfreeze(model, listed).names)

    wrapped, gather = WRAPPERS[wrapper](model)
    # Without decay, what has no gradient does not move.
    ours = (parameter for parameter in wrapped.parameters() if parameter.requires_grad)
    optimizer = torch.optim.AdamW(ours, lr=1e-3, weight_decay=0.0)
    # Each process has its own share of the batch: equal parameters after it tell that gradients were exchanged.
    tokens = torch.randint(256, (2, 32), generator=torch.Generator().manual_seed(rank))
    loss = wrapped(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    torch.save(
        {"trainable": trainable, "loss": loss.item(), "parameters": gather()}, Path(results) / f"{wrapper}-{rank}.pt"
    )


if __name__ == "__main__":
    distributed.init_process_group("gloo")
    try:
        for name in WRAPPERS:
            try:
                train(name, *sys.argv[1:])
            except ValueError:
                Path(sys.argv[-1], f"{name}-{distributed.get_rank()}.txt").write_text(traceback.format_exc())
    finally:
        distributed.destroy_process_group()
    # A thread of gloo's may still let go of a tensor, which aborts a Python that is shutting down.
    os._exit(0)
