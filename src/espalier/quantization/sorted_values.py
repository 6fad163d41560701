"""Sorted values with prefix sums: what every 1-D k-means of this package works on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from espalier.kernels import intervals, radix
from espalier.kernels import kmeans as kernels

Array = NDArray[Any]
T = TypeVar("T")
R = TypeVar("R")

PIECE = 1 << 18
"""Values to one unit of work. Fixed, so that sums do not depend on the number of threads."""

RADIX_FROM = 1 << 16
"""Fewer values are sorted by NumPy: sooner done, and nothing to compile."""

DIGIT = 11
"""Bits to one pass of the radix sort: 2048 places to write to stay in the second-level cache."""


def thread_count() -> int:
    """Threads that this process may keep busy: its processors, or ``NUMBA_NUM_THREADS``."""
    asked = os.environ.get("NUMBA_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_threads(work: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> list[R]:
    """``[work(item) for item in items]``, side by side where that can help."""
    todo = list(items)
    threads = min(threads or thread_count(), len(todo))
    if threads < 2:
        return [work(item) for item in todo]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, todo))


def pieces(n: int, size: int = PIECE) -> list[tuple[int, int]]:
    """The ranges [lo, hi) of ``size`` that cover [0, n)."""
    return [(lo, min(n, lo + size)) for lo in range(0, n, size)]


@dataclass(frozen=True, eq=False)
class SortedValues:
    """Values in rising order, their weights, and prefix sums at every 64th.

    Attributes
    ----------
    values : ndarray, float32 or float64, shape (n,)
        Rising, n > 0, finite.
    weights : ndarray, float64, shape (n,) or (0,)
        Positive weights in the same order; empty where every value counts 1.
    shift : float
        Subtracted before sums are taken, since far from 0 squares lose their last digits.
    w, s1, s2 : ndarray, float64
        Sums of weight, weight (v - shift), weight (v - shift)^2 before every 64th value and of all.
    """

    values: Array
    weights: Array
    shift: float
    w: Array
    s1: Array
    s2: Array

    @classmethod
    def of(cls, values: Array, weights: Array | None = None) -> SortedValues:
        """Sort a copy of finite 1-D ``values`` (float32 or float64), and sum it up."""
        if weights is None:
            ordered, mass = sort(values), np.empty(0, np.float64)
        else:
            ordered, mass = sort_with(values, np.asarray(weights, np.float64))
        return cls.of_sorted(ordered, mass)

    @classmethod
    def of_sorted(cls, values: Array, weights: Array) -> SortedValues:
        """The same for values that rise already; ``weights`` may be empty."""
        n = values.size
        shift = float(values[n // 2])
        w, s1, s2 = (np.zeros(-(-n // kernels.BLOCK) + 1) for _ in range(3))

        def work(piece: tuple[int, int]) -> None:
            lo, hi = piece
            first = lo // kernels.BLOCK
            kernels.block_sums(values[lo:hi], weights[lo:hi], shift, w, s1, s2, first)

        in_threads(work, pieces(n))
        for x in (w, s1, s2):
            kernels.running_sum(x)
        return cls(values, weights, shift, w, s1, s2)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(self.values.size)

    @property
    def low(self) -> float:
        """The smallest value."""
        return float(self.values[0])

    @property
    def high(self) -> float:
        """The largest value."""
        return float(self.values[-1])

    @property
    def total(self) -> float:
        """Sum of the weights; without weights the number of values."""
        return float(self.w[-1])

    @property
    def mean(self) -> float:
        """Weighted mean."""
        return self.shift + float(self.s1[-1]) / self.total

    @property
    def variance(self) -> float:
        """Weighted variance about the mean."""
        return max(0.0, float(self.s2[-1]) - float(self.s1[-1]) ** 2 / self.total) / self.total

    @property
    def sums(self) -> tuple[Array, Array, float, Array, Array, Array]:
        """What the kernels take, in their order."""
        return self.values, self.weights, self.shift, self.w, self.s1, self.s2

    def sums_at(self, indices: Array) -> Array:
        """The three prefix sums before each index: float64, shape (3, len(indices))."""
        out = np.empty((3, indices.size))
        kernels.sums_at(*self.sums, np.ascontiguousarray(indices, np.int64), out)
        return out

    def quantiles(self, p: Array) -> Array:
        """The values at fractions ``p`` of the weight, float64."""
        target = np.asarray(p, np.float64) * self.total
        if not self.weights.size:
            index = np.ceil(target).astype(np.int64) - 1
        else:
            index = np.searchsorted(np.cumsum(self.weights), target, side="left")
        return self.values[np.clip(index, 0, self.size - 1)].astype(np.float64)

    def runs(self, q: float, limit: int) -> Array | None:
        """Cut into the longest runs with (count) (extent)^2 <= ``q``; equal values stay together.

        Returns where runs begin, and n last; ``None`` where there are more than ``limit``. For
        ``q`` = 0 runs are the distinct values.
        """
        edges = np.empty(min(limit, self.size) + 1, np.int64)
        count = int(intervals.spread_blocks(self.values, q, edges))
        return None if count < 0 else edges[: count + 1]

    def distinct(self) -> Array:
        """Where each distinct value begins, and n last."""
        edges = self.runs(0.0, self.size)
        return np.arange(self.size + 1) if edges is None else edges

    def centroids_of(self, edges: Array) -> Array:
        """Means of the clusters ``values[edges[j]:edges[j + 1]]``, none of them empty."""
        weight, first, _ = np.diff(self.sums_at(edges), axis=1)
        seen = weight > 0  # others have weights so small that the sum does not notice them
        means = self.shift + np.where(seen, first, 0.0) / np.where(seen, weight, 1.0)
        low = self.values[edges[:-1]].astype(np.float64)
        return np.clip(means, low, self.values[edges[1:] - 1].astype(np.float64))

    def wcss(self, centroids: Array, edges: Array) -> float:
        """Within-cluster sum of squares, summed over the values themselves."""

        def work(piece: tuple[int, int]) -> float:
            return float(
                kernels.squared_errors(self.values, self.weights, centroids, edges, *piece)
            )

        return float(np.sum(in_threads(work, pieces(self.size))))


def sort(values: Array) -> Array:
    """A sorted copy of 1-D finite ``values``."""
    if values.size < RADIX_FROM:
        return np.sort(values)
    return _unkeyed(_radix_sort(_keys(values), 0), values.dtype)


def sort_with(values: Array, weights: Array) -> tuple[Array, Array]:
    """``values`` sorted, and ``weights`` in the same order."""
    if values.size < RADIX_FROM or values.dtype != np.float32:
        order = np.argsort(values, kind="stable")
        return values[order], weights[order]
    # The index rides in the low half of the key, and is never sorted by.
    packed = _keys(values).astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= np.arange(values.size, dtype=np.uint32)
    packed = _radix_sort(packed, 32)
    ordered = _unkeyed((packed >> np.uint64(32)).astype(np.uint32), values.dtype)
    packed &= np.uint64(0xFFFFFFFF)
    return ordered, weights[packed.view(np.int64)]


def _keys(values: Array) -> Array:
    """Unsigned integers in the order of the values: sign bit flipped, negatives complemented."""
    bits = 8 * values.dtype.itemsize
    signed, raw = values.view(f"i{bits // 8}"), values.view(f"u{bits // 8}")
    keys = np.empty_like(raw)

    def work(piece: tuple[int, int]) -> None:
        part = slice(*piece)
        keys[part] = (signed[part] >> (bits - 1)).view(keys.dtype)
        keys[part] |= keys.dtype.type(1 << (bits - 1))
        keys[part] ^= raw[part]

    in_threads(work, pieces(values.size))
    return keys


def _unkeyed(keys: Array, dtype: np.dtype[Any]) -> Array:
    top = keys.dtype.type(8 * keys.dtype.itemsize - 1)

    def work(piece: tuple[int, int]) -> None:
        part = keys[slice(*piece)]
        part ^= ((part >> top) - keys.dtype.type(1)) | (keys.dtype.type(1) << top)

    in_threads(work, pieces(keys.size))
    return keys.view(dtype)


def _radix_sort(keys: Array, shift: int) -> Array:
    """Sort unsigned ``keys`` by the bits from ``shift`` up, stably; ``keys`` are lost.

    Least digit first. Each thread counts and moves a part of its own; where it moves them to is
    found from all counts before, so that the result is the same for any number of threads.
    """
    spare = np.empty_like(keys)
    parts = pieces(keys.size, -(-keys.size // thread_count()))
    for at in range(shift, 8 * keys.dtype.itemsize, DIGIT):
        counts = np.zeros((len(parts), 1 << DIGIT), np.int64)
        in_threads(partial(_count, keys, at), list(zip(parts, counts, strict=True)))
        if counts.sum(axis=0).max() == keys.size:
            continue  # all alike here, as the low bits of widened bfloat16 are
        by_digit = counts.T.reshape(-1)
        offsets = (np.cumsum(by_digit) - by_digit).reshape(1 << DIGIT, len(parts)).T.copy()
        in_threads(partial(_scatter, keys, at, spare), list(zip(parts, offsets, strict=True)))
        keys, spare = spare, keys
    return keys


def _count(keys: Array, at: int, task: tuple[tuple[int, int], Array]) -> None:
    (lo, hi), counts = task
    radix.count(keys[lo:hi], at, counts)


def _scatter(keys: Array, at: int, out: Array, task: tuple[tuple[int, int], Array]) -> None:
    (lo, hi), offsets = task
    radix.scatter(keys[lo:hi], at, offsets, out)
