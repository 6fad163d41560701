"""The optimal quantizer of a fitted normal distribution."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from espalier.quantization.initialisation import INITIALISATIONS, Array, Initialisation
from espalier.quantization.sorted_values import SortedValues


@INITIALISATIONS.register("gaussian")
@dataclass(frozen=True)
class Gaussian(Initialisation):
    """Centroids of a normal distribution with the mean and variance of the values.

    The optimal centroids of a density p lie with a density proportional to p^(1/3) (Panter and Dite
    1951), which for a normal distribution is again normal, sqrt(3) times as wide: centroids are its
    quantiles (j + 1/2) / k. They cost k numbers and no pass over the values.
    """

    def centroids(self, data: SortedValues, k: int, rng: np.random.Generator) -> Array:
        wide = NormalDist(data.mean, float(np.sqrt(3 * data.variance)) or 1.0)
        quantiles = np.array([wide.inv_cdf((j + 0.5) / k) for j in range(k)])
        return np.clip(quantiles, data.low, data.high)
