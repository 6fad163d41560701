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

from espalier.kernels.intervals import penalised_path

Array = NDArray[Any]

TRIALS = 100
"""Penalties tried at most; about ten are used. When reached, the bound stays valid."""


CHUNK = 1 << 16
"""Intervals that are costed at a time, to keep temporary arrays small."""


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
    value = float(penalised_path(w, s1, s2, penalty, parent))
    cuts = [w.size - 1]
    while cuts[-1] > 0:
        cuts.append(int(parent[cuts[-1]]))
    path = np.array(cuts[::-1], np.int64)
    return Path(penalty, path, path_cost(sums, path), value)


def path_cost(sums: Array, cuts: Array) -> float:
    """Sum of squares of the intervals between ``cuts``."""
    costs = []
    for lo in range(0, cuts.size - 1, CHUNK):
        w, s1, s2 = np.diff(sums[:, cuts[lo : lo + CHUNK + 1]], axis=1)
        seen = w > 0  # others have weights so small that the sum does not notice them
        each = s2[seen] - s1[seen] ** 2 / w[seen]
        costs.append(float(np.sum(np.maximum(0.0, each))))
    return float(np.sum(costs))


@dataclass(frozen=True, eq=False)
class Partition:
    """The blocks cut into k intervals.

    Attributes
    ----------
    cuts : ndarray, int64, shape (k + 1,)
        Indices into 0..M, the first 0 and the last M; fewer where there are fewer blocks than k.
    lower_bound : float
        No partition into at most k intervals costs less.
    optimal : bool
        Whether this one costs no more (up to rounding).
    penalty : float
        At which the bound was found.
    """

    cuts: Array
    lower_bound: float
    optimal: bool
    penalty: float


def best_partition(sums: Array, k: int, penalty: float | None = None) -> Partition:
    """Cut ``M`` blocks into ``k`` intervals with the least sum of squares.

    Parameters
    ----------
    sums : ndarray, float64, shape (3, M + 1)
        Prefix sums of weight, weight*x, weight*x^2 at the places where cuts are allowed; weights
        of blocks are positive.
    k : int
        Number of intervals, at least 1.
    penalty : float, optional
        Where to begin the search, when known from a coarser problem.
    """
    m = sums.shape[1] - 1
    each, ends = np.arange(m + 1), np.array([0, m])
    least, whole = path_cost(sums, each), path_cost(sums, ends)
    if m <= k:
        return Partition(each, least, True, 0.0)
    if k == 1:
        return Partition(ends, whole, True, whole)
    few = Path(whole, ends, whole, 2 * whole)
    many = Path(0.0, each, least, least)
    best, best_penalty = 0.0, 0.0
    trial = penalty or 5.4 * whole / k**3  # Panter and Dite for a normal distribution
    for step in range(TRIALS):
        chord = (few.cost - many.cost) / (many.links - few.links)
        if step % 4 == 3 or not many.penalty < trial < few.penalty:
            trial = chord
        path = shortest(sums, trial)
        if path.value - trial * k > best:
            best, best_penalty = path.value - trial * k, trial
        if path.links == k:
            return Partition(path.cuts, best, True, best_penalty)
        if trial == chord and not few.links < path.links < many.links:
            # No corner of g lies between: both ends are optimal for this penalty.
            return Partition(_crossed(few.cuts, many.cuts, k), best, True, best_penalty)
        if path.links < k:
            few = path
        else:
            many = path
        trial = _interpolated(few, many, k)
    return Partition(_crossed(few.cuts, many.cuts, k), best, False, best_penalty)


def _interpolated(few: Path, many: Path, k: int) -> float:
    """A penalty for ``k`` intervals: log(penalty) falls with log(intervals) nearly in a line."""
    if many.penalty <= 0.0:
        return few.penalty * (few.links / k) ** 3
    slope = np.log(few.penalty / many.penalty) / np.log(many.links / few.links)
    return float(few.penalty * (few.links / k) ** slope)


def _crossed(few: Array, many: Array, k: int) -> Array:
    """``k`` intervals from two partitions that are optimal for one penalty, one with fewer.

    Somewhere an interval of the one holds the interval of the other that has ``k`` - ``len(few)``
    more before it. Crossing over there costs nothing, by the quadrangle inequality.
    """
    ahead = k - (few.size - 1)
    holds = (few[:-1] <= many[ahead : ahead + few.size - 1]) & (
        many[ahead + 1 : ahead + few.size] <= few[1:]
    )
    p = int(np.argmax(holds)) + 1
    return np.concatenate([many[: p + ahead], few[p:]])
