"""Values of parameters for a verification, without files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class InMemory:
    """Whole tensors by name."""

    tensors: Mapping[str, torch.Tensor]

    def reads_rows(self, parameter: str) -> bool:
        return True

    def read_part(self, parameter: str, index: int | slice | None) -> torch.Tensor:
        return self.tensors[parameter] if index is None else self.tensors[parameter][index]

    def fetching_parts_ahead(self, parts: Iterable[object]) -> AbstractContextManager[None]:
        return nullcontext()
