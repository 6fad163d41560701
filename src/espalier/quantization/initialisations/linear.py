"""Equal steps between the extremes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espalier.quantization.initialisation import INITIALISATIONS, Array, Initialisation
from espalier.quantization.sorted_values import SortedValues


@INITIALISATIONS.register("linear")
@dataclass(frozen=True)
class Linear(Initialisation):
    """Centroids in equal steps from the smallest value to the largest.

    Independent of the density, so that the few large weights, which matter most, get centroids of
    their own. Han et al. 2016, section 3.2: best of the three compared there.
    """

    def centroids(self, data: SortedValues, k: int, rng: np.random.Generator) -> Array:
        if k == 1:
            return np.array([0.5 * data.low + 0.5 * data.high])
        return np.linspace(data.low, data.high, k)
