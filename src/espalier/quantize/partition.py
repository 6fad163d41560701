"""The optimal partition of a line into k intervals, by a penalty on the number of intervals.

Let g(m) be the least cost of m intervals. The sum of squares has the quadrangle inequality, hence g
is convex (Aggarwal, Schieber, Tokuyama 1994), and for every penalty p

    L(p) = min over m of g(m) + p m,        g(k) >= L(p) - p k,        with equality at the right p.

L(p) is a shortest path, found in O(M log M) for M places to cut, *whatever k is*; about ten values
of p suffice (Grønlund et al. 2017, section 2.5). The layered dynamic programme takes O(k M log M),
and a table of k M entries to walk back through.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels import kmeans as kernels

Array = NDArray[Any]

TRIALS = 100
"""Penalties tried at most; about ten are used. When reached, the bound stays valid."""


@dataclass(frozen=True, eq=False)
class Path:
    """An optimal partition for one penalty: ``cuts`` are 0, ..., M; ``cost`` is without penalty."""

    penalty: float
    cuts: Array
    cost: float
    value: float

    @property
    def links(self) -> int:
        return int(self.cuts.size - 1)


def shortest(sums: Array, penalty: float) -> Path:
    """The partition that is optimal for ``penalty``; ``sums`` are prefix sums, shape (3, M + 1)."""
    w, s1, s2 = sums
    parent = np.empty(w.size, np.int32)
    value = float(kernels.penalised_path(w, s1, s2, penalty, parent))
    cuts = [w.size - 1]
    while cuts[-1] > 0:
        cuts.append(int(parent[cuts[-1]]))
    path = np.array(cuts[::-1], np.int64)
    return Path(penalty, path, path_cost(sums, path), value)


def path_cost(sums: Array, cuts: Array) -> float:
    """Sum of squares of the intervals between ``cuts``."""
    w, s1, s2 = np.diff(sums[:, cuts], axis=1)
    return float(np.sum(np.maximum(0.0, s2 - s1 * s1 / w)))


def best_partition(sums: Array, k: int, penalty: float | None = None) -> tuple[Array, float, float]:
    """Cut ``M`` blocks into ``k`` intervals with the least sum of squares.

    Parameters
    ----------
    sums : ndarray, float64, shape (3, M + 1)
        Prefix sums of weight, weight*x, weight*x^2 at the places where cuts are allowed.
    k : int
        Number of intervals, at least 1.
    penalty : float, optional
        Where to begin the search, when known from a coarser problem.

    Returns
    -------
    cuts : ndarray, int64, shape (k + 1,)
        Indices into 0..M, the first 0 and the last M.
    lower_bound : float
        No partition into at most ``k`` intervals costs less.
    penalty : float
        At which the bound was found.
    """
    m = sums.shape[1] - 1
    if m <= k:
        cuts = np.arange(m + 1)
        return cuts, path_cost(sums, cuts), 0.0
    ends = np.array([0, m])
    whole = path_cost(sums, ends)
    if k == 1 or whole == 0.0:
        return (ends if k == 1 else np.append(np.arange(k), m)), whole, whole
    each = np.arange(m + 1)
    few = Path(whole, ends, whole, 2 * whole)
    many = Path(0.0, each, path_cost(sums, each), 0.0)
    best, best_penalty = 0.0, 0.0
    trial = penalty if penalty else 5.4 * whole / k**3  # Panter and Dite for a Gaussian
    for step in range(TRIALS):
        chord = (few.cost - many.cost) / (many.links - few.links)
        if step % 4 == 3 or not many.penalty < trial < few.penalty:
            trial = chord
        path = shortest(sums, trial)
        if path.value - trial * k > best:
            best, best_penalty = path.value - trial * k, trial
        if path.links == k:
            return path.cuts, best, best_penalty
        if trial == chord and not few.links < path.links < many.links:
            break  # both ends are optimal for this penalty, and so is what lies between them
        if path.links < k:
            few = path
        else:
            many = path
        trial = _interpolated(few, many, k)
    return _between(few.cuts, many.cuts, k), best, best_penalty


def _interpolated(few: Path, many: Path, k: int) -> float:
    """A penalty for ``k`` intervals: log(penalty) falls with log(intervals) nearly in a line."""
    if many.penalty <= 0.0:
        return few.penalty * (few.links / k) ** 3
    slope = np.log(few.penalty / many.penalty) / np.log(many.links / few.links)
    return float(few.penalty * (few.links / k) ** slope)


def _between(few: Array, many: Array, k: int) -> Array:
    """``k`` intervals from two partitions that are optimal for one penalty, one with fewer.

    Somewhere an interval of the one holds the interval of the other that has ``k - len(few)`` more
    before it. Crossing over there costs nothing, by the quadrangle inequality.
    """
    ahead = k - (few.size - 1)
    for p in range(1, few.size):
        if few[p - 1] <= many[p - 1 + ahead] and many[p + ahead] <= few[p]:
            return np.concatenate([many[: p + ahead], few[p:]])
    raise AssertionError("two partitions of one line always cross")  # pragma: no cover
