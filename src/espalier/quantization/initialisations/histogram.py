"""The optimal quantizer of a histogram, approximately."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espalier.errors import InvalidArgument
from espalier.quantization.initialisation import INITIALISATIONS, Array, Initialisation
from espalier.quantization.sorted_values import SortedValues


@INITIALISATIONS.register("histogram")
@dataclass(frozen=True)
class Histogram(Initialisation):
    """Centroids at equal steps of the cumulative p^(1/3), where p is a histogram of the values.

    The optimal centroids of a density p lie with a density proportional to p^(1/3) (Panter and Dite
    1951): between ``density`` (p itself) and ``linear`` (a constant).

    Parameters
    ----------
    bins : int
        Of equal width, from the smallest to the largest value; at least 1.
    """

    bins: int = 2048

    def __post_init__(self) -> None:
        if self.bins < 1:
            raise InvalidArgument(f"bins must be 1 or more, not {self.bins}")

    def centroids(self, data: SortedValues, k: int, rng: np.random.Generator) -> Array:
        edges = np.linspace(data.low, data.high, self.bins + 1)
        inner = np.searchsorted(data.values, edges[1:-1].astype(data.values.dtype), side="right")
        ends = np.concatenate([[0], inner, [data.size]])
        mass = np.maximum(np.diff(data.sums_at(ends)[0]), 0.0)
        steps = np.concatenate([[0.0], np.cumsum(np.cbrt(mass))])
        return np.interp((np.arange(k) + 0.5) / k * steps[-1], steps, edges)
