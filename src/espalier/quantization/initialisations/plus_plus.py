"""Values drawn by squared distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espalier.kernels import kmeans as kernels
from espalier.quantization.initialisation import INITIALISATIONS, Array, Initialisation
from espalier.quantization.sorted_values import SortedValues


@INITIALISATIONS.register("kmeans++")
@dataclass(frozen=True)
class PlusPlus(Initialisation):
    """Each further centroid is a value drawn with chance w_i min_c (v_i - c)^2.

    Arthur and Vassilvitskii 2007: expected cost within 8 (ln k + 2) of the optimum. By prefix sums
    a draw takes a search, where it commonly takes a pass over all values.
    """

    def centroids(self, data: SortedValues, k: int, rng: np.random.Generator) -> Array:
        draws = rng.random(k)
        centroids = np.empty(k)
        first = float(data.quantiles(draws[:1])[0])
        kernels.plus_plus(*data.sums, first, draws[1:], centroids)
        return centroids
