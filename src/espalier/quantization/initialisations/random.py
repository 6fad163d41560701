"""Values drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espalier.quantization.initialisation import INITIALISATIONS, Array, Initialisation
from espalier.quantization.sorted_values import SortedValues


@INITIALISATIONS.register("random")
@dataclass(frozen=True)
class Random(Initialisation):
    """``k`` of the values, drawn without replacement and whatever their weights.

    Forgy's method: Han et al. 2016, section 3.2.
    """

    def centroids(self, data: SortedValues, k: int, rng: np.random.Generator) -> Array:
        drawn = np.sort(rng.choice(data.size, k, replace=False, shuffle=False))
        return data.values[drawn].astype(np.float64)
