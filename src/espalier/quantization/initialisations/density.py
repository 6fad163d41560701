"""Equal steps of the cumulative distribution."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espalier.quantization.initialisation import INITIALISATIONS, Array, Initialisation
from espalier.quantization.sorted_values import SortedValues


@INITIALISATIONS.register("density")
@dataclass(frozen=True)
class Density(Initialisation):
    """Centroids at equal steps of the cumulative distribution: the quantiles (j + 1/2) / k.

    Close together where weights are many, so that few are left for large weights. Han et al. 2016,
    section 3.2, "density-based"; the half step, which the paper does not give, is ours.
    """

    def centroids(self, data: SortedValues, k: int, rng: np.random.Generator) -> Array:
        return data.quantiles((np.arange(k) + 0.5) / k)
