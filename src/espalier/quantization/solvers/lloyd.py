"""Lloyd's iteration on sorted values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espalier.errors import InvalidArgument
from espalier.kernels import kmeans as kernels
from espalier.quantization.initialisation import INITIALISATIONS, Initialisation
from espalier.quantization.solver import SOLVERS, Solution, Solver
from espalier.quantization.sorted_values import SortedValues


@SOLVERS.register("lloyd")
@dataclass(frozen=True)
class Lloyd(Solver):
    """Assign each value to its nearest centroid, move centroids to the means, until nothing moves.

    A local minimum that depends on the initialisation (Han et al. 2016, section 3.2). On sorted
    values with prefix sums an iteration is k searches and k means: O(k log n), exactly what Lloyd
    does on the values themselves.

    Parameters
    ----------
    init : str or Initialisation
        Where to begin; ``"linear"`` is the paper's choice.
    iterations : int
        At most so many; it ends sooner where no value changes its cluster.
    seed : int
        For initialisations that draw.
    reseed : bool
        Give empty clusters half of the cluster that costs most, cut at its mean. The paper does not
        say what becomes of them; left empty they are dropped from the codebook at the end.
    """

    init: str | Initialisation = "linear"
    iterations: int = 300
    seed: int = 0
    reseed: bool = True

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise InvalidArgument(f"iterations must be 0 or more, not {self.iterations}")

    def solve(self, data: SortedValues, k: int) -> Solution:
        rng = np.random.default_rng(self.seed)
        start = INITIALISATIONS.make(self.init).centroids(data, k, rng)
        centroids = np.sort(np.asarray(start, np.float64))
        done, reseeded = kernels.lloyd(*data.sums, centroids, self.iterations, self.reseed)
        return Solution(centroids, None, int(done), int(reseeded))
