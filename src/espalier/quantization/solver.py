"""How the clusters are found: the family of 1-D k-means solvers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from espalier.quantization.sorted_values import SortedValues
from espalier.registry import Registry

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found.

    Attributes
    ----------
    centroids : ndarray, float64, shape (k',), rising
    lower_bound : float or None
        A number that the optimal within-cluster sum of squares is proved not to be under; ``None``
        where the solver proves nothing, ``inf`` where the solution is itself optimal.
    iterations : int
        Of Lloyd.
    reseeded : int
        Empty clusters that were given new centroids.
    """

    centroids: Array
    lower_bound: float | None
    iterations: int = 0
    reseeded: int = 0


class Solver(ABC):
    """Minimise sum_i w_i (v_i - c_a(i))^2 over k centroids c and the codes a.

    A method is a frozen dataclass in a file of its own under ``solvers``, registered by name. The
    fields ``init``, ``iterations``, ``seed`` and ``reseed``, where it has them, are filled from the
    arguments of :func:`~espalier.quantization.kmeans.kmeans_1d` of the same names.
    """

    name: ClassVar[str]

    @abstractmethod
    def solve(self, data: SortedValues, k: int) -> Solution:
        """Centroids for ``data``, which has more than ``k`` distinct values; ``k`` >= 1."""


SOLVERS: Registry[Solver] = Registry("solver", "espalier.quantization.solvers")
