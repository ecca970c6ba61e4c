"""An open model: its weights, and reading one matrix of them at a time, from disk or from the Hub."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from spectrum.checkpoint.disk.weight_files import StoredTensor
from spectrum.checkpoint.mapping.conversion import StreamedParameters
from spectrum.checkpoint.mapping.parameters import ParameterSource
from spectrum.checkpoint.matrices import WeightNorm
from spectrum.checkpoint.remote.fetcher import ByteRange, plan_bytes
from spectrum.checkpoint.remote.weights import RemoteModel, byte_ranges
from spectrum.errors import CheckpointError
from spectrum.records import LayerWeight, Provenance
from spectrum.text import amount

Part = tuple[str, int | slice | None]  # a parameter, and what of its first dimension: an element, rows, or all

# A read: a key that begins with the parameter's name, and the parts of stored tensors that are read.
_Read = tuple[tuple[str, Hashable], list[tuple[StoredTensor, int | slice | None]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An open model: its weights, and how to read them. No weight is kept in memory.

    Args:
        directory: where the model is; of a model in memory, its name.
        provenance: where it comes from, and what it consists of.
        weights: the weights to score, in model order.
        warnings: what a user should know before relying on the names.
        missing: the parameters of the class that the files lack; none if the checkpoint had to be complete.
        unused: the keys of stored tensors that the class has no place for.
        quantization: the method by which the files are quantized; None if they are not.
        remote: the files on the Hub, if the weights are read from there.
    """

    directory: Path
    provenance: Provenance
    weights: tuple[LayerWeight, ...]
    warnings: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    quantization: str | None = None
    remote: RemoteModel | None = None
    _source: ParameterSource
    _holders: Mapping[str, str]  # the parameter under whose name the values of each one are stored
    _groups: Mapping[str, int]  # of transposed convolutions, by the name of the weight
    _norms: Mapping[str, WeightNorm]  # see `Description`
    _copies: Mapping[str, Sequence[str]] = field(default_factory=dict)  # of tied parameters on the Hub, by holder

    def read(self, weight: LayerWeight, index: int) -> torch.Tensor:
        """Matrix `index` of a weight: (n, m), in its stored dtype.

        Raises CheckpointError if a file can no longer be read, or if tied weights on the Hub are not equal.
        """
        value = self._source.read(weight.parameter, _rows(weight, index))
        for copy in self._copies.get(weight.parameter, ()):
            if not _same_bytes(value, self._source.read(copy, _rows(weight, index))):
                raise CheckpointError(
                    f"{weight.parameter} and {copy} of {self.directory} differ in a few rows, but config.json ties "
                    "them; --download compares them before the scan, and scores both"
                )
        norm = self._norms.get(weight.parameter)
        if norm is not None:
            value = norm.weight(self._source.read(norm.parameter, None), value)
        if self.remote is not None:
            self.remote.fetcher.done((weight.parameter, index))
        groups = self._groups.get(weight.parameter)
        if groups is not None:  # (in, out / groups, ...) -> (groups, out / groups, in / groups, ...)
            value = value.reshape(groups, -1, *value.shape[1:]).transpose(1, 2)
        return value.reshape(weight.matrix_shape)

    def reads_rows(self, parameter: str) -> bool:
        """Whether rows of a parameter are read by themselves. If not, it is read as a whole for each of them."""
        return self._source.reads_rows(self._holders[parameter])

    def read_part(self, parameter: str, index: int | slice | None) -> torch.Tensor:
        """A part of any parameter, on the CPU, in its stored dtype and as the model class lays it out.

        Raises CheckpointError if a file can no longer be read.

        Args:
            parameter: its name.
            index: an element of its first dimension, several rows of it, or None for all.
        """
        value = self._source.read(self._holders[parameter], index)
        if self.remote is not None:
            self.remote.fetcher.done((parameter, str(index)))
        return value.cpu()  # a model in memory may be on any device

    def fetch_notice(self, matrices: Iterable[tuple[LayerWeight, int]]) -> str | None:
        """A message that says how much is fetched from the Hub to read these matrices, None if that is nothing."""
        if self.remote is None or not (needed := plan_bytes(_ranges(self._plan(matrices)))):
            return None
        return (
            f"reading {amount(needed)} of the {amount(self.remote.num_bytes)} of {self.directory} from the Hub, into "
            "memory alone; --download keeps the files on disk"
        )

    @contextmanager
    def fetching_ahead(self, matrices: Iterable[tuple[LayerWeight, int]]) -> Iterator[None]:
        """Within the context, these matrices are fetched from the Hub before they are read.

        Does nothing if the weights are not on the Hub. `matrices`: about in the order in which they will be read.
        """
        with nullcontext() if self.remote is None else self.remote.fetcher.ahead(_ranges(self._plan(matrices))):
            yield

    @contextmanager
    def fetching_parts_ahead(self, parts: Iterable[Part]) -> Iterator[None]:
        """Within the context, these parts are fetched from the Hub before `read_part` reads them, in this order."""
        with nullcontext() if self.remote is None else self.remote.fetcher.ahead(_ranges(self._plan_parts(parts))):
            yield

    def stop_reading(self) -> None:
        """End all reads on the Hub, for good. Does nothing if the weights are not there."""
        if self.remote is not None:
            self.remote.fetcher.stop()

    def _plan(self, matrices: Iterable[tuple[LayerWeight, int]]) -> Iterator[_Read]:
        """The stored tensors that each matrix is read from."""
        if self.remote is None or not isinstance(self._source, StreamedParameters):
            return
        for weight, index in matrices:
            parts = self._source.parts(weight.parameter, _rows(weight, index))
            if weight.parameter in self._norms:
                parts += self._source.parts(self._norms[weight.parameter].parameter, None)
            for copy in self._copies.get(weight.parameter, ()):
                parts += self._source.parts(copy, _rows(weight, index))
            yield (weight.parameter, index), parts

    def _plan_parts(self, parts: Iterable[Part]) -> Iterator[_Read]:
        """The stored tensors that each part of a parameter is read from."""
        if self.remote is None or not isinstance(self._source, StreamedParameters):
            return
        for parameter, index in parts:
            yield (parameter, str(index)), self._source.parts(self._holders[parameter], index)


def _ranges(reads: Iterable[_Read]) -> Iterator[tuple[tuple[str, Hashable], list[ByteRange]]]:
    """What is fetched from the Hub for each read, as `Fetcher.ahead` expects it."""
    last: tuple[str, list[tuple[StoredTensor, int | slice | None]]] | None = None
    for key, parts in reads:
        # The same parts again are those of a stack that is converted as a whole, and kept while it is read.
        is_kept = last == (key[0], parts)
        yield key, [] if is_kept else byte_ranges(parts)
        last = key[0], parts


def _same_bytes(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first.contiguous().view(torch.uint8), second.contiguous().view(torch.uint8))


def _rows(weight: LayerWeight, index: int) -> int | slice | None:
    """What to read of a parameter for matrix `index`: all, an element of the first dimension, or several rows."""
    if weight.num_matrices == 1:
        return None
    if len(weight.shape) > len(weight.matrix_shape):
        return index
    num_rows = weight.matrix_shape[0]
    return slice(index * num_rows, (index + 1) * num_rows)
