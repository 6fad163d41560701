"""How many bits a symbol takes, as far as rounding has to know: by its neighbours' magnitudes.

The coder of ``effort="max"`` tells large weights from small ones by their row, their input channel
and their neighbours in the kernel (:mod:`espalier.kernels.neighbours`). Here the same neighbours,
of the sweep before and on all sides, put each element into one of a few classes of magnitude, and a
symbol's length is that of its frequency within the class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

LEVEL_BITS = 20.0
"""What one more level costs in tables and codebook, in bits."""
MOST_CLASSES = 12
_PER_CLASS = 600
_PER_OCTAVE = 2.5
_PRIOR = 6.0
_FLOOR = 0.02
_FAITH = 1.0  # weights of the mean size, beside those there are
_NEAR = 0.4  # share of the kernel's other weights in what is expected of one


def classes_of(symbols: Array, places: int) -> Array:
    """The class, from 0 up, of each element by the magnitudes around it.

    Parameters
    ----------
    symbols : integer array (rows, columns)
    places : int
        Of a kernel: columns are channels x places.

    Returns
    -------
    uint8 array (rows, columns)
        As many classes as there are elements for, at most :data:`MOST_CLASSES` and one.
    """
    rows, columns = symbols.shape
    number = min(MOST_CLASSES, symbols.size // _PER_CLASS)
    if number < 2:
        return np.zeros(symbols.shape, np.uint8)
    size = np.abs(symbols).astype(np.float64)
    kernels = size.reshape(rows, columns // places, places)
    mean = float(size.mean()) + _FLOOR
    expected = np.full(kernels.shape, 1 / mean**2)
    for axes in ((1, 2), (0, 2), (0, 1)):  # of the row, of the input channel, of the place
        among = kernels.sum(axes, keepdims=True) - kernels  # itself is what is to be told
        others = kernels.size // int(np.prod([kernels.shape[d] for d in {0, 1, 2} - {*axes}])) - 1
        expected = expected * (among + _FAITH * mean) / (others + _FAITH)
    if places > 1:
        near = (kernels.sum(2, keepdims=True) - kernels) / (places - 1)
        expected = (1 - _NEAR) * expected + _NEAR * near
    # Of fixed width, with the mean in the middle of one: edges by quantiles would cut between
    # elements that differ in nothing but that each of them leaves out itself.
    octaves = np.log2(expected.reshape(rows, columns) / mean)
    half = number // 2
    return (np.clip(np.rint(_PER_OCTAVE * octaves), -half, half) + half).astype(np.uint8)


def code_lengths(symbols: Array, classes: Array, top: int) -> Array:
    """Bits of each symbol from -top to top in each class; a new one costs a level more.

    Returns
    -------
    float64 array (classes, 2 top + 1)
    """
    counts = _counts(symbols, classes, top)
    total = counts.sum(0)
    frequency = (total + 0.3) / (total.sum() + 0.3 * total.size)
    shares = (counts + _PRIOR * frequency) / (counts.sum(1, keepdims=True) + _PRIOR)
    return np.where(total > 0, -np.log2(shares), LEVEL_BITS - np.log2(shares))


def total_bits(symbols: Array, classes: Array) -> float:
    """Bits of all symbols by their classes, with :data:`LEVEL_BITS` for each level.

    Examples
    --------
    >>> symbols = np.array([[0, 1, 1, 0]])
    >>> total_bits(symbols, np.zeros_like(symbols))  # a bit each, and two levels
    44.0
    """
    if not symbols.size:
        return 0.0
    counts = _counts(symbols, classes, int(np.abs(symbols).max()))
    bits = _n_log_n(counts.sum(1)) - _n_log_n(counts)
    return float(bits + LEVEL_BITS * int(counts.any(0).sum()))


def _n_log_n(counts: Array) -> float:
    counts = counts[counts > 0]
    return float((counts * np.log2(counts)).sum())


def _counts(symbols: Array, classes: Array, top: int) -> Array:
    """How often each symbol from -top to top comes in each class."""
    number, width = int(classes.max(initial=0)) + 1, 2 * top + 1
    places = classes.reshape(-1).astype(np.int64) * width + symbols.reshape(-1) + top
    return np.bincount(places, minlength=number * width).reshape(number, width)
