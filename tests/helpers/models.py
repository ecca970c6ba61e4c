"""Models of which only names are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from spectrum.records import ModelInfo, Parameter

_T = TypeVar("_T")


def model_of(
    names: Sequence[str],
    *,
    head: str,
    embedding: str,
    model_class: str = "SomeForCausalLM",
    tied: Mapping[str, str] | None = None,
    classes: Mapping[str, str] | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> ModelInfo:
    """A model that has parameters of these names, and the modules that they imply.

    Args:
        names: of the parameters.
        head: the output head's.
        embedding: the input embedding's.
        model_class: the model's class.
        tied: tied parameters, each with its owner.
        classes: for the ends of parameters' names, the class of the module that holds them; None for all others.
        shapes: for the ends of parameters' names, their shape; (8, 8) for all others.
    """
    parts = [name.split(".") for name in names]
    return ModelInfo(
        model_class=model_class,
        layer_types=(),
        parameters={
            name: Parameter(
                shape=_by_end(shapes, name) or (8, 8),
                dtype="bfloat16",
                tied_to=(tied or {}).get(name),
                module=_by_end(classes, name),
            )
            for name in names
        },
        modules=frozenset(".".join(part[:i]) for part in parts for i in range(1, len(part))),
        head=head,
        embedding=embedding,
    )


def _by_end(table: Mapping[str, _T] | None, name: str) -> _T | None:
    return next((value for end, value in (table or {}).items() if name.endswith(end)), None)
