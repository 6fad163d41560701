"""The optimum over fine blocks, refined on the values, with a proved bound."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espalier.errors import InvalidArgument
from espalier.kernels import kmeans as kernels
from espalier.quantization.partition import best_partition
from espalier.quantization.solver import SOLVERS, Array, Solution, Solver
from espalier.quantization.sorted_values import SortedValues

FEWEST, MOST, PER_CLUSTER = 1 << 17, 1 << 21, 1024
"""Blocks that are used by default: so many to a cluster, within these bounds."""

CELLS = 4096
"""Stretches of equal count in which the density is taken to be constant."""


@SOLVERS.register("optimal")
@dataclass(frozen=True)
class Optimal(Solver):
    """The optimal clusters up to a gap that is proved and reported.

    1. Values are cut into blocks, about 1024 to a cluster: the longest runs whose count times
       squared extent is at most q. Their density is that of the optimal centroids (the cube root
       of the values' density; Panter and Dite 1951), so that tails and outliers get their share.
    2. The best clusters made of whole blocks are found (:mod:`espalier.quantization.partition`).
    3. Lloyd's iteration on the values moves the boundaries inside their blocks.

    Where there are no more distinct values than blocks, each is a block of its own, and the result
    is the optimum. Time is O(n) for the sort and O(b log b) for b blocks, whatever k is.

    Parameters
    ----------
    iterations : int
        Of Lloyd in step 3, at most.
    blocks : int, optional
        At most so many; 1024 k within 131072 and 2097152 by default.

    Notes
    -----
    The bound. Let A be the optimum over whole blocks, OPT that over the values. Take the optimal
    centroids, and in each block that a boundary cuts move the values on one side of the cut to the
    centroid on the other. A value at distance d from a boundary between centroids that are D apart
    then pays 2 D d more. With n the weight and e the extent of the block, weight times extent is at
    most n e / 4 on one side of the cut or the other, so that the block pays at most D n e / 2. Its
    values are D/2 - e or more from their centroids, so that it has n (D/2 - e)^2 of OPT at least.
    By Minkowski and Cauchy-Schwarz all cut blocks pay at most sqrt(OPT Q) + Q together, where Q is
    the sum of the k - 1 largest n e^2. (A block cut more than once goes to a centroid in it, and
    pays at most n e^2.) Hence A <= OPT + sqrt(OPT Q) + Q, and

        sqrt(OPT) >= (sqrt(4 A - 3 Q) - sqrt(Q)) / 2.

    A itself is bounded from below by the penalised path. With m blocks to a cluster the gap is
    about 3.5 m^-1.5.
    """

    iterations: int = 300
    blocks: int | None = None

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise InvalidArgument(f"iterations must be 0 or more, not {self.iterations}")
        if self.blocks is not None and self.blocks < 1:
            raise InvalidArgument(f"blocks must be 1 or more, not {self.blocks}")

    def solve(self, data: SortedValues, k: int) -> Solution:
        limit = max(self.blocks or max(FEWEST, min(PER_CLUSTER * k, MOST)), 2 * k)
        edges = data.runs(0.0, limit)
        exact = edges is not None
        if edges is None:
            edges = _blocks(data, limit)
        sums = data.sums_at(edges)
        penalty = None
        if edges.size > 64 * k:
            # One cut in 16 finds the penalty nearly, at a sixteenth of the cost.
            coarse = np.append(np.arange(0, edges.size - 1, 16), edges.size - 1)
            penalty = best_partition(sums[:, coarse], k).penalty
        best = best_partition(sums, k, penalty)
        centroids = data.centroids_of(edges[best.cuts])
        if exact:
            return Solution(centroids, np.inf if best.optimal else best.lower_bound)
        done, _ = kernels.lloyd(*data.sums, centroids, self.iterations, True)
        bound = _bound(data, edges, sums, k, best.lower_bound)
        return Solution(centroids, bound, int(done))


def _blocks(data: SortedValues, limit: int) -> Array:
    """About half of ``limit`` to ``limit`` blocks of equal count times squared extent."""
    ends = np.linspace(0, data.size - 1, CELLS + 1).astype(np.int64)
    count = np.diff(ends)
    spread = count * np.diff(data.values[ends].astype(np.float64)) ** 2
    count, spread = count[spread > 0], spread[spread > 0]
    # A cell of one density takes (spread / q)^(1/3) blocks, and no more than it has values.
    low, high = -100.0, 2.0
    top = np.log2(spread.max()) if spread.size else 0.0
    for _ in range(40):
        middle = (low + high) / 2
        expected = np.minimum(count, np.cbrt(spread * 2.0 ** -(middle + top))).sum()
        low, high = (middle, high) if expected > 0.8 * limit else (low, middle)
    q = 2.0 ** (high + top)
    while True:
        edges = data.runs(q, limit)
        if edges is not None:
            return edges
        q *= 2


def _bound(data: SortedValues, edges: Array, sums: Array, k: int, aligned: float) -> float:
    """A lower bound on the optimum from one over whole blocks; see the class."""
    weight = np.diff(sums[0])
    extent = data.values[edges[1:] - 1].astype(np.float64) - data.values[edges[:-1]]
    spread = weight * extent**2
    cuts = min(k - 1, spread.size)
    q = float(np.partition(spread, -cuts)[-cuts:].sum()) if cuts else 0.0
    # What rounding may have added comes off. Errors of prefix sums cancel between neighbours, up to
    # the difference of their means (squared, for weights; a count has no error).
    span = data.high - data.low
    aligned -= 2.0**-48 * (float(data.s2[-1]) + span * float(np.abs(data.s1).max()))
    if data.weights.size:
        aligned -= 2.0**-48 * data.total * span**2
    if aligned <= q:
        return 0.0
    return 0.25 * (np.sqrt(4 * aligned - 3 * q) - np.sqrt(q)) ** 2
