"""Scores compared with NumPy's float64 SVD and with theory, for both methods that compute singular values."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from spectrum.compute import decomposition, snr
from spectrum.compute.workspace import call_bytes
from tests.helpers.oracle import oracle_edge, oracle_snr
from tests.helpers.paths import TINY_LLAMA

Matrix = NDArray[np.float64]


def score(matrix: Matrix | torch.Tensor, device: str = "cpu") -> float:
    return float(snr.score(torch.as_tensor(matrix).to(device)[None]).snr.item())


def edge_of(matrix: Matrix | torch.Tensor, device: str = "cpu") -> tuple[float, float, float, float]:
    """The fields of a `BulkEdge`: counts above and below, nearest, sensitivity."""
    _, *edge = (float(value.item()) for value in snr.score(torch.as_tensor(matrix).to(device)[None]))
    above, below, nearest, sensitivity = edge
    return above, below, nearest, sensitivity


def gaussian(n: int, m: int, seed: int = 0) -> Matrix:
    return np.random.default_rng(seed).standard_normal((n, m))


def of_spectrum(values: Matrix, m: int, seed: int = 0) -> Matrix:
    """A (k, m) matrix with k given singular values and random singular vectors."""
    k = len(values)
    left, _ = np.linalg.qr(gaussian(k, k, seed))
    right, _ = np.linalg.qr(gaussian(m, k, seed + 1))
    matrix: Matrix = (left * values) @ right.T
    return matrix


def with_outliers(k: int, m: int, seed: int = 0) -> Matrix:
    """Noise, and three singular values at 10 to 100 times its median."""
    bulk = np.linalg.svd(gaussian(k, m, seed), compute_uv=False)
    spikes = np.median(bulk) * np.array([10.0, 30.0, 100.0])
    return of_spectrum(np.concatenate([spikes, bulk[3:]]), m, seed)


# Spectra that the Gram matrix resolves to the promised accuracy, and spectra that are too wide for it: half of their
# values are below the square root of float64's epsilon.
ORDINARY: Mapping[str, Callable[[int, int], Matrix]] = {
    "random": gaussian,
    "power law": lambda k, m: of_spectrum(np.arange(1.0, k + 1) ** -0.7, m),
    "outliers": with_outliers,
    "offset": lambda k, m: gaussian(k, m) + 3.0,
}
WIDE: Mapping[str, Callable[[int, int], Matrix]] = {
    "1e0 to 1e-14": lambda k, m: of_spectrum(np.geomspace(1, 1e-14, k), m),
    "1e0 to 1e-9": lambda k, m: of_spectrum(np.geomspace(1, 1e-9, k), m),
    "one large": lambda k, m: of_spectrum(np.concatenate([[1.0], np.geomspace(1e-6, 1e-9, k - 1)]), m),
}
SPECTRA = {**ORDINARY, **WIDE}

SHAPES = [(1, 1), (1, 7), (2, 2), (2, 9), (3, 3), (3, 50), (4, 5), (5, 4), (5, 40), (40, 40), (37, 90), (90, 37)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_score_is_that_of_a_float64_svd_of_the_stored_weight(
    shape: tuple[int, int], dtype: torch.dtype, device: str
) -> None:
    stored = torch.from_numpy(np.stack([gaussian(*shape, seed) for seed in range(8)])).to(dtype)
    expected = [oracle_snr(matrix.double().numpy()) for matrix in stored]
    assert snr.score(stored.to(device)).snr.tolist() == pytest.approx(expected, rel=1e-8)


def test_embeddings_are_scored_as_any_matrix(device: str) -> None:
    # 5000 rows take several chunks of columns, 64 columns one block of the Gram matrix.
    matrix = gaussian(5000, 64) * np.arange(1, 65) ** -0.5 + 0.1
    assert score(matrix, device) == pytest.approx(oracle_snr(matrix), rel=1e-8)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("k", "m"), [(16, 16), (48, 200), (120, 130)])
def test_the_score_of_any_spectrum_is_that_of_a_float64_svd(spectrum: str, k: int, m: int, device: str) -> None:
    matrix = SPECTRA[spectrum](k, m)
    assert score(matrix, device) == pytest.approx(oracle_snr(matrix), rel=1e-8)


@pytest.mark.parametrize(
    ("spectrum", "scale", "dtype"),
    [
        ("random", 1e-200, torch.float64),
        ("random", 1e200, torch.float64),
        ("1e0 to 1e-14", 1e-200, torch.float64),
        ("1e0 to 1e-14", 1e200, torch.float64),
        ("random", 1e-30, torch.float32),
        ("1e0 to 1e-9", 1e-30, torch.float32),
        ("random", 1e36, torch.float32),
    ],
)
def test_entries_whose_squares_overflow_or_vanish(spectrum: str, scale: float, dtype: torch.dtype, device: str) -> None:
    stored = torch.from_numpy(SPECTRA[spectrum](24, 60) * scale).to(dtype)
    assert score(stored, device) == pytest.approx(oracle_snr(stored.double().numpy()), rel=1e-8)


def exact_calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """A list that collects the matrices that the exact method decomposes from now on."""
    calls: list[torch.Tensor] = []
    exact = decomposition.exact_singular_values

    def spy(weight: torch.Tensor, exponent: torch.Tensor | None) -> torch.Tensor:
        calls.append(weight)
        return exact(weight, exponent)

    monkeypatch.setattr(snr, "exact_singular_values", spy)
    return calls


@pytest.mark.parametrize(
    ("spectra", "decomposed_again"), [(ORDINARY, False), (WIDE, True)], ids=["ordinary", "too wide"]
)
def test_only_spectra_too_wide_for_the_gram_matrix_are_decomposed_again(
    spectra: Mapping[str, Callable[[int, int], Matrix]], decomposed_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = torch.from_numpy(np.stack([make(48, 200) for make in spectra.values()]))
    calls = exact_calls(monkeypatch)
    snr.score(batch)
    assert [any(torch.equal(matrix, call) for call in calls) for matrix in batch] == [decomposed_again] * len(batch)
    assert len(calls) == decomposed_again * len(batch)


@pytest.mark.parametrize(("k", "m"), [(8, 8), (8, 40), (50, 50), (50, 150), (200, 220)])
@pytest.mark.parametrize("spectrum", [*SPECTRA, "rank one", "half the rank"])
def test_the_claimed_error_bounds_that_of_singular_values_from_a_gram_matrix(spectrum: str, k: int, m: int) -> None:
    few = np.zeros(k)
    few[: 1 if spectrum == "rank one" else k // 2] = 1
    matrix = SPECTRA[spectrum](k, m) if spectrum in SPECTRA else of_spectrum(few, m)
    gram = decomposition.gram_matrix(torch.from_numpy(matrix)[None], None)
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    bound = decomposition.gram_error(values, k + m)
    expected = np.linalg.svd(matrix, compute_uv=False)[::-1]
    of_the_oracle = 8 * np.finfo(np.float64).eps * expected[-1]
    error = np.abs(values[0].numpy() - expected)
    assert (error <= bound[0].numpy() + of_the_oracle).all()


@pytest.mark.parametrize("certain", [True, False], ids=["from the Gram matrix", "decomposed again"])
@pytest.mark.parametrize("shape", [*SHAPES, (530, 540)], ids=str)
def test_either_way_to_the_singular_values_gives_the_score(
    shape: tuple[int, int], certain: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snr, "_is_certain", lambda values, error, beta: torch.full((len(values),), certain))
    calls = exact_calls(monkeypatch)
    batch = torch.from_numpy(np.stack([gaussian(*shape, seed) for seed in range(2)]))
    scores = snr.score(batch.to(device)).snr.tolist()
    assert scores == pytest.approx([oracle_snr(matrix) for matrix in batch.numpy()], rel=1e-8)
    assert len(calls) == (0 if certain else 2)


@pytest.mark.parametrize("certain", [True, False], ids=["from the Gram matrix", "decomposed again"])
@pytest.mark.parametrize("shape", [(1, 23), (7, 7), (8, 30), (31, 9), (29, 100)], ids=str)
@pytest.mark.parametrize(("block", "chunk"), [(1, 16), (3, 5), (8, 1)])
def test_many_blocks_and_chunks_give_the_same_score(
    shape: tuple[int, int], block: int, chunk: int, certain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decomposition, "_CPU_TILE", (block, chunk))
    monkeypatch.setattr(decomposition, "_MIN_FOLD", chunk)
    monkeypatch.setattr(snr, "_is_certain", lambda values, error, beta: torch.full((len(values),), certain))
    matrix = gaussian(*shape)
    assert score(matrix) == pytest.approx(oracle_snr(matrix), rel=1e-8)


def test_a_score_does_not_depend_on_the_rest_of_its_batch(device: str) -> None:
    stack = np.stack([make(24, 60) * 10.0**i for i, make in enumerate(SPECTRA.values())])
    alone = [score(matrix, device) for matrix in stack]
    order = np.random.default_rng(0).permutation(len(stack))
    together = snr.score(torch.from_numpy(stack[order]).to(device)).snr.tolist()
    # A GPU's matrix product rounds differently by the size of its batch.
    assert together == pytest.approx([alone[i] for i in order], rel=0 if device == "cpu" else 1e-10, abs=0)


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_a_matrix_and_its_transpose_have_one_score(spectrum: str) -> None:
    matrix = SPECTRA[spectrum](24, 60)
    assert score(np.ascontiguousarray(matrix.T)) == pytest.approx(score(matrix), rel=1e-10)
    assert score(matrix.T) == pytest.approx(score(matrix), rel=1e-10)  # a view with strides of its own


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("factor", [1e-3, -2.0, 1e5])
def test_the_score_goes_as_one_over_the_scale(spectrum: str, factor: float) -> None:
    matrix = SPECTRA[spectrum](24, 60)
    assert score(matrix * factor) == pytest.approx(score(matrix) / abs(factor), rel=1e-8)


def test_a_matrix_of_zeros_scores_zero(device: str) -> None:
    for shape in [(1, 1), (1, 5), (6, 4)]:
        assert score(np.zeros(shape), device) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("intruder", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_leave_the_rest_of_the_batch_alone(intruder: float, dtype: torch.dtype, device: str) -> None:
    stored = torch.from_numpy(np.stack([gaussian(6, 9, seed) for seed in range(4)])).to(dtype)
    expected = [oracle_snr(matrix.double().numpy()) for matrix in stored]
    stored[0, 0, 0] = stored[2, 5, 8] = intruder
    scores = snr.score(stored.to(device)).snr.tolist()
    assert [math.isnan(value) for value in scores] == [True, False, True, False]
    assert scores[1::2] == pytest.approx(expected[1::2], rel=1e-8)
    assert math.isnan(score(stored[0], device))


@pytest.mark.parametrize("shape", [(10, 10), (10, 33), (33, 10)], ids=str)
def test_exactly_low_rank_matrices_have_finite_scores(shape: tuple[int, int], device: str) -> None:
    # All other singular values are zeros, which a decomposition returns as rounding errors. They must not count as
    # noise: a single value s_1 is signal without noise, which scores 1 at any scale.
    left, right = gaussian(shape[0], 5), gaussian(5, shape[1], seed=1)
    for scale in (1e-3, 1.0, 1e3):
        assert score(scale * left[:, :1] @ right[:1], device) == pytest.approx(1, rel=1e-12)
    values = np.linalg.svd(left @ right, compute_uv=False)[:5]
    edge = np.quantile([*values, 0, 0, 0, 0, 0], 0.75) / 1.349 * (1 + math.sqrt(min(shape) / max(shape)))
    signal, noise = values[values > edge].sum(), values[values <= edge].sum()
    assert score(left @ right, device) == pytest.approx(signal / noise / values[0], rel=1e-8)


def test_an_orthogonal_matrix_has_no_noise(device: str) -> None:
    # All k singular values are s_1, and noise counts as 1: k s_1 / 1 / s_1.
    matrix, _ = np.linalg.qr(gaussian(12, 12))
    assert score(matrix, device) == pytest.approx(12, rel=1e-12)
    assert score(matrix * 1000, device) == pytest.approx(12, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_one_row_scores_exactly_one(dtype: torch.dtype, device: str) -> None:
    rows = torch.from_numpy(np.stack([gaussian(1, 96, seed) * 10.0 ** (seed % 7 - 3) for seed in range(50)]))
    assert snr.score(rows.to(dtype).to(device)).snr.tolist() == [1.0] * 50


@pytest.mark.parametrize(("n", "m"), [(1000, 1000), (700, 1000)], ids=str)
def test_pure_noise_scores_what_the_marchenko_pastur_law_says(n: int, m: int) -> None:
    # Density of s / sqrt(m) for Gaussian entries: sqrt((b^2 - s^2)(s^2 - a^2)) / (pi beta s) from a to b, which for a
    # square matrix is a quarter of a circle. Singular values repel each other, so at this size they follow it
    # closely, and signal and noise are its first moments over and under the edge.
    beta = n / m
    low, high = 1 - math.sqrt(beta), 1 + math.sqrt(beta)
    grid = np.linspace(low, high, 200_001)[1:-1]
    density = np.sqrt((high**2 - grid**2) * (grid**2 - low**2)) / (math.pi * beta * grid)
    q25, q75 = np.interp([0.25, 0.75], np.cumsum(density) / density.sum(), grid)
    edge = (q75 - q25) / 1.349 * (1 + math.sqrt(beta))
    signal, noise = ((grid * density)[side].sum() for side in (grid > edge, grid <= edge))
    expected = signal / noise / (high * math.sqrt(m))
    scores = snr.score(torch.from_numpy(np.stack([gaussian(n, m, seed) for seed in range(2)])))
    assert scores.snr.tolist() == pytest.approx([expected] * 2, rel=0.02)


def stored_weights() -> dict[str, torch.Tensor]:
    shards = set(json.loads((TINY_LLAMA / "model.safetensors.index.json").read_text())["weight_map"].values())
    return {key: value for shard in sorted(shards) for key, value in load_file(TINY_LLAMA / shard).items()}


def float32_procedure(matrix: torch.Tensor) -> float:
    """The published procedure, as it was run: everything in float32."""
    values = torch.linalg.svdvals(matrix.float())
    deviation = (torch.quantile(values, 0.75) - torch.quantile(values, 0.25)) / 1.349
    n, m = matrix.shape
    threshold = deviation * np.sqrt((1 + np.sqrt(min(n, m) / max(n, m))) ** 2)
    signal, noise = (float(values[side].sum()) for side in (values > threshold, values <= threshold))
    return signal / (noise if noise != 0 else 1) / float(values.max())


def test_trained_weights_score_and_rank_as_by_the_published_procedure() -> None:
    ours: dict[str, dict[str, float]] = defaultdict(dict)
    theirs: dict[str, dict[str, float]] = defaultdict(dict)
    for key, weight in stored_weights().items():
        layer_type = re.sub(r"^model\.layers\.\d+\.", "", key)
        matrix = weight if weight.ndim > 1 else weight[None]
        ours[layer_type][key], theirs[layer_type][key] = score(matrix), float32_procedure(matrix)
    assert sum(map(len, ours.values())) == 75
    for layer_type, scores in ours.items():
        assert scores == pytest.approx(theirs[layer_type], rel=1e-4)
        for percent in (25, 50):
            count = len(scores) * percent // 100
            assert best(scores, count) == best(theirs[layer_type], count)


def best(scores: Mapping[str, float], count: int) -> list[str]:
    return sorted(scores, key=lambda key: -scores[key])[:count]


def test_a_singular_value_on_the_edge_is_noise() -> None:
    # The quartiles are 1 and 5; what is added between 5 and 9 moves neither.
    edge = snr.bulk_edge(snr.noise_scale(torch.tensor([[1.0, 1, 1, 2, 3, 4, 5, 6, 9]]).double()), 1)
    on_edge = float(edge)
    assert on_edge == pytest.approx(4 / 1.349 * 2)
    values = torch.tensor([[1.0, 1, 1, 2, 3, 4, 5, on_edge, 9]], dtype=torch.float64)
    assert snr.bulk_edge(snr.noise_scale(values), 1).item() == on_edge
    assert snr.signal_to_noise_ratio(values, edge).item() == pytest.approx(9 / (17 + on_edge) / 9, rel=1e-12)


def test_the_bulk_edge_needs_an_aspect_ratio() -> None:
    for beta in (0.0, -0.5, 1.5):
        with pytest.raises(ValueError, match=re.escape(repr(beta))):
            snr.bulk_edge(torch.ones(1), beta)


@pytest.mark.parametrize("exponent", [-1000, -300, -127, 127, 300, 1015])
def test_float64_entries_of_any_size_neither_overflow_nor_vanish(exponent: int, device: str) -> None:
    weight = gaussian(20, 30)
    scaled = score(np.ldexp(weight, exponent), device)
    assert scaled == pytest.approx(oracle_snr(weight) * 2.0**-exponent, rel=1e-8, abs=0)
    even = np.ldexp(np.eye(8), exponent)
    # No noise, which counts as 1: signal over s_1 has no unit.
    assert score(even, device) == pytest.approx(8, rel=0 if device == "cpu" else 1e-14)


def test_powers_of_two_are_exact(device: str) -> None:
    exponent = torch.arange(-1074, 1075, dtype=torch.int32)
    first, second = (factor.cpu().numpy() for factor in decomposition.powers_of_two(exponent.to(device)))
    expected = np.ldexp(1.0, exponent.numpy() // 2), np.ldexp(1.0, exponent.numpy() - exponent.numpy() // 2)
    assert np.array_equal(first, expected[0])
    assert np.array_equal(second, expected[1])


# The input of the eigensolver.


def spy_on_solver(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """A list that collects copies of the matrices that the eigensolver gets from now on."""
    given: list[torch.Tensor] = []
    solve = torch.linalg.eigvalsh

    def spy(gram: torch.Tensor, UPLO: str) -> torch.Tensor:  # noqa: N803
        given.append(gram.cpu().clone())
        values: torch.Tensor = solve(gram, UPLO=UPLO)
        return values

    monkeypatch.setattr(torch.linalg, "eigvalsh", spy)
    return given


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_neither_zeros_nor_what_is_not_finite_reaches_the_solver(
    dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = torch.from_numpy(np.stack([gaussian(6, 9, seed) for seed in range(6)])).to(dtype)
    expected = [oracle_snr(matrix.double().numpy()) for matrix in stored]
    stored[0] = 0
    for i, intruder in ((1, math.nan), (2, math.inf), (3, -math.inf)):
        stored[i, i, i] = intruder
    given = spy_on_solver(monkeypatch)
    scores = snr.score(stored.to(device)).snr.tolist()
    assert scores[0] == 0
    assert all(math.isnan(value) for value in scores[1:4])
    assert scores[4:] == pytest.approx(expected[4:], rel=1e-8)
    assert snr.singular_values(stored.to(device))[0].tolist() == [0] * 6
    for grams in given:
        assert grams.isfinite().all()
        assert grams.any(dim=2).all()


@pytest.mark.parametrize(
    ("elements", "matrices", "sizes"),
    [(2**31 - 1, 2**14, [7]), (80, 2**14, [2, 2, 2, 1]), (36, 9, [1] * 7), (10**6, 3, [3, 3, 1])],
)
def test_the_solver_gets_no_more_than_it_takes(
    elements: int, matrices: int, sizes: list[int], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = torch.from_numpy(np.stack([gaussian(6, 9, seed) for seed in range(7)])).to(device)
    expected = snr.score(batch).snr.tolist()
    monkeypatch.setattr(decomposition, "_MAX_ELEMENTS", elements)
    monkeypatch.setattr(decomposition, "_MAX_MATRICES", matrices)
    given = spy_on_solver(monkeypatch)
    assert snr.score(batch).snr.tolist() == pytest.approx(expected, rel=1e-12)
    assert [len(grams) for grams in given] == sizes


def test_values_that_do_not_sum_up_to_the_trace_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    solve = torch.linalg.eigvalsh

    def wrong(gram: torch.Tensor, UPLO: str) -> torch.Tensor:  # noqa: N803
        values: torch.Tensor = solve(gram, UPLO=UPLO)
        values[1, 3] *= 1.001
        return values

    monkeypatch.setattr(torch.linalg, "eigvalsh", wrong)
    with pytest.raises(torch.linalg.LinAlgError, match="trace"):  # type: ignore[attr-defined]
        snr.score(torch.from_numpy(np.stack([gaussian(6, 9, seed) for seed in range(3)])))


@pytest.mark.usefixtures("gpu")
def test_cuda_takes_no_matrix_that_its_solver_cannot_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decomposition, "_MAX_ELEMENTS", 35)
    with pytest.raises(torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        score(gaussian(6, 9), "cuda")


@pytest.mark.parametrize(("count", "shape"), [(42, (768, 2048)), (1, (3000, 4000)), (2, (512, 1 << 17))], ids=str)
@pytest.mark.usefixtures("gpu")
def test_cuda_takes_the_memory_that_is_counted(count: int, shape: tuple[int, int]) -> None:
    batch = torch.randn(count, *shape, device="cuda", dtype=torch.bfloat16)
    snr.score(batch)  # allocates the workspace of cuBLAS, which is not counted
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated() - batch.nbytes
    torch.cuda.reset_peak_memory_stats()
    snr.score(batch)
    counted, taken = call_bytes(count, shape, "bfloat16", gpu=True), torch.cuda.max_memory_allocated() - before
    assert taken < 1.1 * counted
    # Before version 2.12, torch gives each matrix of a batch to the solver alone: the workspace is that of one.
    assert taken > counted / 3


# The bulk edge.


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_what_lies_at_the_edge_is_as_by_a_float64_svd(shape: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    stored = torch.from_numpy(np.stack([gaussian(*shape, seed) for seed in range(8)])).to(dtype)
    _, *found = snr.score(stored.to(device))
    assert all(values.dtype == torch.float64 and values.device == found[0].device for values in found)
    for i, edge in enumerate(torch.stack(found, dim=1).tolist()):
        expected = oracle_edge(stored[i].double().numpy())
        assert edge[:2] == list(expected[:2])
        assert edge[2:] == pytest.approx(expected[2:], rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize(("k", "m"), [(16, 16), (48, 200), (120, 130)])
def test_the_edge_of_any_spectrum_is_as_by_a_float64_svd(spectrum: str, k: int, m: int, device: str) -> None:
    matrix = SPECTRA[spectrum](k, m)
    # The smallest values of this spectrum are lost in the rounding error of the largest.
    rank = sum(np.geomspace(1, 1e-14, k) > m * np.finfo(float).eps) if spectrum == "1e0 to 1e-14" else None
    expected = oracle_edge(matrix, rank)
    edge = edge_of(matrix, device)
    # Rounding decides on which side of the threshold the nearest value is.
    assert edge[1] == pytest.approx(expected[1], abs=0 if rank is None else 1)
    assert (edge[0], *edge[2:]) == pytest.approx((expected[0], *expected[2:]), rel=1e-7, abs=1e-10)
    assert edge[0] + edge[1] == k or rank is not None


def test_values_within_a_percent_of_the_edge_make_the_sensitivity(device: str) -> None:
    # Between quartiles of 1 and 5 the edge of a square matrix lies at 8 / 1.349, and what is added beyond 5 moves
    # neither. The sums on both sides, before and after a value half a percent off the edge changes sides, are by hand.
    edge = 8 / 1.349
    for near in (edge * 0.995, edge * 1.005):
        values = np.array([9.0, near, 5, 4, 3, 2, 1, 1, 1])
        above, below, nearest, sensitivity = edge_of(of_spectrum(values, 9), device)
        assert (above, below) == ((2, 7) if near > edge else (1, 8))
        assert nearest == pytest.approx(abs(near - edge) / max(near, edge), rel=1e-8)
        under, over = (9 + near) / 17 / 9, 9 / (17 + near) / 9
        assert sensitivity == pytest.approx((under - over) / under, rel=1e-10)
    # Two percent off it, a value stays where it is.
    above, below, nearest, sensitivity = edge_of(
        of_spectrum(np.array([9.0, edge * 0.98, 5, 4, 3, 2, 1, 1, 1]), 9), device
    )
    assert (above, below, sensitivity) == (1, 8, 0)
    assert nearest == pytest.approx(0.02, rel=1e-8)


@pytest.mark.parametrize("shape", [(10, 10), (10, 33), (33, 10)], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 5, 8])
def test_zeros_of_a_low_rank_are_counted_on_neither_side(shape: tuple[int, int], rank: int, device: str) -> None:
    matrix = gaussian(shape[0], rank) @ gaussian(rank, shape[1], seed=1)
    edge = edge_of(matrix, device)
    assert edge == pytest.approx(oracle_edge(matrix, rank), rel=1e-8, abs=1e-10)
    assert edge[0] + edge[1] == rank


def test_the_one_value_of_a_row_is_over_the_edge(device: str) -> None:
    for row in (gaussian(1, 96), gaussian(96, 1), gaussian(1, 1)):
        assert edge_of(row, device) == (1, 0, 1, 0)


def test_a_matrix_of_zeros_has_nothing_on_either_side(device: str) -> None:
    for shape in [(1, 1), (1, 5), (6, 4)]:
        assert edge_of(np.zeros(shape), device) == (0, 0, 1, 0)


@pytest.mark.parametrize("intruder", [math.nan, math.inf, -math.inf])
def test_the_edge_of_what_is_not_finite_is_that_of_zeros(intruder: float, device: str) -> None:
    stored = torch.from_numpy(np.stack([gaussian(6, 9, seed) for seed in range(3)]))
    expected = [oracle_edge(matrix.numpy()) for matrix in stored]
    stored[1, 5, 8] = intruder
    _, *edges = snr.score(stored.to(device))
    found = torch.stack(edges, dim=1).tolist()
    assert found[1] == [0, 0, 1, 0]
    assert found[0] == pytest.approx(expected[0], rel=1e-8)
    assert found[2] == pytest.approx(expected[2], rel=1e-8)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("factor", [1e-200, 1e-3, -2.0, 1e5, 1e200])
def test_what_lies_at_the_edge_does_not_depend_on_the_scale(spectrum: str, factor: float) -> None:
    matrix = SPECTRA[spectrum](24, 60)
    above, below, *rest = edge_of(matrix)
    scaled_above, scaled_below, *scaled_rest = edge_of(matrix * factor)
    assert scaled_above == above
    # Rounding decides on which side of the threshold for zeros the smallest value of this spectrum is.
    assert scaled_below == pytest.approx(below, abs=1 if spectrum == "1e0 to 1e-14" else 0)
    assert scaled_rest == pytest.approx(rest, rel=1e-7, abs=1e-10)


@pytest.mark.parametrize("certain", [True, False], ids=["from the Gram matrix", "decomposed again"])
def test_either_way_to_the_singular_values_gives_the_edge(certain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snr, "_is_certain", lambda values, error, beta: torch.full((len(values),), certain))
    for shape in [*SHAPES, (530, 540)]:
        matrix = gaussian(*shape)
        assert edge_of(matrix) == pytest.approx(oracle_edge(matrix), rel=1e-8, abs=1e-10)


# Singular values.


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_singular_values_are_those_of_a_float64_svd_of_the_stored_weight(
    shape: tuple[int, int], dtype: torch.dtype, device: str
) -> None:
    stored = torch.from_numpy(np.stack([gaussian(*shape, seed) for seed in range(4)])).to(dtype)
    found = snr.singular_values(stored.to(device))
    assert (found.shape, found.dtype) == ((4, min(shape)), torch.float64)
    for values, matrix in zip(found.cpu().numpy(), stored, strict=True):
        expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)[::-1]
        assert values == pytest.approx(expected, rel=1e-8, abs=1e-9 * expected[-1])


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_singular_values_of_any_spectrum_are_those_of_a_float64_svd(spectrum: str, device: str) -> None:
    for k, m in [(48, 200), (120, 130)]:
        matrix = SPECTRA[spectrum](k, m)
        expected = np.linalg.svd(matrix, compute_uv=False)[::-1]
        values = snr.singular_values(torch.from_numpy(matrix).to(device)[None])[0].cpu().numpy()
        tolerance = (1e-8 if spectrum in ORDINARY else 1e-13) * expected[-1]
        assert values == pytest.approx(expected, rel=1e-8, abs=tolerance)
        assert (values[1:] >= values[:-1]).all()


@pytest.mark.parametrize("exponent", [-1000, -300, 0, 300, 1015])
@pytest.mark.parametrize("spectrum", ["random", "1e0 to 1e-9"])
def test_singular_values_of_float64_entries_of_any_size(spectrum: str, exponent: int, device: str) -> None:
    matrix = SPECTRA[spectrum](20, 30)
    expected = np.linalg.svd(matrix, compute_uv=False)[::-1]
    stored = torch.from_numpy(np.ldexp(matrix, exponent)).to(device)
    scaled = snr.singular_values(stored[None])[0].cpu()
    # Back to the scale of the others in two steps, since one factor could be out of range.
    back = np.ldexp(np.ldexp(scaled.numpy(), -exponent // 2), -exponent - -exponent // 2)
    assert back == pytest.approx(expected, rel=1e-8, abs=1e-13 * expected[-1])


def test_zeros_among_singular_values_are_zeros(device: str) -> None:
    matrix = gaussian(20, 3) @ gaussian(3, 50, seed=1)
    values = snr.singular_values(torch.from_numpy(matrix).to(device)[None])[0].tolist()
    assert values[:-3] == [0.0] * 17
    assert values[-3:] == pytest.approx(np.linalg.svd(matrix, compute_uv=False)[2::-1], rel=1e-10)


def test_singular_values_of_what_is_not_finite_are_nan_and_no_others(device: str) -> None:
    stored = torch.from_numpy(np.stack([gaussian(6, 9, seed) for seed in range(3)]))
    stored[1, 2, 3] = math.inf
    found = snr.singular_values(stored.to(device))
    assert found.isnan().all(1).tolist() == [False, True, False]
    assert found.isnan().any(1).tolist() == [False, True, False]


def test_the_score_is_what_its_definition_makes_of_the_singular_values() -> None:
    matrix = torch.from_numpy(with_outliers(48, 200))[None]
    values = snr.singular_values(matrix)
    edge = snr.bulk_edge(snr.noise_scale(values), 48 / 200)
    assert snr.signal_to_noise_ratio(values, edge).item() == pytest.approx(snr.score(matrix).snr.item(), rel=1e-12)
