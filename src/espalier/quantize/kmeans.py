"""1-D k-means: the weight-sharing engine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from espalier.errors import InvalidArgument
from espalier.kernels import kmeans as kernels
from espalier.quantize.initialisation import Initialisation
from espalier.quantize.solver import SOLVERS, Solution, Solver
from espalier.quantize.sorted_values import SortedValues, in_threads, pieces

Array = NDArray[Any]

LARGEST = 1e150
"""Beyond it squares overflow in float64."""


@dataclass(frozen=True, eq=False)
class Clustering:
    """Values as codes into a few centroids.

    Attributes
    ----------
    centroids : ndarray, float64, shape (k',)
        Strictly rising; k' <= k, fewer where there are fewer distinct values.
    codes : ndarray, uint8 (k <= 256) or uint16, shape (n,)
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
    if not 1 <= k <= 65536:
        raise InvalidArgument(f"k must be within 1 and 65536, not {k}")
    if weights is not None:
        flat, weights = flat[weights > 0], weights[weights > 0]
    if not flat.size:
        return Solution(np.empty(0), np.inf), 0.0
    data = SortedValues.of(flat, weights)
    if data.distinct(k + 1) <= k:
        return Solution(np.unique(data.values).astype(np.float64), np.inf), 0.0
    solution = method.solve(data, k)
    centroids = solution.centroids
    edges = np.zeros(centroids.size + 1, np.int64)
    kernels.nearest_edges(data.values, centroids, edges)
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


def checked_values(values: ArrayLike) -> Array:
    """Flat float32 or float64 values, without a copy where possible; InvalidArgument if not finite."""
    flat = np.asarray(values).reshape(-1)
    if flat.dtype not in (np.float16, np.float32, np.float64):
        raise InvalidArgument(f"values must be float16, float32 or float64, not {flat.dtype}")
    if flat.dtype == np.float16:
        flat = flat.astype(np.float32)
    flat = np.ascontiguousarray(flat)
    if flat.size and not np.isfinite([flat.min(), flat.max()]).all():
        nan, infinite = int(np.isnan(flat).sum()), int(np.isinf(flat).sum())
        raise InvalidArgument(f"values hold {nan} NaN and {infinite} infinite")
    if flat.dtype == np.float64 and flat.size and max(-flat.min(), flat.max()) > LARGEST:
        raise InvalidArgument(f"values beyond {LARGEST:g} cannot be squared in float64")
    return flat


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


def assign(values: ArrayLike, centroids: ArrayLike) -> Array:
    """The code of each value: the index of the nearest centroid, in a tie the lower.

    Exact: as if distances were compared without rounding.

    Parameters
    ----------
    values : array_like, float16, float32 or float64, any shape
    centroids : array_like, shape (k,)
        Rising, 1 to 65536 of them (0 where there are no values).

    Returns
    -------
    ndarray, uint8 (k <= 256) or uint16, shape (n,)
        In the flat order of the values.

    Examples
    --------
    >>> assign(np.array([0.0, 0.5, 0.51]), [0.0, 1.0])
    array([0, 0, 1], dtype=uint8)
    """
    flat = checked_values(values)
    book = np.asarray(centroids, np.float64).reshape(-1)
    if book.size > 65536 or (flat.size and not book.size):
        raise InvalidArgument(f"{flat.size} values cannot have codes among {book.size} centroids")
    if not (np.isfinite(book).all() and np.all(book[1:] >= book[:-1])):
        raise InvalidArgument("centroids must be finite and rise")
    codes = np.empty(flat.size, np.uint8 if book.size <= 256 else np.uint16)
    thresholds = _thresholds(book, flat.dtype)
    cells = 1 << 12 if book.size <= 256 else 1 << 16
    low, scale = _grid(thresholds, cells)
    table = np.empty(cells + 1, np.uint16)
    kernels.fill_table(thresholds, low, scale, table)

    def work(piece: tuple[int, int]) -> None:
        lo, hi = piece
        kernels.assign(flat[lo:hi], thresholds, low, scale, table, codes[lo:hi])

    in_threads(work, pieces(flat.size, 1 << 19))
    return codes


def _thresholds(book: Array, dtype: np.dtype[Any]) -> Array:
    """The largest value of ``dtype`` that goes to each centroid but the last."""
    total = book[:-1] + book[1:]
    # What the sum lost to rounding (Knuth's two-sum) decides where the middle is just missed.
    back = total - book[:-1]
    lost = (book[:-1] - (total - back)) + (book[1:] - back)
    middle = total / 2
    with np.errstate(over="ignore"):
        found = middle.astype(dtype)
    over = (found > middle) | ((found == middle) & (lost < 0))
    found[over] = np.nextafter(found[over], dtype.type(-np.inf))
    return found


def _grid(thresholds: Array, cells: int) -> tuple[Any, Any]:
    """Origin and scale of a grid of ``cells`` over the thresholds, in their dtype."""
    kind = thresholds.dtype.type
    if thresholds.size < 2:
        return kind(0), kind(0)
    low, high = float(thresholds[0]), float(thresholds[-1])
    scale = cells / (high - low) if high > low else 0.0
    limit = float(np.finfo(thresholds.dtype).max)
    if not scale * 4 < limit or high - low > limit / 4:
        scale = 0.0  # one cell: every value is searched
    return kind(low), kind(scale)
