"""The arithmetic on one tensor: which weights stay, which values they share, what is lost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from espalier.compress.plan import AUTO, AUTO_BITS
from espalier.fixed_point import from_numbers, to_numbers
from espalier.options import kept_count
from espalier.quantization.assignment import assign
from espalier.quantization.kmeans import Clustering, kmeans_1d
from espalier.state import Array, storage_dtype

AUTO_ERROR = 2.0**-7
"""Relative error (Frobenius) that ``auto`` allows in a tensor: 42 dB, what 8 bits give at best."""

_OUTLIER = 4.5  # median magnitudes: 3 standard deviations, were the values normal
_ROUNDING_SHARE = 0.02  # of the squared error, which is what rounding the centroids may add
_LEAST_MANTISSA = 8  # explicit bits: with the sign and 8 of exponent, two bytes and a bit


@dataclass(frozen=True)
class Error:
    """How far a tensor is from its original.

    Attributes
    ----------
    relative : float
        Frobenius norm of the difference over that of the original.
    sqnr_db : float
        Signal to quantization noise, in dB: -20 log10(relative); infinite where nothing changed.
    max_abs : float
        Largest difference of one element.
    """

    relative: float
    sqnr_db: float
    max_abs: float


EXACT = Error(0.0, math.inf, 0.0)


def measure(original: Array, now: Array) -> Error:
    """How far the values ``now`` are from the ``original`` ones."""
    if np.array_equal(original, now):
        return EXACT
    wide = np.result_type(original, np.float64)
    difference = now.astype(wide) - original
    noise = float(np.linalg.norm(difference))
    signal = float(np.linalg.norm(original.astype(wide)))
    relative = noise / signal if signal else math.inf
    return Error(relative, -20 * math.log10(relative), float(np.abs(difference).max()))


def magnitude_positions(flat: Array, density: float) -> Array:
    """Positions of the largest magnitudes, rising; exactly as many as ``density`` asks for.

    Among equals the lower index stays.

    Examples
    --------
    >>> magnitude_positions(np.array([2.0, 1.0, -2.0, 2.0]), 0.5)
    array([0, 2])
    """
    keep = kept_count(density, flat.size)
    if keep >= flat.size:
        return np.arange(flat.size, dtype=np.int64)
    size = np.abs(flat)
    threshold = np.partition(size, flat.size - keep)[flat.size - keep]
    above = np.flatnonzero(size > threshold)
    ties = np.flatnonzero(size == threshold)[: keep - above.size]
    return np.sort(np.concatenate([above, ties])).astype(np.int64)


def share(values: Array, bits: int | str, dtype: str) -> tuple[Array, Array]:
    """Codes and codebook, in the storage dtype of ``dtype``, of at most 2^bits shared values.

    The centroids minimise the squared error, and are then rounded to as few bits as add no more
    than 2% to it: a codebook of rounded values takes less than half the bytes, which in a small
    layer is much of the file. A zero among the values gets a code of its own and stays exactly
    zero.

    Parameters
    ----------
    values : ndarray, float32 or float64, shape (n,)
        Finite.
    bits : int from 1 to 16, or "auto"
    dtype : str
        Of the tensor that the values come from.

    Returns
    -------
    codes : ndarray, uint8 or uint16, shape (n,)
    codebook : ndarray, shape (k,), rising
    """
    if not values.size:
        return np.zeros(0, np.uint8), np.zeros(0, storage_dtype(dtype))
    nonzero = values[values != 0]
    with_zero = nonzero.size < values.size
    centroids = np.zeros(0)
    if nonzero.size:
        room = (1 << (AUTO_BITS if isinstance(bits, str) else bits)) - with_zero
        found = kmeans_1d(nonzero, room)
        if bits == AUTO:
            found = _fewest(nonzero, found)
        centroids = _rounded(found)
    if with_zero:
        centroids = np.append(centroids, 0.0)
    # Centroids that round to one value are one; codes are of the codebook as it is written.
    book = np.unique(to_numbers(from_numbers(centroids, dtype), dtype))
    return assign(values, book), from_numbers(book, dtype)


def _fewest(values: Array, found: Clustering) -> Clustering:
    """A clustering with about the fewest centroids, from 129 up, whose error is within 2^-7.

    The error is relative to what the values would be without outliers: beside one weight that is a
    thousand times larger, losing all the others would be a small relative error.
    """
    size = np.abs(values).astype(np.float64)
    usual = np.minimum(size, _OUTLIER * np.median(size))
    allowed = AUTO_ERROR**2 * float(np.square(usual).sum()) / (1 + _ROUNDING_SHARE)
    most = found.centroids.size
    if not 0 < found.wcss < allowed:  # also where nothing is lost: that must stay so
        return found
    k = math.ceil(most * math.sqrt(found.wcss / allowed))  # the error falls as 1 / k^2
    k = max(k, (1 << (AUTO_BITS - 1)) + 1)
    while k < most:
        trial = kmeans_1d(values, k)
        if trial.wcss <= allowed:
            return trial
        k += max(1, k // 64)
    return found


def _rounded(found: Clustering) -> Array:
    """The centroids with the fewest mantissa bits that add at most 2% to the squared error.

    A centroid is the mean of its values, so moving it by d adds n d^2 for its n values.
    """
    mantissa, exponent = np.frexp(found.centroids)
    counts = np.bincount(found.codes, minlength=found.centroids.size)
    for bits in range(_LEAST_MANTISSA, np.finfo(np.float64).nmant):
        scale = 2.0 ** (bits + 1)
        rounded = np.ldexp(np.round(mantissa * scale) / scale, exponent)
        added = float((counts * np.square(rounded - found.centroids)).sum())
        if added <= _ROUNDING_SHARE * found.wcss:
            return rounded
    return found.centroids
