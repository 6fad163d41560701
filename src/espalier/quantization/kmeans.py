"""1-D k-means: the weight-sharing engine.

Which solver?

- ``"optimal"``, the default, is as fast as any and within 0.1% of the optimum or closer, proved
  for each result (see ``gap``). Small layers are solved to optimality.
- ``"lloyd"`` is the paper's, and a local minimum that depends on its initialisation. From
  ``"linear"`` it spends centroids on the few large weights, at a higher sum of squares: that may be
  the better network, and fine-tuning will tell.
- ``"exact"`` is for the last millionth, at tens of times the time and memory on large layers.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from espalier.errors import InvalidArgument
from espalier.quantization.assignment import assign, checked_values, thresholds
from espalier.quantization.initialisation import Initialisation
from espalier.quantization.solver import SOLVERS, Solution, Solver
from espalier.quantization.sorted_values import SortedValues

Array = NDArray[Any]

__all__ = ["Clustering", "assign", "kmeans_1d"]


@dataclass(frozen=True, eq=False)
class Clustering:
    """Values as codes into a few centroids.

    Attributes
    ----------
    centroids : ndarray, float64, shape (k',)
        Strictly rising; k' <= k, fewer where there are fewer distinct values.
    codes : ndarray, uint8 (k' <= 256) or uint16, shape (n,)
        Nearest centroid of each value, in the order of the input.
    wcss : float
        Within-cluster sum of squares, sum_i w_i (v_i - c_a(i))^2.
    gap : float or None
        ``wcss / optimum - 1`` is proved to be at most this; 0.0 where the solution is optimal,
        ``None`` where nothing is proved.
    iterations : int
        Of Lloyd.
    reseeded : int
        Empty clusters that were given new centroids.
    """

    centroids: Array
    codes: Array
    wcss: float
    gap: float | None
    iterations: int
    reseeded: int


def kmeans_1d(
    values: ArrayLike,
    k: int,
    *,
    init: str | Initialisation | None = None,
    solver: str | Solver | None = None,
    iterations: int = 300,
    weights: ArrayLike | None = None,
    seed: int = 0,
    reseed: bool = True,
) -> Clustering:
    """Minimise sum_i w_i (v_i - c_a(i))^2 over ``k`` centroids c and the codes a.

    Parameters
    ----------
    values : array_like, float16, float32 or float64, any shape
        Finite; read in flat order, not changed.
    k : int
        Number of centroids, 1 to 65536.
    init : str or Initialisation, optional
        Where Lloyd's iteration begins; see ``INITIALISATIONS.names()``. Given without ``solver``,
        the solver is ``"lloyd"``.
    solver : str or Solver, optional
        ``"optimal"`` (default: the optimum up to a proved gap), ``"exact"`` or ``"lloyd"``.
    iterations : int
        Of Lloyd, at most.
    weights : array_like, as many as values, optional
        Cost of an error in each value, 0 or more, not all 0.
    seed : int
        For initialisations that draw.
    reseed : bool
        Give new centroids to clusters that become empty.

    Returns
    -------
    Clustering

    Raises
    ------
    InvalidArgument
        Values or weights are not finite, or an argument is outside its range.

    Notes
    -----
    Han, Mao, Dally 2016 (arXiv 1510.00149), section 3.1, equation 2. Differences: the default is
    the global optimum instead of Lloyd's iteration; clusters that become empty are re-seeded, of
    which the paper says nothing; values may have weights.

    The result is the same for any number of threads, and codes are exact: as if distances were
    compared without rounding, ties to the lower centroid. Sums are float64. Beside its result the
    default takes about 8 bytes for each float32 value, for the sort.

    Examples
    --------
    >>> import numpy as np
    >>> found = kmeans_1d(np.array([0.1, 2.0, 0.3, 2.2], np.float32), 2)
    >>> found.codes
    array([0, 1, 0, 1], dtype=uint8)
    >>> found.centroids.round(3)
    array([0.2, 2.1])
    """
    flat = checked_values(values)
    mass = None if weights is None else checked_weights(weights, flat.size)
    method = make_solver(solver, init=init, iterations=iterations, seed=seed, reseed=reseed)
    solution, wcss = solve(flat, k, method, mass)
    bound = solution.lower_bound
    if bound is None:
        gap = None
    elif bound >= wcss:
        gap = 0.0
    else:
        gap = wcss / bound - 1 if bound > 0 else None
    return Clustering(
        solution.centroids,
        assign(flat, solution.centroids),
        wcss,
        gap,
        solution.iterations,
        solution.reseeded,
    )


def solve(
    flat: Array, k: int, method: Solver, weights: Array | None = None
) -> tuple[Solution, float]:
    """Centroids and sum of squares for checked values; :func:`kmeans_1d` without the codes."""
    if not isinstance(k, int | np.integer) or not 1 <= k <= 65536:
        raise InvalidArgument(f"k must be a whole number within 1 and 65536, not {k!r}")
    if weights is not None:
        flat, weights = flat[weights > 0], weights[weights > 0]
    if not flat.size:
        return Solution(np.empty(0), np.inf), 0.0
    data = SortedValues.of(flat, weights)
    distinct = data.runs(0.0, k)
    if distinct is not None:
        return Solution(data.values[distinct[:-1]].astype(np.float64), np.inf), 0.0
    solution = method.solve(data, k)
    centroids = solution.centroids
    # By the thresholds of assign(), so that a centroid is kept if and only if a code uses it.
    inner = np.searchsorted(data.values, thresholds(centroids, data.values.dtype), side="right")
    edges = np.concatenate([[0], inner, [data.size]]).astype(np.int64)
    wcss = data.wcss(centroids, edges)
    used = np.diff(edges) > 0
    return dataclasses.replace(solution, centroids=centroids[used]), wcss


def make_solver(
    solver: str | Solver | None,
    *,
    init: str | Initialisation | None = None,
    **options: Any,
) -> Solver:
    """The solver that is meant; options go to those that have a field of the name."""
    if solver is None:
        solver = "optimal" if init is None else "lloyd"
    if not isinstance(solver, str):
        if init is not None:
            raise InvalidArgument(f"init {init!r} given beside the solver {solver!r}")
        return solver
    fields = {f.name for f in dataclasses.fields(SOLVERS.get(solver))}  # type: ignore[arg-type]
    if init is not None:
        if "init" not in fields:
            raise InvalidArgument(f"solver {solver!r} needs no init; {init!r} goes with 'lloyd'")
        options["init"] = init
    return SOLVERS.make(solver, **{name: x for name, x in options.items() if name in fields})


def checked_weights(weights: ArrayLike, n: int) -> Array:
    """Flat float64 weights; InvalidArgument unless there are ``n``, finite, >= 0 and not all 0."""
    mass = np.asarray(weights, np.float64).reshape(-1)
    if mass.size != n:
        raise InvalidArgument(f"{mass.size} weights for {n} values")
    if n and not (np.isfinite(mass).all() and mass.min() >= 0):
        raise InvalidArgument("weights must be finite and 0 or more")
    if n and not mass.any():
        raise InvalidArgument("weights are all 0")
    return mass
