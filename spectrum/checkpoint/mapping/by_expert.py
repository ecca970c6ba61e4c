"""Which parameters can be converted one expert at a time, to the values that the whole stack would have?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spectrum.checkpoint.disk.weight_files import StoredTensor
from spectrum.checkpoint.mapping.keys import ConversionInput

# Operations of transformers that treat each matrix of a stack by itself, if none of these attributes names the first
# dimension, along which the matrices are stacked.
_MATRIXWISE: Mapping[str, tuple[str, ...]] = {
    "Force16BytesAlignment": (),
    "Fp8Dequantize": (),
    "Inkling2LoopDequantizeExperts": (),
    "Mxfp4Dequantize": (),
    **dict.fromkeys(("Chunk", "Concatenate", "Interleave", "Split"), ("dim",)),
    "Transpose": ("dim0", "dim1"),
}
# Operations that treat each tensor of a list by itself.
_TENSORWISE = ("CompressedTensorsDequantize", "DecompressExperts", "Fp8Dequantize")


def is_by_expert(conversion: ConversionInput, stored: Mapping[str, StoredTensor], num_experts: int) -> bool:
    """Whether one expert can be converted without the others, to the same values.

    It can if each pattern has one tensor per expert, or a single tensor with one row per expert, and if no
    operation mixes experts.

    Args:
        conversion: the tensors, and what converts them.
        stored: the tensors of the checkpoint, by their keys.
        num_experts: of the parameter.
    """
    operations = conversion.converter.operations
    shapes = [stored[keys[0]].shape for keys in conversion.keys.values()]
    lengths = {len(keys) for keys in conversion.keys.values()}
    if lengths == {1}:
        is_stacked = all(len(shape) > 2 and shape[0] == num_experts for shape in shapes)
        return is_stacked and all(map(_is_matrixwise, operations))
    names = [type(operation).__name__ for operation in operations]
    if names == ["ErnieFuseAndSplitTextVisionExperts"]:  # the experts of each target parameter, one after the other
        is_along_experts = (operations[0].stack_dim, operations[0].concat_dim) == (0, 1)
        return is_along_experts and lengths == {num_experts * len(conversion.converter.target_patterns)}
    if lengths != {num_experts} or "MergeModulelist" not in names:
        return False
    merge = names.index("MergeModulelist")
    is_merged = operations[merge].dim == 0 and all(name in _TENSORWISE for name in names[:merge])
    return is_merged and all(map(_is_matrixwise, operations[merge + 1 :]))


def tensors_to_read(keys: Sequence[str], expert: int | None, num_experts: int) -> list[tuple[str, int | None]]:
    """The keys of the tensors to read, and the row to read of each; None for all rows.

    Args:
        keys: of the tensors that match one pattern: one tensor per expert of each parameter, or a single one.
        expert: the only expert that is wanted; None for all.
        num_experts: of each parameter.
    """
    if expert is not None and len(keys) > 1:
        return [(key, None) for key in keys[expert::num_experts]]
    return [(key, expert) for key in keys]


def _is_matrixwise(operation: Any) -> bool:
    """Whether an operation on a stack of matrices, (matrices, n, m), treats each of them by itself."""
    dims = _MATRIXWISE.get(type(operation).__name__)
    return dims is not None and all(getattr(operation, dim) % 3 for dim in dims)


@dataclass(frozen=True, slots=True)
class OneExpert:
    """A model whose stacks hold one expert: some operations compare a tensor with the parameter that it is made for."""

    model: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def get_parameter(self, name: str) -> torch.Tensor:
        """The parameter, with the first expert only."""
        parameter: torch.Tensor = self.model.get_parameter(name)
        return parameter[:1]
