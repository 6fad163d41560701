"""Entropy-constrained scalar quantization of one layer: min D + lambda R over levels and symbols.

Levels are free, where :mod:`espalier.quantization.grid` has multiples of a step. With the weights
w_i, their importance h_i (half the curvature of the loss in each), and p_k the share of the weights
that take level c_k,

    D = sum_i h_i (w_i - c_k(i))^2,    R = sum_i -log2 p_k(i)  +  some bits for each level.

Lloyd's iteration with the rate in it (Chou, Lookabaugh and Gray 1989; for networks Choi, El-Khamy
and Lee 2017, arXiv 1612.01543, section 4): each weight takes the level of least cost, each level
moves to the weighted mean of its weights, each length becomes that of the level's frequency. None
of the three raises the cost. The level 0 stays where it is, so that weights become exactly zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.scalar import assign
from espalier.quantization.rates import LEVEL_BITS

Array = NDArray[Any]

CODEBOOK_BITS = 32.0
"""What the value of a level takes in the file, where a grid has none."""
ITERATIONS = 40
SETTLED = 1e-4
"""Of the cost, so little saved by an iteration that the next is not worth it."""
STARTS = (0.5, 0.7, 1.0, 1.4)
"""First levels are so many ideal steps apart."""
MOST_LEVELS = 1 << 12


@dataclass(frozen=True, eq=False)
class Scalar:
    """Weights as levels: ``levels[codes]``.

    ``distortion``: D, ``bits``: R above. ``levels`` rise, and each is taken by some weight.
    """

    levels: Array
    codes: Array
    distortion: float
    bits: float

    def cost(self, lam: float) -> float:
        """D + lambda R."""
        return self.distortion + lam * self.bits


def entropy_constrained(values: Array, importance: Array, lam: float) -> Scalar:
    """The best found from several grids to begin with.

    Parameters
    ----------
    values, importance : float64 (n,)
        Finite; importance at least 0.
    lam : float
        What a bit may cost, in the unit of D.

    Examples
    --------
    >>> import numpy as np
    >>> found = entropy_constrained(np.array([0.0, 0.01, 1.0, 1.1]), np.ones(4), 1e-4)
    >>> found.levels.round(3), found.codes
    (array([0.  , 1.05]), array([0, 0, 1, 1], dtype=int32))
    """
    if not values.size:
        return Scalar(np.zeros(0), np.zeros(0, np.int32), 0.0, 0.0)
    # Far from the ends, where p falls slowly, the best levels are evenly spaced: then
    # D = h step^2 / 12, and dD/dR = -2 ln 2 D = -lambda.
    mean = max(float(importance.mean()), 1e-30)
    ideal = float(np.sqrt(6 * lam / (np.log(2) * mean)))
    largest = float(np.abs(values).max())
    steps = sorted({max(f * ideal, 2 * largest / MOST_LEVELS) for f in STARTS})
    found = (_settled(values, importance, lam, step) for step in steps)
    return min(found, key=lambda scalar: scalar.cost(lam))


def _settled(values: Array, importance: Array, lam: float, step: float) -> Scalar:
    """Lloyd's iteration from the multiples of ``step``."""
    multiples, nearest = np.unique(np.rint(values / step), return_inverse=True)
    now = _centred(values, importance, multiples * step, nearest.astype(np.int32).reshape(-1))
    while True:
        before = now
        for _ in range(ITERATIONS):
            counts = np.bincount(now.codes, minlength=now.levels.size)
            prices = lam * -np.log2(counts / values.size)
            codes = np.empty(values.size, np.int32)
            assign(values, importance, now.levels, prices, codes)
            saved = now
            now = _centred(values, importance, now.levels, codes)
            if now.cost(lam) > (1 - SETTLED) * saved.cost(lam):
                break
        now = min(saved, now, key=lambda scalar: scalar.cost(lam))
        fewer = _without_rarest(values, importance, lam, now)
        if fewer.cost(lam) >= now.cost(lam):
            return now if now.cost(lam) <= before.cost(lam) else before
        now = fewer


def _centred(values: Array, importance: Array, levels: Array, codes: Array) -> Scalar:
    """Each level that is taken at the weighted mean of its weights, zero at zero."""
    counts = np.bincount(codes, minlength=levels.size)
    weight = np.bincount(codes, importance, levels.size)
    total = np.bincount(codes, importance * values, levels.size)
    moved = np.divide(total, weight, out=levels.copy(), where=weight > 0)
    moved[levels == 0] = 0
    taken = counts > 0
    # A level may pass its neighbour where weights differ much in importance.
    order = np.argsort(moved[taken], kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    place = np.zeros(levels.size, np.int32)
    place[taken] = rank
    codes, levels, counts = place[codes], moved[taken][order], counts[taken][order]
    error = values - levels[codes]
    bits = float(-(counts * np.log2(counts / values.size)).sum())
    bits += (LEVEL_BITS + CODEBOOK_BITS) * levels.size
    return Scalar(levels, codes, float((importance * error * error).sum()), bits)


def _without_rarest(values: Array, importance: Array, lam: float, now: Scalar) -> Scalar:
    """The tenth of the levels that are taken least, gone; their weights go to what is left.

    A level for a few weights costs its place in the tables, which no single weight sees.
    """
    counts = np.bincount(now.codes, minlength=now.levels.size)
    free = np.flatnonzero(now.levels != 0)
    if free.size < 2:
        return now
    gone = free[np.argsort(counts[free], kind="stable")][: max(1, free.size // 10)]
    left = np.setdiff1d(np.arange(now.levels.size), gone)
    levels = now.levels[left]
    codes = np.empty(values.size, np.int32)
    prices = lam * -np.log2(counts[left] / counts[left].sum())
    assign(values, importance, levels, prices, codes)
    return _centred(values, importance, levels, codes)
