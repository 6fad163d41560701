"""1-D k-means on cases worked by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from espalier.errors import InvalidArgument
from espalier.kernels import kmeans as kernels
from espalier.quantization.kmeans import assign, kmeans_1d
from espalier.quantization.partition import best_partition
from espalier.quantization.quantizers.kmeans import KMeans
from espalier.quantization.solvers.lloyd import Lloyd
from espalier.quantization.solvers.optimal import Optimal
from espalier.quantization.sorted_values import SortedValues, sort, sort_with

SOLVED = ["lloyd", "exact", "optimal"]


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize("solver", SOLVED)
def test_two_pairs(solver: str) -> None:
    found = kmeans_1d(f32(4, 0, 1, 5), 2, solver=solver)
    assert found.centroids.tolist() == [0.5, 4.5]
    assert found.codes.tolist() == [1, 0, 0, 1]
    assert found.codes.dtype == np.uint8
    assert found.wcss == 1.0
    assert found.gap == (None if solver == "lloyd" else 0.0)


@pytest.mark.parametrize("solver", SOLVED)
@pytest.mark.parametrize("k", [3, 4, 300, 65536])
def test_no_more_distinct_values_than_k_are_kept_exactly(solver: str, k: int) -> None:
    values = f32(0.1, 7, 0.1, -2, 7)
    found = kmeans_1d(values, k, solver=solver)
    assert found.wcss == 0.0
    assert found.gap == 0.0
    assert np.array_equal(found.centroids.astype(np.float32)[found.codes], values)
    assert found.centroids.size == 3


@pytest.mark.parametrize("solver", SOLVED)
def test_all_equal_one_and_none(solver: str) -> None:
    same = kmeans_1d(np.full((3, 2), 0.3, np.float32), 4, solver=solver)
    assert same.centroids.tolist() == [np.float32(0.3)]
    assert same.codes.tolist() == [0] * 6
    one = kmeans_1d([-1.5], 1, solver=solver)
    assert (one.centroids.tolist(), one.codes.tolist(), one.wcss) == ([-1.5], [0], 0.0)
    none = kmeans_1d(np.zeros((0, 4), np.float32), 8, solver=solver)
    assert (none.centroids.size, none.codes.size, none.wcss, none.gap) == (0, 0, 0.0, 0.0)


def test_one_cluster_is_the_mean() -> None:
    found = kmeans_1d(f32(0, 1, 5), 1)
    assert found.centroids.tolist() == [2.0]
    assert found.wcss == 14.0


def test_weights_pull_the_centroid() -> None:
    found = kmeans_1d(f32(0, 1, 10), 2, weights=[3, 1, 1], solver="exact")
    assert found.centroids.tolist() == [0.25, 10.0]
    assert found.wcss == 0.75


def test_a_value_of_weight_0_has_a_code_but_no_say() -> None:
    found = kmeans_1d(f32(0, 1, 10, 4), 2, weights=[1, 1, 1, 0], solver="exact")
    assert found.centroids.tolist() == [0.5, 10.0]
    assert found.codes.tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("solver", SOLVED)
def test_weights_too_small_to_count(solver: str) -> None:
    found = kmeans_1d(f32(0, 1, 10, 11, 4), 3, weights=[1, 1, 1, 1, 1e-40], solver=solver)
    # Lloyd spends a centroid on the value without weight, and stays there.
    assert found.wcss == pytest.approx(1.0 if solver == "lloyd" else 0.5)


def test_read_only_and_strided_values() -> None:
    grid = np.arange(12, dtype=np.float32).reshape(3, 4)
    grid.flags.writeable = False
    assert kmeans_1d(grid.T, 3).codes.tolist() == [0, 1, 2] * 4


def test_assign_gives_ties_to_the_lower() -> None:
    assert assign(f32(0, 0.5, 1, 1.5, 2, 9, -9), [0.0, 1.0, 2.0]).tolist() == [0, 0, 1, 1, 2, 2, 0]


def test_assign_does_not_round_distances() -> None:
    # The middle of 1 and the next float32 lies between them, and no value in float32 is on it.
    low, high = np.float32(1), np.nextafter(np.float32(1), np.float32(2))
    assert assign(np.array([low, high]), np.array([low, high])).tolist() == [0, 1]
    # In float64 the sum of these two rounds up to the value's double: it is nearer the higher.
    book = np.array([-1.0, 1.0 + 2.0**-52])
    assert assign(np.array([0.0, 2.0**-53, 2.0**-52]), book).tolist() == [0, 0, 1]
    book = np.array([1.0, 1.0 + 3 * 2.0**-52])
    assert assign(np.array([1 + 2.0**-52, 1 + 2 * 2.0**-52]), book).tolist() == [0, 1]


@pytest.mark.parametrize("k", [256, 257, 65536])
def test_codes_take_the_smallest_dtype(k: int) -> None:
    book = np.arange(k) / 7.0
    codes = assign(book[::-1], book)
    assert codes.dtype == (np.uint8 if k <= 256 else np.uint16)
    assert np.array_equal(codes, np.arange(k)[::-1])


def test_assign_refuses() -> None:
    with pytest.raises(InvalidArgument, match="rise"):
        assign(f32(1), [2.0, 1.0])
    with pytest.raises(InvalidArgument, match="0 centroids"):
        assign(f32(1), [])
    assert assign(f32(), []).size == 0


def pruned(n: int = 4000) -> np.ndarray:
    """A layer after pruning: nothing about 0, so that equal steps leave clusters empty."""
    values = np.random.default_rng(3).normal(size=n).astype(np.float32)
    return values[np.abs(values) > 1.5]


def test_empty_clusters_are_reseeded_and_counted() -> None:
    kept = kmeans_1d(pruned(), 32, init="linear", reseed=False)
    assert kept.reseeded == 0
    assert kept.centroids.size < 32
    filled = kmeans_1d(pruned(), 32, init="linear")
    assert filled.reseeded >= 32 - kept.centroids.size
    assert filled.centroids.size == 32
    assert filled.wcss < kept.wcss


def test_reseeding_by_hand() -> None:
    # Nothing is nearest to 8. The costliest cluster, 0 to 3.5, is cut at its mean, 2.
    data = SortedValues.of_sorted(np.array([0.0, 1.0, 3.5, 3.5, 10.0]), np.empty(0))
    centroids = np.array([0.0, 8.0, 10.0])
    assert kernels.lloyd(*data.sums, centroids, 1, False) == (1, 0)
    assert centroids.tolist() == [2.0, 8.0, 10.0]
    centroids = np.array([0.0, 8.0, 10.0])
    assert kernels.lloyd(*data.sums, centroids, 1, True) == (1, 1)
    assert centroids.tolist() == [0.5, 3.5, 10.0]


def test_no_iterations_keep_the_initial_centroids() -> None:
    found = kmeans_1d(f32(0, 1, 2, 10), 2, init="linear", iterations=0)
    assert found.centroids.tolist() == [0.0, 10.0]
    assert found.iterations == 0


def test_values_far_from_0_lose_nothing() -> None:
    values = 1e6 + np.array([0.0, 1e-3, 1.0, 1.0 + 1e-3])
    assert kmeans_1d(values, 2, solver="exact").wcss == pytest.approx(1e-6, rel=1e-4)


def test_ties_between_penalties_still_give_k() -> None:
    # For equal steps the optimal costs of 3, 4, 5, ... clusters lie on lines: no penalty yields k.
    sums = SortedValues.of_sorted(np.arange(12.0), np.empty(0)).sums_at(np.arange(13))
    for k, cost in [(1, 143.0), (4, 8.0), (5, 5.5), (6, 3.0), (7, 2.5), (11, 0.5), (12, 0.0)]:
        best = best_partition(sums, k)
        assert best.cuts.size == k + 1
        assert best.optimal
        w, s1, s2 = np.diff(sums[:, best.cuts], axis=1)
        assert np.sum(s2 - s1**2 / w) == pytest.approx(cost)


def test_the_blocks_of_optimal_stay_within_their_limit() -> None:
    values = np.random.default_rng(0).standard_cauchy(3000)
    exact = kmeans_1d(values, 8, solver="exact")
    for blocks in (1, 16, 64, 512):
        found = kmeans_1d(values, 8, solver=Optimal(blocks=blocks))
        assert found.gap is None or found.wcss / (1 + found.gap) <= exact.wcss
        assert found.wcss >= exact.wcss
    assert found.gap is not None
    assert found.gap < 0.1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_sorting(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espalier.quantization.sorted_values.RADIX_FROM", 0)
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(size=3000), [0.0, -0.0, 1e-7, -1e-7, 3e4]]).astype(dtype)
    if dtype != np.float16:
        assert np.array_equal(sort(values), np.sort(values))
    weights = rng.random(values.size)
    for threads in "123":
        monkeypatch.setenv("NUMBA_NUM_THREADS", threads)
        ordered, mass = sort_with(values, weights)
        order = np.lexsort([np.signbit(values) ^ 1, values])
        assert np.array_equal(ordered, values[order])
        nonzero = values[order] != 0
        assert np.array_equal(mass[nonzero], weights[order][nonzero])


def test_any_number_of_threads_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(5).normal(size=600_000).astype(np.float32)
    results = []
    for threads in "125":
        monkeypatch.setenv("NUMBA_NUM_THREADS", threads)
        found = kmeans_1d(values, 20)
        results.append((found.centroids.tobytes(), found.codes.tobytes(), found.wcss, found.gap))
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (f32(1, np.nan, np.nan, np.nan, np.inf), "values hold 3 NaN and 1 infinite"),
        (f32(-np.inf), "values hold 0 NaN and 1 infinite"),
        (np.array([1, 2]), "not int64"),
        (np.array([1e200, 0.0]), "squared"),
    ],
)
def test_refused_values(values: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        kmeans_1d(values, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "not 0"),
        ({"k": 65537}, "not 65537"),
        ({"k": 2.5}, "whole number"),
        ({"k": 2, "weights": [1.0]}, "1 weights for 3 values"),
        ({"k": 2, "weights": [1.0, -1.0, 1.0]}, "0 or more"),
        ({"k": 2, "weights": [0.0, 0.0, 0.0]}, "all 0"),
        ({"k": 2, "solver": "exact", "init": "linear"}, "needs no init"),
        ({"k": 2, "solver": Lloyd(), "init": "linear"}, "beside"),
        ({"k": 2, "solver": "lloyd", "iterations": -1}, "not -1"),
    ],
)
def test_refused_arguments(options: dict, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        kmeans_1d(f32(1, 2, 3), **options)


class TestQuantizer:
    def test_codes_are_for_kept_elements_in_flat_order(self) -> None:
        weight = f32(0, 2, -3, 0, 2, 9).reshape(2, 3)
        shared = KMeans(bits=2).fit(weight, weight != 0)
        assert shared.codebook.tolist() == [-3, 2, 9]
        assert shared.codes.tolist() == [1, 0, 1, 2]

    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_the_codebook_has_the_dtype_of_the_values(self, dtype: type) -> None:
        values = np.random.default_rng(0).normal(size=(20, 30)).astype(dtype)
        shared = KMeans(bits=4).fit(values)
        assert shared.codebook.dtype == dtype
        assert np.all(np.diff(shared.codebook) > 0)
        distance = np.abs(values.reshape(-1, 1).astype(np.float64) - shared.codebook)
        assert np.array_equal(shared.codes, distance.argmin(axis=1))

    def test_centroids_that_round_to_one_are_merged(self) -> None:
        fine = np.repeat(np.float16(1) + np.arange(6) * np.float16(2**-10), 5)
        shared = KMeans(bits=3).fit(fine.astype(np.float16))
        assert np.array_equal(shared.codebook[shared.codes], fine)

    @pytest.mark.parametrize("shape", [(0, 3), (2, 3)])
    def test_nothing_kept(self, shape: tuple[int, int]) -> None:
        shared = KMeans().fit(np.ones(shape, np.float32), np.zeros(shape, bool))
        assert (shared.codebook.size, shared.codes.size) == (0, 0)
        assert shared.codebook.dtype == np.float32

    def test_infinite_values_count_only_where_kept(self) -> None:
        values = f32(1, np.inf, 2)
        assert KMeans().fit(values, np.array([True, False, True])).codes.tolist() == [0, 1]
        with pytest.raises(InvalidArgument, match="1 infinite"):
            KMeans().fit(values)

    def test_importance(self) -> None:
        values, mask = f32(0, 1, 10, 5), np.array([True, True, True, False])
        shared = KMeans(bits=1).fit(values, mask, f32(3, 1, 1, 9))
        assert shared.codebook.tolist() == [0.25, 10]
        nothing_matters = KMeans(bits=1).fit(values, mask, np.zeros(4))
        assert nothing_matters.codebook.tolist() == [0.5, 10]

    @pytest.mark.parametrize("bits", [0, 17, -1])
    def test_bits(self, bits: int) -> None:
        with pytest.raises(InvalidArgument, match="1 and 16"):
            KMeans(bits=bits)

    def test_refused_shapes(self) -> None:
        with pytest.raises(InvalidArgument, match="mask has shape"):
            KMeans().fit(f32(1, 2), np.array([True]))
        with pytest.raises(InvalidArgument, match="bool"):
            KMeans().fit(f32(1, 2), np.array([1, 0]))


def test_no_torch_is_imported() -> None:
    root = Path(kernels.__file__).parents[1]
    for path in [*root.glob("kernels/*.py"), *root.glob("quantization/solvers/*.py")]:
        assert "import torch" not in path.read_text(encoding="utf-8")
