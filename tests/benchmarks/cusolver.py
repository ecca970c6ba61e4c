"""Calls cuSOLVER through ctypes: routines that torch does not call, the steps of an eigensolver, sizes of workspaces.

Signatures: https://docs.nvidia.com/cuda/cusolver. cuSOLVER stores matrices by columns, so that the upper triangle of a
tensor is a lower one there.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_int, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path
from unittest import mock

import torch

_NO_VECTORS = 0
_LOWER = 0
_FLOAT64 = 1  # CUDA_R_64F


@cache
def _library(device: torch.device) -> ctypes.CDLL:
    """The library that torch has loaded."""
    torch.linalg.eigvalsh(torch.eye(64, dtype=torch.float64, device=device))  # loads it
    found = re.search(r"\S*libcusolver\.so\S*", Path("/proc/self/maps").read_text())
    if found is None:
        raise RuntimeError("torch has not loaded libcusolver")
    return ctypes.CDLL(found[0])


@cache
def _unused_solvers(device: torch.device) -> list[Solver]:
    """Handles that no thread uses at the moment, at least one at first. torch keeps its own in the same way."""
    return [Solver(device)]


@contextmanager
def batched_eigenvalues(device: torch.device) -> Iterator[None]:
    """Let torch.linalg.eigvalsh call XsyevBatched for all matrices on this GPU, as torch does from version 2.12 on.

    Versions before that call Xsyevd for one matrix after the other. On the CPU nothing changes.
    """
    if device.type == "cpu":
        yield
        return
    by_torch, unused = torch.linalg.eigvalsh, _unused_solvers(device)

    def eigvalsh(gram: torch.Tensor, UPLO: str = "L") -> torch.Tensor:  # noqa: N803
        if gram.device.type == "cpu":
            values: torch.Tensor = by_torch(gram, UPLO=UPLO)
            return values
        try:
            solver = unused.pop()
        except IndexError:
            solver = Solver(device)
        try:
            return solver.eigenvalues(gram.mT.contiguous(), batched=True)[0]
        finally:
            unused.append(solver)

    with mock.patch.object(torch.linalg, "eigvalsh", eigvalsh):
        yield


class Solver:
    """A handle to the library."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._library = _library(device)
        self._handle, self._params, version = c_void_p(), c_void_p(), c_int()
        self._call("cusolverDnCreate", ctypes.byref(self._handle))
        self._call("cusolverDnCreateParams", ctypes.byref(self._params))
        self._call("cusolverGetVersion", ctypes.byref(version))
        self.version = version.value

    def eigenvalues(self, gram: torch.Tensor, *, batched: bool) -> tuple[torch.Tensor, float]:
        """Eigenvalues, and the size of the workspace in GiB: (batch, n, n) float64 -> (batch, n) ascending.

        Args:
            gram: symmetric matrices, of which the upper triangles are read. They are destroyed.
            batched: whether to call XsyevBatched instead of Xsyevd, which takes a single matrix.
        """
        name = "cusolverDnXsyevBatched" if batched else "cusolverDnXsyevd"
        batch, n = gram.shape[0], gram.shape[-1]
        values = torch.empty(batch, n, dtype=torch.float64, device=self.device)
        info = torch.zeros(batch, dtype=torch.int32, device=self.device)
        on_device, on_host = c_size_t(), c_size_t()
        matrix = (_FLOAT64, c_void_p(gram.data_ptr()), c_int64(n), _FLOAT64, c_void_p(values.data_ptr()), _FLOAT64)
        common = (self._handle, self._params, _NO_VECTORS, _LOWER, c_int64(n), *matrix)
        last = (c_int64(batch),) if batched else ()
        self._stream()
        self._call(f"{name}_bufferSize", *common, ctypes.byref(on_device), ctypes.byref(on_host), *last)
        workspace = torch.empty(max(1, on_device.value), dtype=torch.uint8, device=self.device)
        host = torch.empty(max(1, on_host.value), dtype=torch.uint8)
        buffers = (c_void_p(workspace.data_ptr()), on_device, c_void_p(host.data_ptr()), on_host)
        self._call(name, *common, *buffers, c_void_p(info.data_ptr()), *last)
        torch.cuda.current_stream(self.device).synchronize()
        if info.any().item():
            raise RuntimeError(f"{name}: info {info.tolist()[:4]}")
        return values, on_device.value / 2**30

    def tridiagonal(self, gram: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Diagonal and off-diagonal of the tridiagonal form: (n, n) float64 -> (n,), (n - 1,). Destroys the matrix.

        The upper triangle of the matrix is read.
        """
        n = gram.shape[-1]
        diagonal, off, tau = (torch.empty(n, dtype=torch.float64, device=self.device) for _ in range(3))
        info, size = torch.zeros(1, dtype=torch.int32, device=self.device), c_int()
        pointers = [c_void_p(part.data_ptr()) for part in (diagonal, off, tau)]
        common = (self._handle, _LOWER, c_int(n), c_void_p(gram.data_ptr()), c_int(n), *pointers)
        self._stream()
        self._call("cusolverDnDsytrd_bufferSize", *common, ctypes.byref(size))
        workspace = torch.empty(size.value, dtype=torch.float64, device=self.device)
        self._call("cusolverDnDsytrd", *common, c_void_p(workspace.data_ptr()), size, c_void_p(info.data_ptr()))
        torch.cuda.synchronize(self.device)
        return diagonal, off[: n - 1]

    def _stream(self) -> None:
        stream = torch.cuda.current_stream(self.device).cuda_stream
        self._call("cusolverDnSetStream", self._handle, c_void_p(stream))

    def _call(self, name: str, *arguments: object) -> None:
        if status := getattr(self._library, name)(*arguments):
            raise RuntimeError(f"{name}: status {status}")
