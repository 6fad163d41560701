"""Codes: the nearest centroid of each value, exactly and at the speed of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from espalier.errors import InvalidArgument
from espalier.kernels import lookup
from espalier.quantization.sorted_values import in_threads, pieces

Array = NDArray[Any]

LARGEST = 1e150
"""Beyond it squares overflow in float64."""


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
    limits = thresholds(book, flat.dtype)
    cells = 1 << 12 if book.size <= 256 else 1 << 16
    low, scale = _grid(limits, cells)
    table = np.empty(cells + 1, np.uint16)
    lookup.fill_table(limits, low, scale, table)

    def work(piece: tuple[int, int]) -> None:
        lo, hi = piece
        lookup.assign(flat[lo:hi], limits, low, scale, table, codes[lo:hi])

    in_threads(work, pieces(flat.size, 1 << 19))
    return codes


def thresholds(book: Array, dtype: np.dtype[Any]) -> Array:
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
    wide = thresholds.astype(np.float64)
    low, high = wide[0], wide[-1]
    # One far outlier would put all other thresholds into one cell. Values beyond the grid fall into
    # its end cells, and are searched for among the thresholds there.
    usual = float(np.median(np.diff(wide))) * cells / 4
    if 0 < usual < high - low:
        low = max(low, wide[wide.size // 2] - usual / 2)
        high = low + usual
    limit = float(np.finfo(thresholds.dtype).max)
    if not (high > low and cells / (high - low) < limit / 4 and high - low < limit / 4):
        return kind(low), kind(0)  # one cell: every value is searched for
    return kind(low), kind(cells / (high - low))


def checked_values(values: ArrayLike) -> Array:
    """Flat float32 or float64 values, not copied where possible; InvalidArgument if not finite."""
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
