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
def radix_count(keys: Array, shift: int, counts: Array) -> None:
    """Count the digit ``keys >> shift`` into ``counts``, whose length is a power of two."""
    mask = np.uint64(counts.size - 1)
    s = np.uint64(shift)
    for i in range(keys.size):
        counts[np.int64((np.uint64(keys[i]) >> s) & mask)] += 1


@njit(cache=True, nogil=True)
def radix_scatter(keys: Array, shift: int, offsets: Array, out: Array) -> None:
    """Move each key to the next place of its digit; ``offsets`` say where, and advance."""
    mask = np.uint64(offsets.size - 1)
    s = np.uint64(shift)
    for i in range(keys.size):
        digit = np.int64((np.uint64(keys[i]) >> s) & mask)
        out[offsets[digit]] = keys[i]
        offsets[digit] += 1


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
def _first_above(values: Array, x: float, lo: int, hi: int, near: int) -> int:
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
        e = _first_above(values, middle, edges[j - 1], n, edges[j])
        moved = moved or e != edges[j]
        edges[j] = e
    return moved


@njit(cache=True, nogil=True)
def _mean(values: Array, lo: int, hi: int, weight: float, s1: float, shift: float) -> float:
    # A mean can leave its cluster by rounding only; kept inside, the centroids rise strictly.
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
        cut = _first_above(values, mean, lo, hi, lo)
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
            edges[p] = _first_above(values, middle, edges[p - 1], edges[min(p + 1, m + 1)], 0)
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


@njit(cache=True, nogil=True)
def spread_blocks(values: Array, q: float, edges: Array) -> int:
    """Cut values into the longest runs with (count) * (extent)^2 <= ``q``; equal values together.

    Writes where runs begin, and n last, into ``edges``; returns the number of runs, or -1 where
    ``edges`` is too short.
    """
    n = values.size
    count = 0
    lo = 0
    while lo < n:
        if count + 1 >= edges.size:
            return -1
        edges[count] = lo
        count += 1
        v = np.float64(values[lo])
        # The first index that no longer fits, by doubling and then by halving.
        good = lo
        step = 1
        while good + step < n and (good + step - lo + 1) * (values[good + step] - v) ** 2 <= q:
            good += step
            step *= 2
        bad = min(n, good + step)
        while bad - good > 1:
            mid = (good + bad) // 2
            if (mid - lo + 1) * (values[mid] - v) ** 2 <= q:
                good = mid
            else:
                bad = mid
        # A value equal to the last of the run must come with it.
        last = np.float64(values[good])
        lo = _first_above(values, last, good + 1, n, good + 1)
    edges[count] = n
    return count


@njit(cache=True, nogil=True)
def _cost(w: Array, s1: Array, s2: Array, i: int, j: int) -> float:
    m = w[j] - w[i]
    d = s1[j] - s1[i]
    return max(0.0, (s2[j] - s2[i]) - d * d / m)


@njit(cache=True, nogil=True)
def penalised_path(w: Array, s1: Array, s2: Array, penalty: float, parent: Array) -> float:
    """Cheapest partition into intervals, where each costs its sum of squares plus ``penalty``.

    f(j) = min over i < j of f(i) + cost(i, j) + penalty. Since cost has the quadrangle inequality,
    a later i that is once better stays better: a queue holds who is best from where on, and each
    newcomer's start is found by search (Hirschberg and Larmore 1987; Galil and Park 1992).
    ``parent[j]`` becomes the best i. Returns f(m), m = ``w.size - 1``.
    """
    m = w.size - 1
    f = np.empty(m + 1, np.float64)
    candidate = np.empty(m + 1, np.int32)
    start = np.empty(m + 1, np.int32)
    f[0] = 0.0
    head = 0
    tail = 0
    candidate[0] = 0
    start[0] = 1
    for j in range(1, m + 1):
        while head < tail and start[head + 1] <= j:
            head += 1
        i = int(candidate[head])
        f[j] = f[i] + _cost(w, s1, s2, i, j) + penalty
        parent[j] = i
        if j == m:
            break
        while tail > head and start[tail] > j:
            p = int(start[tail])
            old = int(candidate[tail])
            if f[j] + _cost(w, s1, s2, j, p) < f[old] + _cost(w, s1, s2, old, p):
                tail -= 1
            else:
                break
        old = int(candidate[tail])
        # j is worse than ``old`` at ``bad`` (or cannot be used there) and better at ``good``.
        bad = max(int(start[tail]), j)
        step = 1
        good = m + 1
        while bad + step <= m:
            p = bad + step
            if f[j] + _cost(w, s1, s2, j, p) < f[old] + _cost(w, s1, s2, old, p):
                good = p
                break
            bad = p
            step *= 2
        if good > m:
            if f[j] + _cost(w, s1, s2, j, m) < f[old] + _cost(w, s1, s2, old, m):
                good = m
            else:
                continue
        while good - bad > 1:
            p = (bad + good) // 2
            if f[j] + _cost(w, s1, s2, j, p) < f[old] + _cost(w, s1, s2, old, p):
                good = p
            else:
                bad = p
        tail += 1
        candidate[tail] = j
        start[tail] = good
    return f[m]


@njit(cache=True, nogil=True)
def _cell(v: float, low: float, scale: float, cells: int) -> int:
    # Rises with v whatever the rounding, which is all that the look-up needs to be exact.
    x = (v - low) * scale
    if not x > 0:
        return 0
    if x >= cells - 1:
        return cells - 1
    return int(x)


@njit(cache=True, nogil=True)
def fill_table(thresholds: Array, low: float, scale: float, table: Array) -> None:
    """``table[c]``: the number of thresholds whose cell is before c, for c up to the last + 1."""
    cells = table.size - 1
    j = 0
    for c in range(cells + 1):
        while j < thresholds.size and _cell(thresholds[j], low, scale, cells) < c:
            j += 1
        table[c] = j


@njit(cache=True, nogil=True)
def assign(
    values: Array, thresholds: Array, low: float, scale: float, table: Array, codes: Array
) -> None:
    """``codes[i]``: the number of thresholds that are under ``values[i]``.

    A threshold in an earlier cell is under the value, one in a later cell is not; the few in the
    same cell are searched.
    """
    cells = table.size - 1
    for i in range(values.size):
        v = values[i]
        c = _cell(v, low, scale, cells)
        lo = np.int64(table[c])
        hi = np.int64(table[c + 1])
        while lo < hi:
            mid = (lo + hi) >> 1
            if thresholds[mid] < v:
                lo = mid + 1
            else:
                hi = mid
        codes[i] = lo
