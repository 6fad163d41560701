"""The optimal centroids of a sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espalier.errors import InvalidArgument
from espalier.quantization.initialisation import INITIALISATIONS, Array, Initialisation
from espalier.quantization.partition import best_partition
from espalier.quantization.sorted_values import SortedValues


@INITIALISATIONS.register("sample")
@dataclass(frozen=True)
class Sample(Initialisation):
    """The optimal centroids of a random sample of the values, drawn without replacement.

    Parameters
    ----------
    fraction : float
        Share of the values that is drawn, over 0 and at most 1.
    per_centroid : int
        Draw at least so many values for each centroid, where there are as many.
    """

    fraction: float = 0.01
    per_centroid: int = 64

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise InvalidArgument(f"fraction must be over 0 and at most 1, not {self.fraction}")
        if self.per_centroid < 1:
            raise InvalidArgument(f"per_centroid must be 1 or more, not {self.per_centroid}")

    def centroids(self, data: SortedValues, k: int, rng: np.random.Generator) -> Array:
        n = min(data.size, max(int(self.fraction * data.size), self.per_centroid * k))
        drawn = np.sort(rng.choice(data.size, n, replace=False, shuffle=False))
        weights = data.weights[drawn] if data.weights.size else data.weights
        sample = SortedValues.of_sorted(data.values[drawn], weights)
        edges = sample.runs(0.0, n)
        if edges is None or edges.size <= k:
            return data.quantiles((np.arange(k) + 0.5) / k)  # too few distinct values were drawn
        return sample.centroids_of(edges[best_partition(sample.sums_at(edges), k).cuts])
