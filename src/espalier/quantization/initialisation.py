"""Where Lloyd's iteration starts: the family of initialisations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from espalier.quantization.sorted_values import SortedValues
from espalier.registry import Registry

Array = NDArray[Any]


class Initialisation(ABC):
    """Starting centroids for 1-D k-means.

    A method is a frozen dataclass in a file of its own under ``initialisations``, registered by
    name. Local minima differ, and so do the networks: Han et al. 2016 (section 3.2, figure 8)
    compare Forgy, density-based and linear.
    """

    name: ClassVar[str]

    @abstractmethod
    def centroids(self, data: SortedValues, k: int, rng: np.random.Generator) -> Array:
        """Where ``k`` clusters begin.

        Parameters
        ----------
        data : SortedValues
            At least ``k`` distinct values, in rising order, with prefix sums. Not to be written.
        k : int
            Number of centroids, at least 1.
        rng : numpy.random.Generator
            The only source of chance.

        Returns
        -------
        ndarray, float64, shape (k,)
            Centroids within [``data.low``, ``data.high``], in rising order; equal ones may occur,
            and leave clusters empty.
        """


INITIALISATIONS: Registry[Initialisation] = Registry(
    "initialisation", "espalier.quantization.initialisations"
)
