"""The global optimum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espalier.kernels import kmeans as kernels
from espalier.quantize.partition import best_partition
from espalier.quantize.solver import SOLVERS, Solution, Solver
from espalier.quantize.sorted_values import SortedValues


@SOLVERS.register("exact")
@dataclass(frozen=True)
class Exact(Solver):
    """The optimal clusters, by dynamic programming over the distinct values."""

    def solve(self, data: SortedValues, k: int) -> Solution:
        edges = np.empty(data.size + 1, np.int64)
        count = int(kernels.spread_blocks(data.values, 0.0, edges))
        edges = edges[: count + 1].copy()
        cuts, _, _ = best_partition(data.sums_at(edges), k)
        return Solution(data.centroids_of(edges[cuts]), np.inf)
