"""What `tests.benchmarks.gpu` measures, step by step, in order of worth."""

from __future__ import annotations

import importlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO
from unittest import mock

import torch

from spectrum.compute import decomposition, devices, executor, snr, workspace
from spectrum.compute import lanes as lane_module
from spectrum.compute.batches import plan
from spectrum.records import LayerWeight
from spectrum.scanning.store import ScanStore
from tests.benchmarks import checkpoints
from tests.benchmarks.cusolver import Solver
from tests.benchmarks.gpu import Session, Step
from tests.benchmarks.hashed_weights import expected, weight
from tests.benchmarks.machine import description
from tests.benchmarks.reference import snr_float32

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "tests" / "data" / "tiny-llama"

Shape = tuple[int, int]

Counts = Mapping[Shape, int]

# By name: matrices of each shape, the part of a model's that these are, and the numbers of lanes to compare; None for
# those that the tool takes by itself. There are several batches for each lane, or their number would say nothing.
WORKLOADS: Mapping[str, tuple[Counts, float, Sequence[int | None]]] = {
    "4096 x 14336": ({(4096, 14336): 16}, 1, (1, 2, None, 6)),
    "Phi-3.5-mini": (
        {(9216, 3072): 8, (3072, 3072): 8, (16384, 3072): 8, (3072, 8192): 8},
        8 / 32,
        (2, None, 6),
    ),
    "Llama-3-70B": (
        {(8192, 8192): 4, (1024, 8192): 4, (28672, 8192): 4, (8192, 28672): 2},
        2 / 80,
        (2, None, 4),
    ),
    "Qwen3-30B-A3B": ({(768, 2048): 512, (2048, 768): 256}, 2 / 48, (2, None)),
}


def machine(session: Session) -> None:
    """What this is, and what is missing on it."""
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
        asked = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        session.note("card", of_driver=subprocess.run(asked, capture_output=True, text=True).stdout.strip())
    wanted = ["accelerate", "filelock", "huggingface_hub", "numpy", "prompt_toolkit", "yaml", "tqdm", "transformers"]
    wanted += ["safetensors", "scipy", "pytest", "hypothesis"]
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    session.note("packages", missing=", ".join(missing) or "none")


def ceilings(session: Session) -> None:
    """What the hardware allows: the float64 product, copies on the card and to it."""
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


def edges(session: Session) -> None:
    """What the solver makes of zeros, identities, rank one, single and in batches; and of the upper triangle."""
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


def gram_of(session: Session, n: int) -> torch.Tensor:
    """A Gram matrix, (1, n, n): its lower triangle."""
    return decomposition.gram_matrix(weight(n, 2 * n, session.device)[None], None)


def whole(gram: torch.Tensor) -> torch.Tensor:
    """A symmetric matrix from its lower triangle."""
    return gram.tril() + gram.tril(-1).mT


def eigensolver(session: Session) -> None:
    """Eigenvalues by size: torch's way, and the parts of it; then batches."""
    solver = _solver(session)
    for full in (768, 1024, 2048, 3072, 4096, 8192):
        n = session.size(full)
        gram = gram_of(session, n)
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
            _parts(session, solver, gram, values)
    for full, batch in ((768, 42), (3072, 4)):
        gram = gram_of(session, session.size(full)).repeat(batch, 1, 1)
        seconds = session.seconds(partial(torch.linalg.eigvalsh, gram), 1, 1) / batch
        session.note("eigenvalues of a batch", n=gram.shape[-1], batch=batch, torch_s_each=seconds)
        if solver is not None:
            _by_cusolver(session, solver, whole(gram), batched=True)


def _solver(session: Session) -> Solver | None:
    """cuSOLVER itself, where it is there: what torch makes of it is measured without, too."""
    if session.device.type == "cpu":
        return None
    try:
        return Solver(session.device)
    except (RuntimeError, AttributeError, OSError) as error:
        session.note("cusolver", problem=str(error)[:120])
        return None


