"""Cutting a line into intervals: blocks of about equal spread, and the cheapest partition."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from espalier.kernels.kmeans import first_above

Array = NDArray[Any]


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
        lo = first_above(values, last, good + 1, n, good + 1)
    edges[count] = n
    return count


@njit(cache=True, nogil=True)
def _cost(w: Array, s1: Array, s2: Array, i: int, j: int) -> float:
    m = w[j] - w[i]
    if m <= 0.0:  # weights so small that the sum does not notice them
        return 0.0
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
