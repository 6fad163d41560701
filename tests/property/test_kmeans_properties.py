"""1-D k-means against plain Python: every kernel agrees with the few lines that define it."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.kernels import intervals
from espalier.kernels import kmeans as kernels
from espalier.quantization.kmeans import assign, kmeans_1d
from espalier.quantization.partition import shortest
from espalier.quantization.solvers.optimal import Optimal
from espalier.quantization.sorted_values import SortedValues

# Sixteenths: sums and squares are exact in float64, so that "agrees" can mean "is equal".
sixteenths = st.integers(-400, 400).map(lambda i: i / 16)
samples = st.lists(sixteenths, min_size=1, max_size=60)
many_samples = st.lists(sixteenths, min_size=1, max_size=260)  # several blocks of prefix sums
some_weights = st.lists(st.integers(1, 9).map(float), min_size=7, max_size=7)
any_float = st.floats(-(2.0**100), 2.0**100, width=32)


def brute_force(values: list[float], weights: list[float], k: int) -> float:
    """The least within-cluster sum of squares: the layered dynamic programme, in fractions."""
    points = sorted(zip(map(Fraction, values), map(Fraction, weights), strict=True))
    n = len(points)
    w, s1, s2 = [Fraction(0)], [Fraction(0)], [Fraction(0)]
    for v, m in points:
        w.append(w[-1] + m)
        s1.append(s1[-1] + m * v)
        s2.append(s2[-1] + m * v * v)

    def cost(i: int, j: int) -> Fraction:
        return s2[j] - s2[i] - (s1[j] - s1[i]) ** 2 / (w[j] - w[i])

    best = [Fraction(0)] + [cost(0, j) for j in range(1, n + 1)]
    for _ in range(min(k, n) - 1):
        best = [Fraction(0)] + [
            min(best[j], min((best[i] + cost(i, j) for i in range(1, j)), default=best[j]))
            for j in range(1, n + 1)
        ]
    return float(best[n])


def lloyd_reference(
    values: list[float], weights: list[float], centroids: list[float], iterations: int
) -> tuple[list[float], int]:
    """Lloyd without re-seeding; means are taken about the middle value, as in the kernel."""
    pairs = sorted(zip(values, weights, strict=True))
    shift = pairs[len(pairs) // 2][0]
    codes: list[int] = []
    for done in range(iterations):
        middles = [0.5 * a + 0.5 * b for a, b in pairwise(centroids)]
        nearest = [sum(v > middle for middle in middles) for v, _ in pairs]
        if nearest == codes:
            return centroids, done
        codes = nearest
        for j in set(codes):
            mine = [p for p, code in zip(pairs, codes, strict=True) if code == j]
            mean = shift + sum(m * (v - shift) for v, m in mine) / sum(m for _, m in mine)
            centroids[j] = min(max(mean, mine[0][0]), mine[-1][0])
    return centroids, iterations


@given(samples, some_weights, st.integers(1, 9), st.booleans())
@settings(deadline=None, max_examples=60)
def test_exact_is_the_brute_force_optimum(
    values: list[float], weights: list[float], k: int, weighted: bool
) -> None:
    mass = (weights * len(values))[: len(values)] if weighted else [1.0] * len(values)
    found = kmeans_1d(values, k, solver="exact", weights=mass if weighted else None)
    assert np.isclose(found.wcss, brute_force(values, mass, k), rtol=1e-11, atol=1e-10)
    assert found.gap == 0.0
    assert found.centroids.size == min(k, len(set(values)))


@given(samples, st.floats(0, 500))
@settings(deadline=None, max_examples=60)
def test_penalised_path_is_the_plain_recurrence(values: list[float], penalty: float) -> None:
    distinct = np.unique(values)
    sums = SortedValues.of_sorted(distinct, np.empty(0)).sums_at(np.arange(distinct.size + 1))
    w, s1, s2 = sums.tolist()
    best = [0.0]
    for j in range(1, len(w)):
        costs = [
            best[i] + max(0.0, s2[j] - s2[i] - (s1[j] - s1[i]) ** 2 / (w[j] - w[i])) + penalty
            for i in range(j)
        ]
        best.append(min(costs))
    path = shortest(sums, penalty)
    assert np.isclose(path.value, best[-1], rtol=1e-12, atol=1e-9)
    assert np.isclose(path.cost + path.links * penalty, best[-1], rtol=1e-12, atol=1e-9)


@given(many_samples, some_weights, st.lists(sixteenths, min_size=1, max_size=8), st.booleans())
@settings(deadline=None, max_examples=80)
def test_lloyd_is_the_plain_iteration(
    values: list[float], weights: list[float], start: list[float], weighted: bool
) -> None:
    mass = (weights * len(values))[: len(values)]
    data = SortedValues.of(np.array(values), np.array(mass) if weighted else None)
    centroids = np.sort(start)
    done, reseeded = kernels.lloyd(*data.sums, centroids, 20, False)
    expected = lloyd_reference(values, mass if weighted else [1.0] * len(values), sorted(start), 20)
    assert (centroids.tolist(), done) == expected
    assert reseeded == 0


@given(many_samples, st.integers(1, 12), st.sampled_from(["linear", "random", "kmeans++"]))
@settings(deadline=None, max_examples=40)
def test_wcss_never_rises_and_never_beats_the_optimum(
    values: list[float], k: int, init: str
) -> None:
    optimum = kmeans_1d(values, k, solver="exact").wcss
    previous = np.inf
    for iterations in (0, 1, 2, 3, 5, 300):
        found = kmeans_1d(values, k, init=init, iterations=iterations)
        assert found.wcss <= previous * (1 + 1e-12)
        assert found.wcss >= optimum * (1 - 1e-12) - 1e-12
        previous = found.wcss


@given(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=200),
    st.integers(1, 9),
    st.integers(1, 60),
)
@settings(deadline=None, max_examples=60)
def test_optimal_is_within_its_gap(values: list[float], k: int, blocks: int) -> None:
    exact = kmeans_1d(values, k, solver="exact")
    found = kmeans_1d(values, k, solver=Optimal(blocks=blocks))
    rounding = 1e-11 * (1 + np.square(values).sum())
    assert found.wcss >= exact.wcss - rounding
    if found.gap is not None:
        assert found.wcss / (1 + found.gap) <= exact.wcss + rounding


@given(
    st.lists(any_float, min_size=1, max_size=80),
    st.lists(any_float, min_size=1, max_size=300, unique=True),
    st.sampled_from([np.float32, np.float64]),
)
@settings(deadline=None, max_examples=100)
def test_assign_is_the_nearest_in_exact_arithmetic(
    values: list[float], book: list[float], dtype: type
) -> None:
    centroids = np.sort(book)
    middles = (centroids[1:] / 2 + centroids[:-1] / 2)[:20]  # so that there are ties, or nearly
    tried = np.concatenate([np.array(values), centroids[:20], middles]).astype(dtype)
    codes = assign(tried, centroids)
    exact = [Fraction(c) for c in centroids.tolist()]
    for v, code in zip(tried.tolist(), codes.tolist(), strict=True):
        distances = [abs(Fraction(v) - c) for c in exact[max(0, code - 1) : code + 2]]
        lowest = distances.index(min(distances))
        assert max(0, code - 1) + lowest == code


@given(samples, st.floats(0, 1e4))
@settings(deadline=None, max_examples=60)
def test_blocks_are_the_longest_runs(values: list[float], q: float) -> None:
    ordered = np.sort(values)
    edges = np.empty(len(values) + 1, np.int64)
    count = intervals.spread_blocks(ordered, q, edges)
    expected, lo = [0], 0
    for i, v in enumerate(ordered.tolist()):
        # A run takes in equal values whole, so that it is tested where a value is the first.
        fits = (i - lo + 1) * (v - ordered[lo]) ** 2 <= q
        if i > lo and not fits and v != ordered[i - 1]:
            expected.append(i)
            lo = i
    assert edges[: count + 1].tolist() == [*expected, len(values)]