def _parts(session: Session, solver: Solver, gram: torch.Tensor, values: torch.Tensor) -> None:
    """Reduction on the GPU, the rest by LAPACK on the host; and cuSOLVER's two routines."""
    eigvalsh_tridiagonal = importlib.import_module("scipy.linalg").eigvalsh_tridiagonal
    n, full = gram.shape[-1], whole(gram[0])
    started = time.perf_counter()
    diagonal, off = (part.cpu().numpy() for part in solver.tridiagonal(full.clone()))
    reduced = time.perf_counter()
    found = torch.from_numpy(eigvalsh_tridiagonal(diagonal, off, lapack_driver="sterf"))
    parts = {"reduction_s": reduced - started, "rest_on_host_s": time.perf_counter() - reduced}
    error = ((found - values).abs().max() / values[-1]).item()
    session.note("parts of it", n=n, cusolver=solver.version, **parts, error=error)
    for batched in (False, True):
        made = _by_cusolver(session, solver, full[None], batched=batched)
        if made is not None and not ((made[0].cpu() - values).abs().max() / values[-1]).item() < 1e-12:
            session.note("parts of it", n=n, batched=batched, problem="other values")


def _by_cusolver(session: Session, solver: Solver, grams: torch.Tensor, *, batched: bool) -> torch.Tensor | None:
    """Eigenvalues by a routine of cuSOLVER; None where this version does not have it."""
    where = {"n": grams.shape[-1], "batch": len(grams)}
    given = grams.clone()
    session.wait()
    try:
        started = time.perf_counter()
        values, size = solver.eigenvalues(given, batched=batched)
    except (RuntimeError, AttributeError) as error:
        session.note("XsyevBatched" if batched else "Xsyevd", **where, problem=str(error)[:120])
        return None
    seconds = (time.perf_counter() - started) / len(grams)
    in_matrices = size * 2**30 / grams.nbytes
    row = {"seconds_each": seconds, "workspace_GiB": size, "workspace_in_matrices": in_matrices}
    session.note("XsyevBatched" if batched else "Xsyevd", **where, **row)
    return values


Samples = Mapping[Shape, torch.Tensor]


def samples_of(session: Session, counts: Counts) -> tuple[Samples, Counts]:
    """A weight of each shape in main memory, for all of that shape; and the counts at the sizes of this session."""
    shapes = {session.shape(*shape): count for shape, count in counts.items()}
    return {shape: weight(*shape, session.device).cpu() for shape in shapes}, shapes


def scan(
    session: Session, samples: Samples, counts: Counts, lanes: int | None = None, batch_size: int | None = None
) -> dict[str, object]:
    """A scan of so many matrices from main memory: seconds, memory, and errors against a CPU."""
    named = {f"{shape}.{i}": shape for shape, count in counts.items() for i in range(count)}
    weights = [LayerWeight(name, "layer", name, shape, shape, 1, "bfloat16") for name, shape in named.items()]
    batches = plan(weights, batch_size, devices.batch_budget([session.device]))
    warned: list[str] = []
    errors: list[float] = []
    session.start_peak()
    started = time.perf_counter()
    with mock.patch.object(lane_module, "num_lanes", lambda device, k: lanes or devices.num_lanes(device, k)):
        for batch, scores in executor.score(batches, lambda w, i: samples[w.matrix], [session.device], warned.append):
            known = expected(*batch.matrix)
            if known is not None:
                for score in scores:
                    same_counts = [score.edge.num_above, score.edge.num_below] == known[1:3]
                    errors.append(abs(score.snr / known[0] - 1) if same_counts else math.inf)
    result: dict[str, object] = {"seconds": time.perf_counter() - started, "batches": len(batches)}
    result |= {"warnings": len(warned), **session.peak()}
    return result | {"compared": len(errors), "error": max(errors, default=None)}


def seconds_of(row: Mapping[str, object]) -> float:
    """The time of a scan."""
    return float(str(row["seconds"]))


