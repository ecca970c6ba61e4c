"""Steps of `tests.benchmarks.gpu` that measure the card, its eigensolver, and the parts of the kernel."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import time
from collections.abc import Callable
from functools import partial
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from spectrum.compute import decomposition, snr, workspace
from tests.benchmarks.cusolver import Solver, batched_eigenvalues
from tests.benchmarks.gpu import Session
from tests.benchmarks.hashed_weights import weight
from tests.benchmarks.machine import description

# How many matrices share a call, by their side.
_BATCHES = {
    **dict.fromkeys((128, 384, 768, 1024), (1, 2, 4, 8, 16, 64, 256)),
    **dict.fromkeys((1536, 2048, 3072, 4096), (1, 4, 8, 16, 32)),
    8192: (1, 4, 8),
}


def describe_machine(session: Session) -> None:
    """The machine, the card, and the packages that are missing."""
    session.note("machine", what=description(session.device), cores=os.cpu_count())
    if session.device.type == "cuda":
        card = torch.cuda.get_device_properties(session.device)
        session.note(
            "card",
            name=card.name,
            capability=f"{card.major}.{card.minor}",
            processors=card.multi_processor_count,
            memory_GiB=card.total_memory / 2**30,
            cuda=torch.version.cuda,
        )
        query = "driver_version,pcie.link.gen.current,pcie.link.width.current,clocks.sm,power.limit,mig.mode.current"
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        session.note("card", of_driver=subprocess.run(command, capture_output=True, text=True).stdout.strip())
    packages = ["accelerate", "filelock", "huggingface_hub", "numpy", "prompt_toolkit", "yaml", "tqdm", "transformers"]
    packages += ["safetensors", "scipy", "pytest", "hypothesis"]
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    session.note("packages", missing=", ".join(missing) or "none")


def measure_ceilings(session: Session) -> None:
    """What the hardware allows: the rate of the float64 product, and of copies on the card and to it."""
    n, device = session.size(8192), session.device
    a = torch.randn(n, n, dtype=torch.float64, device=device)
    session.note("product in float64", n=n, TFLOPs=2 * n**3 / session.seconds(lambda: a @ a, 3, 1) / 1e12)
    b = torch.empty_like(a)
    session.note("copy on the device", GBs=2 * a.nbytes / session.seconds(lambda: b.copy_(a), 5, 1) / 1e9)
    host = torch.empty(a.nbytes // 2, dtype=torch.uint8)
    session.note("copy to the device, pageable", GBs=host.nbytes / session.seconds(lambda: host.to(device), 2, 1) / 1e9)
    if device.type == "cuda":
        started = time.perf_counter()
        pinned = torch.empty(a.nbytes // 2, dtype=torch.uint8, pin_memory=True)
        session.note("pinning", GBs=pinned.nbytes / (time.perf_counter() - started) / 1e9)
        copied = session.seconds(lambda: pinned.to(device, non_blocking=True), 3, 1)
        session.note("copy to the device, pinned", GBs=host.nbytes / copied / 1e9)
        session.note("copy into pinned", GBs=host.nbytes / session.seconds(lambda: pinned.copy_(host), 2, 1) / 1e9)


def check_edge_cases(session: Session) -> None:
    """What the solver does with zeros, identities and rank one, one by one and in batches; and with upper triangles."""
    wrong = 0
    for n in (1, 2, 32, 33, 200, session.size(1024)):
        matrices = {
            "zeros": torch.zeros(n, n, dtype=torch.float64),
            "identity": torch.eye(n, dtype=torch.float64),
            "rank one": torch.ones(n, n, dtype=torch.float64),
            "tiny": torch.eye(n, dtype=torch.float64) * 1e-300,
        }
        for name, matrix in matrices.items():
            for batch in (1, 3):
                where = {"n": n, "matrix": name, "batch": batch}
                stack = matrix.to(session.device).expand(batch, n, n).contiguous()
                try:
                    found = torch.linalg.eigvalsh(stack).cpu()
                except RuntimeError as error:
                    wrong += 1
                    session.note("edge", **where, problem=f"{type(error).__name__}: {str(error)[:90]}")
                else:
                    off = (found - torch.linalg.eigvalsh(matrix)).abs().max() / max(1e-300, matrix.abs().sum().item())
                    if not off < 1e-12:
                        wrong += 1
                        session.note("edge", **where, error=off.item())
                # The kernel must not fail where the solver does.
                values = snr.singular_values(stack)[:, -1].cpu()
                assert torch.allclose(values, torch.linalg.svdvals(matrix)[:1].expand(batch), rtol=1e-9, atol=0), where
    n = session.size(500)
    a = torch.randn(n, 2 * n, dtype=torch.float64)
    gram = a @ a.mT
    of_lower = torch.linalg.eigvalsh((gram.tril() + 1e6 * torch.ones_like(gram).triu(1)).to(session.device), UPLO="L")
    off = (of_lower.cpu() / torch.linalg.eigvalsh(gram) - 1).abs().max()
    session.note("edges", wrong=wrong, error_with_other_upper_triangle=off.item())


def measure_eigensolver(session: Session) -> None:
    """Eigenvalues by size: through torch, and step by step."""
    solver = _solver(session)
    for full in (768, 1024, 2048, 3072, 4096, 8192):
        n = session.size(full)
        gram = _gram(session, n)
        session.start_peak()
        before = session.allocated()
        seconds = session.seconds(partial(torch.linalg.eigvalsh, gram), 1 if n > 4096 else 2, 1)
        row: dict[str, object] = {"torch_s": seconds}
        if solver is not None:  # torch makes a copy, which the solver destroys
            peak = torch.cuda.max_memory_allocated(session.device)
            row["workspace_in_matrices"] = (peak - before) / gram.nbytes - 1
        values = torch.linalg.eigvalsh(gram)[0].cpu()
        if n <= 2048:
            row["error"] = ((values - torch.linalg.eigvalsh(gram[0].cpu())).abs().max() / values[-1]).item()
        session.note("eigenvalues", n=n, **row)
        if solver is not None:
            _measure_parts(session, solver, gram, values)


def measure_batches(session: Session) -> None:
    """Eigenvalues by how many matrices share a call, with the solver of torch 2.12 and later."""
    with batched_eigenvalues(session.device):
        for full, batches in _BATCHES.items():
            one = _gram(session, session.size(full))
            for batch in batches:
                seconds = session.seconds(partial(torch.linalg.eigvalsh, one.repeat(batch, 1, 1)), 2, 1)
                session.note("batch", n=one.shape[-1], batch=batch, ms=seconds * 1e3, ms_each=seconds / batch * 1e3)


def list_kernels(session: Session) -> None:
    """The CUDA kernels that take the most time: of the Gram matrix and of both solvers."""
    activity = ProfilerActivity.CPU if session.device.type == "cpu" else ProfilerActivity.CUDA
    for full, batch in ((4096, 1), (768, 42)):
        n = session.size(full)
        matrices = weight(n, 2 * n, session.device).repeat(batch, 1, 1)
        gram = decomposition.gram_matrix(matrices, None)
        works: dict[str, Callable[[], object]] = {
            "Gram matrix": partial(decomposition.gram_matrix, matrices, None),
            "this torch's solver": partial(torch.linalg.eigvalsh, gram),
        }
        with batched_eigenvalues(session.device):
            works["XsyevBatched"] = partial(torch.linalg.eigvalsh, gram)
        for name, work in works.items():
            session.seconds(work)
            with profile(activities=[activity]) as profiled:
                seconds = session.seconds(work)
            session.note("kernels", of=name, n=n, batch=batch, seconds=seconds)
            events = [event for event in profiled.key_averages() if event.self_device_time_total > 0]
            for event in sorted(events, key=lambda event: event.self_device_time_total, reverse=True)[:6]:
                ms = event.self_device_time_total / 1e3
                session.note("kernel", of=name, n=n, name=event.key[:60], calls=event.count, ms=ms)


def measure_tiles(session: Session) -> None:
    """The Gram matrix by the size of its tiles and of the buffer of columns."""
    for shape in ((4096, 14336), (8192, 28672)):
        matrix = weight(*session.shape(*shape), session.device)[None]
        for tile in (256, 512, 1024, 2048):
            for columns in (1024, 4096, 16384):
                with (
                    mock.patch.object(decomposition, "_GPU_TILE", session.size(tile)),
                    mock.patch.object(workspace, "_GPU_COLUMNS", session.size(columns)),
                    mock.patch.object(workspace, "_GPU_BUFFER", 1 << 31),
                ):
                    seconds = session.seconds(partial(decomposition.gram_matrix, matrix, None), 1, 1)
                session.note("Gram matrix", of=f"{shape}", tile=tile, columns=columns, ms=seconds * 1e3)


def measure_exact_method(session: Session) -> None:
    """The exact method for singular values, and its SVD by driver."""
    for full in (1024, 2048, 4096):
        k = session.size(full)
        factor = torch.linalg.qr(weight(2 * k, k, session.device).double(), mode="r").R
        for driver in ("gesvd", "gesvdj") if session.device.type == "cuda" else (None,):
            session.start_peak()
            seconds = session.seconds(partial(torch.linalg.svdvals, factor, driver=driver))
            session.note("svdvals in float64", k=k, driver=driver, seconds=seconds, **session.peak())
        session.start_peak()
        matrix = weight(k, 3 * k, session.device)
        seconds = session.seconds(partial(decomposition.exact_singular_values, matrix, None))
        session.note("exact method", shape=f"{k}x{3 * k}", seconds=seconds, **session.peak())


def _gram(session: Session, n: int) -> torch.Tensor:
    """The lower triangle of a Gram matrix, (1, n, n)."""
    return decomposition.gram_matrix(weight(n, 2 * n, session.device)[None], None)


def _symmetric(gram: torch.Tensor) -> torch.Tensor:
    """The whole symmetric matrix of a lower triangle."""
    return gram.tril() + gram.tril(-1).mT


def _solver(session: Session) -> Solver | None:
    """cuSOLVER itself, or None if it cannot be called; torch's use of it is measured anyway."""
    if session.device.type == "cpu":
        return None
    try:
        return Solver(session.device)
    except (RuntimeError, AttributeError, OSError) as error:
        session.note("cusolver", problem=str(error)[:120])
        return None


