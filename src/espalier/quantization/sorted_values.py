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
    bits = 8 * values.dtype.itemsize
    return _radix_sort(values.view(f"u{bits // 8}"), 0, bits - 1).view(values.dtype)


def sort_with(values: Array, weights: Array) -> tuple[Array, Array]:
    """``values`` sorted, and ``weights`` in the same order."""
    if values.size < RADIX_FROM or values.dtype != np.float32:
        order = np.argsort(values, kind="stable")
        return values[order], weights[order]
    # The index rides in the low half of the item, and is never sorted by.
    packed = values.view(np.uint32).astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= np.arange(values.size, dtype=np.uint32)
    packed = _radix_sort(packed, 32, 63)
    ordered = (packed >> np.uint64(32)).astype(np.uint32).view(values.dtype)
    packed &= np.uint64(0xFFFFFFFF)
    return ordered, weights[packed.view(np.int64)]


def _radix_sort(items: Array, shift: int, sign: int) -> Array:
    """A copy of ``items``, floats by the bits from ``shift`` up to ``sign``, sorted stably.

    Least digit first. Each thread counts and moves a part of its own; where it moves them to is
    found from all counts before, so that the result is the same for any number of threads.
    """
    parts = pieces(items.size, -(-items.size // thread_count()))
    passes = range(shift, sign + 1, DIGIT)
    source, spare, top = items, None, sign
    for at in passes:
        counts = np.zeros((len(parts), 1 << DIGIT), np.int64)
        in_threads(partial(_count, source, at, top), list(zip(parts, counts, strict=True)))
        last = at == passes[-1]
        if counts.sum(axis=0).max() == items.size and not (last and top == radix.PLAIN):
            continue  # all alike here, as the low bits of widened bfloat16 are
        by_digit = counts.T.reshape(-1)
        offsets = (np.cumsum(by_digit) - by_digit).reshape(1 << DIGIT, len(parts)).T.copy()
        out = np.empty_like(items) if spare is None else spare
        how = (source, at, out, top, sign if last else radix.PLAIN)
        in_threads(partial(_scatter, *how), list(zip(parts, offsets, strict=True)))
        spare = None if source is items else source
        source, top = out, how[-1]
    return items.copy() if source is items else source


def _count(items: Array, at: int, top: int, task: tuple[tuple[int, int], Array]) -> None:
    (lo, hi), counts = task
    radix.count(items[lo:hi], at, counts, top)


def _scatter(
    items: Array, at: int, out: Array, top: int, top_out: int, task: tuple[tuple[int, int], Array]
) -> None:
    (lo, hi), offsets = task
    radix.scatter(items[lo:hi], at, offsets, out, top, top_out)
