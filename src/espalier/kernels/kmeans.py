"""Inner loops of 1-D k-means, all on *sorted* values with prefix sums.

In one dimension clusters are intervals, so that an iteration of Lloyd needs k binary searches and
never the n x k distances; and the optimal clustering is a shortest path over cut positions.

Notation: ``values`` are sorted; ``weights`` go with them, or are empty where every value counts 1.
``w``, ``s1``, ``s2`` are prefix sums of weight, weight*(v - shift), weight*(v - shift)^2, in
float64. Where they stand at every 64th value only, the rest of a sum is added up from the values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]

BLOCK = 64
"""Values to one entry of the prefix sums: 16.8M values then need 6 MB of sums, not 400."""


@njit(cache=True, nogil=True)
def block_sums(
    values: Array, weights: Array, shift: float, w: Array, s1: Array, s2: Array, first: int
) -> None:
    """The sums of each block of BLOCK values alone, into the entries from ``first`` + 1 on."""
    n = values.size
    for b in range((n + BLOCK - 1) // BLOCK):
        a0 = 0.0
        a1 = 0.0
        a2 = 0.0
        for i in range(b * BLOCK, min(n, (b + 1) * BLOCK)):
            d = np.float64(values[i]) - shift
            m = 1.0
            if weights.size:
                m = weights[i]
            a0 += m
            a1 += m * d
            a2 += m * d * d
        w[first + b + 1] = a0
        s1[first + b + 1] = a1
        s2[first + b + 1] = a2


@njit(cache=True, nogil=True)
def running_sum(x: Array) -> None:
    """Replace ``x`` by its running sums, compensated (Neumaier) so that errors do not grow."""
    total = 0.0
    lost = 0.0
    for i in range(x.size):
        t = total + x[i]
        if abs(total) >= abs(x[i]):
            lost += (total - t) + x[i]
        else:
            lost += (x[i] - t) + total
        total = t
        x[i] = total + lost


@njit(cache=True, nogil=True)
def _sums_at(
    values: Array, weights: Array, shift: float, w: Array, s1: Array, s2: Array, index: int
) -> tuple[float, float, float]:
    b = index // BLOCK
    a0 = w[b]
    a1 = s1[b]
    a2 = s2[b]
    for i in range(b * BLOCK, index):
        d = np.float64(values[i]) - shift
        m = 1.0
        if weights.size:
            m = weights[i]
        a0 += m
        a1 += m * d
        a2 += m * d * d
    return a0, a1, a2


@njit(cache=True, nogil=True)
def sums_at(
    values: Array,
    weights: Array,
    shift: float,
    w: Array,
    s1: Array,
    s2: Array,
    indices: Array,
    out: Array,
) -> None:
    """Prefix sums before each of ``indices``, into the three rows of ``out``."""
    for p in range(indices.size):
        a0, a1, a2 = _sums_at(values, weights, shift, w, s1, s2, indices[p])
        out[0, p] = a0
        out[1, p] = a1
        out[2, p] = a2


@njit(cache=True, nogil=True)
def first_above(values: Array, x: float, lo: int, hi: int, near: int) -> int:
    """First index in [lo, hi] whose value is over ``x``, found by doubling steps from ``near``."""
    near = min(max(near, lo), hi)
    step = 1
    if near < hi and values[near] <= x:
        lo = near + 1
        while near + step < hi and values[near + step] <= x:
            lo = near + step + 1
            step *= 2
        hi = min(hi, near + step)
    else:
        hi = near
        while near - step >= lo and values[near - step] > x:
            hi = near - step
            step *= 2
        lo = max(lo, near - step)
    while lo < hi:
        mid = (lo + hi) // 2
        if values[mid] <= x:
            lo = mid + 1
        else:
            hi = mid
    return lo


@njit(cache=True, nogil=True)
def nearest_edges(values: Array, centroids: Array, edges: Array) -> bool:
    """Where each cluster begins: cluster j is ``values[edges[j]:edges[j + 1]]``.

    A value goes to its nearest centroid, and in a tie to the lower. ``edges`` holds a guess (any
    numbers in range) and is overwritten. True where an edge moved.
    """
    k = centroids.size
    n = values.size
    moved = edges[0] != 0 or edges[k] != n
    edges[0] = 0
    edges[k] = n
    for j in range(1, k):
        middle = 0.5 * centroids[j - 1] + 0.5 * centroids[j]
        e = first_above(values, middle, edges[j - 1], n, edges[j])
        moved = moved or e != edges[j]
        edges[j] = e
    return moved


@njit(cache=True, nogil=True)
def _mean(values: Array, lo: int, hi: int, weight: float, s1: float, shift: float) -> float:
    # A mean can leave its cluster by rounding only; kept inside, the centroids rise strictly.
    if weight <= 0.0:  # weights so small that the sum does not notice them
        return np.float64(values[lo])
    mean = shift + s1 / weight
    return min(max(mean, np.float64(values[lo])), np.float64(values[hi - 1]))


@njit(cache=True, nogil=True)
def _interval_cost(
    values: Array,
    weights: Array,
    shift: float,
    w: Array,
    s1: Array,
    s2: Array,
    lo: int,
    hi: int,
) -> tuple[float, float]:
    """Sum of squares and mean of ``values[lo:hi]``; -1 for the former where they are all equal."""
    a0, a1, a2 = _sums_at(values, weights, shift, w, s1, s2, lo)
    b0, b1, b2 = _sums_at(values, weights, shift, w, s1, s2, hi)
    mean = _mean(values, lo, hi, b0 - a0, b1 - a1, shift)
    if values[lo] == values[hi - 1]:
        return -1.0, mean
    if b0 <= a0:
        return 0.0, mean
    return max(0.0, (b2 - a2) - (b1 - a1) ** 2 / (b0 - a0)), mean


@njit(cache=True, nogil=True)
def _reseed(
    values: Array,
    weights: Array,
    shift: float,
    w: Array,
    s1: Array,
    s2: Array,
    edges: Array,
) -> int:
    """Give each empty cluster a part of the one that costs most, cut at its mean.

    Returns how many got one: all, unless there are fewer distinct values than clusters.
    """
    k = edges.size - 1
    start = np.empty(k, np.int64)
    end = np.empty(k, np.int64)
    cost = np.empty(k, np.float64)
    used = 0
    for j in range(k):
        if edges[j] < edges[j + 1]:
            start[used] = edges[j]
            end[used] = edges[j + 1]
            cost[used], _ = _interval_cost(
                values, weights, shift, w, s1, s2, edges[j], edges[j + 1]
            )
            used += 1
    filled = used
    while filled < k:
        worst = int(np.argmax(cost[:filled]))
        lo = start[worst]
        hi = end[worst]
        if cost[worst] < 0.0:
            break
        _, mean = _interval_cost(values, weights, shift, w, s1, s2, lo, hi)
        cut = first_above(values, mean, lo, hi, lo)
        if cut == hi:  # the mean was rounded up to the largest value
            cut -= 1
            while values[cut - 1] == values[cut]:
                cut -= 1
        end[worst] = cut
        start[filled] = cut
        end[filled] = hi
        for j in (worst, filled):
            cost[j], _ = _interval_cost(values, weights, shift, w, s1, s2, start[j], end[j])
        filled += 1
    edges[:filled] = np.sort(start[:filled])
    edges[filled:] = values.size
    return filled - used


@njit(cache=True, nogil=True)
def lloyd(
    values: Array,
    weights: Array,
    shift: float,
    w: Array,
    s1: Array,
    s2: Array,
    centroids: Array,
    iterations: int,
    reseed: bool,
) -> tuple[int, int]:
    """Lloyd's iteration until no value changes its cluster. ``centroids`` rise and are overwritten.

    Returns the number of iterations done and of empty clusters that were re-seeded.
    """
    k = centroids.size
    edges = np.full(k + 1, -1, np.int64)
    reseeded = 0
    done = 0
    while done < iterations:
        if not nearest_edges(values, centroids, edges):
            break
        done += 1
        if reseed:
            empty = False
            for j in range(k):
                empty = empty or edges[j] == edges[j + 1]
            if empty:
                reseeded += _reseed(values, weights, shift, w, s1, s2, edges)
        a0, a1 = 0.0, 0.0
        for j in range(k):
            b0, b1, _ = _sums_at(values, weights, shift, w, s1, s2, edges[j + 1])
            if edges[j] < edges[j + 1]:
                centroids[j] = _mean(values, edges[j], edges[j + 1], b0 - a0, b1 - a1, shift)
            a0, a1 = b0, b1
    return done, reseeded


@njit(cache=True, nogil=True)
def _distance_mass(
    values: Array,
    weights: Array,
    shift: float,
    w: Array,
    s1: Array,
    s2: Array,
    centroid: float,
    lo: int,
    hi: int,
) -> float:
    a0, a1, a2 = _sums_at(values, weights, shift, w, s1, s2, lo)
    b0, b1, b2 = _sums_at(values, weights, shift, w, s1, s2, hi)
    c = centroid - shift
    return max(0.0, (b2 - a2) - 2.0 * c * (b1 - a1) + c * c * (b0 - a0))


@njit(cache=True, nogil=True)
def plus_plus(
    values: Array,
    weights: Array,
    shift: float,
    w: Array,
    s1: Array,
    s2: Array,
    first: float,
    draws: Array,
    centroids: Array,
) -> None:
    """k-means++: each further centroid is a value drawn by squared distance to the nearest so far.

    The mass of squared distances before an index comes from prefix sums, so that a draw is a search
    over clusters and then over indices. ``draws`` are uniform in [0, 1), one for each further
    centroid.
    """
    n = values.size
    k = centroids.size
    edges = np.empty(k + 1, np.int64)
    mass = np.empty(k, np.float64)
    centroids[0] = first
    edges[0] = 0
    edges[1] = n
    mass[0] = _distance_mass(values, weights, shift, w, s1, s2, first, 0, n)
    for m in range(1, k):
        target = draws[m - 1] * np.sum(mass[:m])
        j = 0
        while j < m - 1 and target >= mass[j]:
            target -= mass[j]
            j += 1
        lo = edges[j]
        hi = max(lo, edges[j + 1] - 1)
        while lo < hi:
            mid = (lo + hi) // 2
            c = centroids[j]
            if _distance_mass(values, weights, shift, w, s1, s2, c, edges[j], mid + 1) > target:
                hi = mid
            else:
                lo = mid + 1
        fresh = np.float64(values[lo])
        at = j + 1 if fresh > centroids[j] else j
        for p in range(m, at, -1):
            centroids[p] = centroids[p - 1]
            mass[p] = mass[p - 1]
            edges[p + 1] = edges[p]
        edges[m + 1] = n
        centroids[at] = fresh
        for p in range(max(at, 1), min(at + 2, m + 1)):
            middle = 0.5 * centroids[p - 1] + 0.5 * centroids[p]
            edges[p] = first_above(values, middle, edges[p - 1], edges[min(p + 1, m + 1)], 0)
        for p in range(max(at - 1, 0), min(at + 2, m + 1)):
            mass[p] = _distance_mass(
                values, weights, shift, w, s1, s2, centroids[p], edges[p], edges[p + 1]
            )


@njit(cache=True, nogil=True)
def squared_errors(
    values: Array, weights: Array, centroids: Array, edges: Array, lo: int, hi: int
) -> float:
    """Weighted sum of (value - its centroid)^2 over ``values[lo:hi]``."""
    total = 0.0
    j = int(np.searchsorted(edges, lo, side="right")) - 1
    i = lo
    while i < hi:
        stop = min(hi, int(edges[j + 1]))
        c = centroids[j]
        part = 0.0
        for p in range(i, stop):
            d = np.float64(values[p]) - c
            if weights.size:
                part += weights[p] * d * d
            else:
                part += d * d
        total += part
        i = max(i, stop)
        j += 1
    return total