def lanes(session: Session) -> None:
    """Scans of real shapes by the number of lanes, and what that makes for a whole model."""
    for name, (full, part, numbers) in WORKLOADS.items():
        samples, counts = samples_of(session, full)
        half = {shape: count // 2 for shape, count in counts.items()}
        first = seconds_of(scan(session, samples, half))  # with all that is made once, and not counted
        for number in numbers:
            session.note("scan", of=name, lanes=number or "own", **(row := scan(session, samples, counts, number)))
            if number is None:
                # What a scan takes besides its matrices is in both, and a model has it once.
                of_half = seconds_of(scan(session, samples, half))
                each = max(0.0, seconds_of(row) - of_half) * 2 / part
                session.note(
                    "whole model", of=name, seconds=each + max(0.0, 2 * of_half - seconds_of(row)), first=first
                )


def tests(session: Session) -> None:
    """The tests that know the card. Warnings are no failures here: the packages may be other than ours."""
    files = [f"tests/compute/test_{name}.py" for name in ("snr", "executor", "devices")]
    which = "cuda" if session.device.type == "cuda" else "test_a_matrix_of_zeros"
    options = ["-q", "-p", "no:cacheprovider", "-W", "default", "--tb=short", "-k", which]
    said = session.out / "pytest.txt"
    try:
        with said.open("w") as file:
            done = launched([sys.executable, "-m", "pytest", *options, *files], ROOT, session, stdout=file)
    finally:
        lines = said.read_text().strip().splitlines() or ["nothing"]
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        session.note("tests", last=lines[-1][:200], failed=failed[:20])
    if done.returncode:
        raise RuntimeError(f"{len(failed)} tests failed")


def tiles(session: Session) -> None:
    """The Gram matrix by the size of its tiles, and of the buffer of columns."""
    for shape in ((4096, 14336), (8192, 28672)):
        matrix = weight(*session.shape(*shape), session.device)[None]
        for tile in (1024, 2048, 4096, 8192):
            for columns in (2048, 4096, 16384):
                with (
                    mock.patch.object(decomposition, "_GPU_TILE", session.size(tile)),
                    mock.patch.object(workspace, "_GPU_COLUMNS", session.size(columns)),
                    mock.patch.object(workspace, "_GPU_BUFFER", 1 << 31),
                ):
                    seconds = session.seconds(partial(decomposition.gram_matrix, matrix, None), 1, 1)
                session.note("Gram matrix", of=f"{shape}", tile=tile, columns=columns, ms=seconds * 1e3)


def exact(session: Session) -> None:
    """The other way to the singular values, by which driver."""
    for full in (1024, 2048, 4096):
        k = session.size(full)
        factor = torch.linalg.qr(weight(2 * k, k, session.device).double(), mode="r").R
        drivers: Sequence[str | None] = ("gesvd", "gesvdj") if k <= 1024 else ("gesvd",)
        for driver in drivers if session.device.type == "cuda" else (None,):
            session.start_peak()
            seconds = session.seconds(partial(torch.linalg.svdvals, factor, driver=driver))
            session.note("svdvals in float64", k=k, driver=driver, seconds=seconds, **session.peak())
        session.start_peak()
        matrix = weight(k, 3 * k, session.device)
        seconds = session.seconds(partial(decomposition.exact_singular_values, matrix, None))
        session.note("exact method", shape=f"{k}x{3 * k}", seconds=seconds, **session.peak())


def launched(
    command: Sequence[str], cwd: Path, session: Session, stdout: IO[str] | int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run a process that finds the package, and no network."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    errors = subprocess.PIPE if stdout == subprocess.PIPE else subprocess.STDOUT
    limit = max(1.0, session.left())
    return subprocess.run(command, cwd=cwd, env=environment, stdout=stdout, stderr=errors, text=True, timeout=limit)


def spectrum(session: Session, model: Path, cwd: Path, device: str, launcher: Sequence[str] = ()) -> dict[str, float]:
    """Run the command; note how long it took and what it said. Returns the scores."""
    cwd.mkdir(exist_ok=True)
    command = [sys.executable, *launcher, "-m", "spectrum", "--model-name", str(model), "--yes", "--device", device]
    started = time.perf_counter()
    done = launched(command, cwd, session)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(done.stderr[-500:])
    session.note("command", model=model.name, device=device, seconds=seconds, said=done.stdout.splitlines()[0])
    scores = json.loads(ScanStore(cwd / "model_snr_results", str(model)).scan_path.read_text())
    return {layer: entry["snr"] for layer, entry in scores.items()}


def command(session: Session) -> None:
    """The command on the sample, on GPU and CPU; and on a model of Phi-3.5-mini's shapes and four layers from disk."""
    import transformers

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        on_cpu = spectrum(session, SAMPLE, scratch / "cpu", "cpu")
        on_device = spectrum(session, SAMPLE, scratch / "device", session.device.type)
        assert on_cpu.keys() == on_device.keys()
        session.note("sample", layers=len(on_cpu), error=max(abs(on_device[k] / v - 1) for k, v in on_cpu.items()))
        config = transformers.LlamaConfig(
            hidden_size=session.size(3072),
            intermediate_size=session.size(8192),
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=8,
            vocab_size=session.size(32064),
            tie_word_embeddings=False,
            dtype="bfloat16",
        )
        made = checkpoints.write(
            scratch / "phi", config, lambda rows, columns, _: weight(rows, columns, session.device).cpu()
        )
        session.note("checkpoint", GB=made / 1e9)
        spectrum(session, scratch / "phi", scratch / "of-phi", session.device.type)


@contextmanager
def card_of(session: Session, size: int) -> Iterator[None]:
    """Let the tool have so many bytes of the card's memory, beside what this process has already."""
    if session.device.type == "cpu":
        yield
        return
    devices.warm_up([session.device])
    torch.cuda.empty_cache()
    whole_card = torch.cuda.get_device_properties(session.device).total_memory
    most = min(1.0, (torch.cuda.memory_reserved(session.device) + size) / whole_card)
    torch.cuda.set_per_process_memory_fraction(most, session.device)
    try:
        with (
            mock.patch.object(torch.cuda, "mem_get_info", return_value=(size, size)),
            mock.patch.object(executor, "warm_up"),  # which would have no memory, either
        ):
            yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, session.device)


def memory(session: Session) -> None:
    """Smaller cards: a 70B on one of 8 GiB; then batches are halved, lanes wait, the CPU stands in."""
    full, part, _ = WORKLOADS["Llama-3-70B"]
    samples, counts = samples_of(session, full)
    with card_of(session, 8 << 30):
        row = scan(session, samples, counts)
        session.note("8 GiB", of="Llama-3-70B", whole_model_s_at_most=seconds_of(row) / part, **row)
    samples, counts = samples_of(session, {(1024, 8192): 8})
    for mebibytes in (400, 100, 1):
        with card_of(session, mebibytes << 20):
            session.note("little memory", MiB=mebibytes, **scan(session, samples, counts, None, 4))


def reference(session: Session) -> None:
    """The reference's float32 `svdvals`: sizes grow as long as the next one is foreseen to fit."""
    ends = session.left() - 45
    seconds, last = 0.0, 0.0
    for shape in ((1024, 1024), (2048, 2048), (3072, 8192), (4096, 4096), (4096, 14336), (8192, 8192), (8192, 28672)):
        samples, counts = samples_of(session, {shape: 1})
        ((k, m),) = counts
        work = float(k * k * m)
        foreseen = seconds * work / last if last else 0.0
        if foreseen > session.left() - max(5.0, ends):
            session.note("reference", shape=f"{k}x{m}", foreseen_s=foreseen, left_out="no time")
            continue
        matrix = samples[k, m].to(session.device).float()
        seconds, last = session.seconds(partial(snr_float32, matrix), 1, 0 if last else 1), work
        ours = seconds_of(scan(session, samples, {(k, m): 16})) / 16
        session.note("reference", shape=f"{k}x{m}", seconds=seconds, ours_each_s=ours, times=seconds / ours)


def together(session: Session) -> None:
    """Two processes that share the card."""
    with tempfile.TemporaryDirectory() as name:
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        spectrum(session, SAMPLE, Path(name), "cpu" if session.rehearse else "auto", launcher)


def experts(session: Session) -> None:
    """Batches of experts, by lanes and by how many are in a batch."""
    samples, counts = samples_of(session, {(768, 2048): 1344})
    for batch_size in (16, 42, 84, 168):
        for number in (2, 6):
            row = scan(session, samples, counts, number, batch_size)
            session.note("experts", batch_size=batch_size, lanes=number, **row)


def large(session: Session) -> None:
    """The largest short side of today's models, and a large embedding."""
    for shape in ((16384, 16384), (152064, 8192)):
        session.note("large", shape=f"{shape}", **scan(session, *samples_of(session, {shape: 1})))


# With the seconds that each is foreseen to take on an H100.
STEPS: Sequence[Step] = [
    ("machine", machine, 5),
    ("ceilings", ceilings, 8),
    ("edges", edges, 8),
    ("eigensolver", eigensolver, 40),
    ("lanes", lanes, 80),
    ("tests", tests, 40),
    ("tiles", tiles, 10),
    ("exact", exact, 15),
    ("command", command, 50),
    ("memory", memory, 20),
    ("reference", reference, 30),
    ("together", together, 30),
    ("experts", experts, 60),
    ("large", large, 30),
]
