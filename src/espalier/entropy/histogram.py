"""How often each value occurs, and the bound that this sets to any coder without a context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.counting import count

Array = NDArray[Any]

_DIRECT = 1 << 20


def is_constant_view(array: Array) -> bool:
    """Whether ``array`` is one value seen n times, in the memory of one (stride 0)."""
    return array.ndim == 1 and array.size > 1 and array.strides == (0,)


@dataclass(frozen=True, eq=False)
class Histogram:
    """The distinct values of an array of non-negative integers, and how often each occurs.

    Attributes
    ----------
    values : int64 array, shape (m,)
        Rising.
    counts : int64 array, shape (m,)
        All positive.
    """

    values: Array
    counts: Array

    @classmethod
    def of(cls, symbols: Array) -> Histogram:
        """The histogram of ``symbols``; linear in time for values below 2**20."""
        if symbols.size == 0:
            return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))
        if is_constant_view(symbols):
            return cls(symbols[:1].astype(np.int64), np.array([symbols.size], np.int64))
        if symbols.dtype in (np.dtype("u1"), np.dtype("<u2")):
            counts = count(symbols)
            values = np.flatnonzero(counts)
            return cls(values, counts[values])
        if symbols.dtype.kind in "bui" and symbols.min() >= 0 and symbols.max() < _DIRECT:
            counts = np.bincount(symbols)
            values = np.flatnonzero(counts)
            return cls(values, counts[values])
        values, counts = np.unique(symbols, return_counts=True)
        return cls(values, counts)

    @property
    def total(self) -> int:
        """Number of symbols."""
        return int(self.counts.sum())

    @property
    def entropy_bits(self) -> float:
        """n times the order-0 entropy: -sum of counts * log2(counts / n), in bits."""
        return entropy_of(self.counts)

    def dense(self, alphabet: int) -> Array:
        """Counts of the symbols 0 to ``alphabet`` - 1, int64."""
        counts = np.zeros(alphabet, np.int64)
        counts[self.values] = self.counts
        return counts


def entropy_of(counts: Array) -> float:
    """n times the order-0 entropy of symbols that occur ``counts`` times, all positive: in bits."""
    if counts.size < 2:
        return 0.0
    counts = counts.astype(np.float64)
    n = counts.sum()
    return float(n * np.log2(n) - counts @ np.log2(counts))


def entropy_bits(symbols: Array) -> float:
    """The bits that no coder of independent symbols can go below: n H(symbols).

    H is the empirical order-0 entropy, -sum of p log2 p.

    Parameters
    ----------
    symbols : array of integers, any shape

    Returns
    -------
    float
        In bits, for all symbols together; 0.0 for none.

    Examples
    --------
    >>> entropy_bits(np.array([0, 1, 0, 1]))
    4.0
    """
    return Histogram.of(np.ravel(symbols)).entropy_bits