def _measure_parts(session: Session, solver: Solver, gram: torch.Tensor, values: torch.Tensor) -> None:
    """The reduction on the GPU, the rest by LAPACK on the host; and cuSOLVER's two routines.

    Args:
        gram: (1, n, n), its lower triangle.
        values: its eigenvalues, (n,).
    """
    eigvalsh_tridiagonal = importlib.import_module("scipy.linalg").eigvalsh_tridiagonal
    n, full = gram.shape[-1], _symmetric(gram[0])
    solver.tridiagonal(full[:256, :256].clone())  # loads it
    started = time.perf_counter()
    diagonal, off = (part.cpu().numpy() for part in solver.tridiagonal(full.clone()))
    reduced = time.perf_counter()
    found = torch.from_numpy(eigvalsh_tridiagonal(diagonal, off, lapack_driver="sterf"))
    parts = {"reduction_s": reduced - started, "rest_on_host_s": time.perf_counter() - reduced}
    error = ((found - values).abs().max() / values[-1]).item()
    session.note("parts of it", n=n, cusolver=solver.version, **parts, error=error)
    for batched in (False, True):
        found_by_routine = _measure_cusolver(session, solver, full[None], batched=batched)
        if found_by_routine is None:
            continue
        if not ((found_by_routine[0].cpu() - values).abs().max() / values[-1]).item() < 1e-12:
            session.note("parts of it", n=n, batched=batched, problem="other values")


def _measure_cusolver(session: Session, solver: Solver, grams: torch.Tensor, *, batched: bool) -> torch.Tensor | None:
    """Eigenvalues by a routine of cuSOLVER; None if this version does not have it."""
    where = {"n": grams.shape[-1], "batch": len(grams)}
    destroyed = grams.clone()
    try:
        solver.eigenvalues(grams[:1, :256, :256].clone(), batched=batched)  # loads it
        session.wait()
        started = time.perf_counter()
        values, size = solver.eigenvalues(destroyed, batched=batched)
    except (RuntimeError, AttributeError) as error:
        session.note("XsyevBatched" if batched else "Xsyevd", **where, problem=str(error)[:120])
        return None
    seconds = (time.perf_counter() - started) / len(grams)
    in_matrices = size * 2**30 / grams.nbytes
    row = {"seconds_each": seconds, "workspace_GiB": size, "workspace_in_matrices": in_matrices}
    session.note("XsyevBatched" if batched else "Xsyevd", **where, **row)
    return values
