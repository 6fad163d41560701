"""Integer frequencies for rANS: counts rounded to a power of two, and the bits that tell them.

A table of a frequency for each symbol can cost a small layer as much as it saves, so frequencies
are not written as they are. Each symbol has a small *level* v, and frequencies follow from levels
by integer arithmetic alone. With p bits of precision the level of a symbol that occurs is 1 + u,

    weight(u) = u                                     for u < 2**(p + 1)
    weight(u) = (2**p + u mod 2**p) * 2**(u // 2**p - 1)   else,

small integers first, then a number with p bits after its leading one. Of K symbols that occur, with
C_i the sum of the weights of the first i and W = C_K, the frequencies that sum to M = 2**m are

    f_i = 1 + floor((M - K) C_i / W) - floor((M - K) C_(i-1) / W).

How levels become bits: :mod:`espalier.kernels.levels`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.bitpack import OK, RANGE, Int, frozen, inner, jit
from espalier.kernels.levels import MAX_LOG, MAX_PRECISION, MIN_LOG, largest_level, put_levels

Array = NDArray[Any]

FRACTION = 16
"""Bits after the point of :func:`log2_of`."""


@inner
def log2_of(f: Int) -> Int:
    """floor(2**16 log2 f), by integers, so that it is the same anywhere."""
    exponent = np.int64(0)
    while f >> (exponent + 1):
        exponent += 1
    # Squaring a number in [1, 2) doubles its logarithm, whose next bit is then known.
    x = np.uint64(f) << np.uint64(31 - exponent)
    log = exponent
    for _ in range(FRACTION):
        x = (x * x) >> np.uint64(31)
        log <<= 1
        if x >> np.uint64(32):
            log |= 1
            x >>= np.uint64(1)
    return log


@jit
def _fill_log2(table: Array) -> None:
    for f in range(1, table.size):
        table[f] = log2_of(f)


@cache
def log2_table() -> Array:
    """:func:`log2_of` of f up to 2**17."""
    table = np.zeros((1 << MAX_LOG) + 1, np.int64)
    _fill_log2(table)
    return frozen(table)


@inner
def _weight(level: Int, precision: Int) -> Int:
    u = np.int64(level) - 1
    if u < np.int64(2) << precision:
        return u
    one = np.int64(1) << precision
    return (one + (u & (one - 1))) << ((u >> precision) - 1)


@inner
def _level(weight: Int, precision: Int) -> Int:
    """The level whose weight is nearest."""
    if weight < np.int64(2) << precision:
        return weight + 1
    shift = np.int64(0)
    while weight >> shift >= np.int64(2) << precision:
        shift += 1
    top = (weight + ((np.int64(1) << shift) >> 1)) >> shift
    return (shift << precision) + top + 1


@jit
def fill_levels(counts: Array, log: Int, precision: Int, levels: Array) -> None:
    """The level of each symbol for counts that sum to at most 2**41."""
    total = counts.sum()
    most = largest_level(log, precision)
    for s in range(counts.size):
        levels[s] = 0
        if counts[s]:
            wanted = ((np.int64(counts[s]) << (log + 1)) + total) // (2 * total)
            levels[s] = min(_level(max(wanted - 1, 0), precision), most)


@jit
def fill_frequencies(levels: Array, log: Int, precision: Int, frequencies: Array) -> Int:
    """Frequencies of levels; RANGE if they cannot sum to 2**log or one takes almost all of it.

    That no symbol may have more than 255 / 256 of the whole bounds what a few bytes can unfold to.
    """
    present = np.int64(0)
    total = np.int64(0)
    for s in range(levels.size):
        if levels[s]:
            present += 1
            total += _weight(levels[s], precision)
    whole = np.int64(1) << log
    spare = whole - present
    if spare < 0 or (spare > 0 and total == 0):
        return RANGE
    limit = whole - max(whole >> 8, 1)
    sum_before = np.int64(0)
    before = np.int64(0)
    for s in range(levels.size):
        frequencies[s] = 0
        if levels[s]:
            sum_before += _weight(levels[s], precision)
            # Below 2**17 * 2**17 * 2**16.
            after = spare * sum_before // max(total, 1)
            frequencies[s] = 1 + after - before
            before = after
            if frequencies[s] > limit:
                return RANGE
    return OK


def frequencies_reference(levels: list[int], log: int, precision: int) -> list[int]:
    """:func:`fill_frequencies` in plain Python, for levels that are known to do."""

    def weight(u: int) -> int:
        if u < 2 << precision:
            return u
        return ((1 << precision) + u % (1 << precision)) << ((u >> precision) - 1)

    weights = [weight(level - 1) if level else 0 for level in levels]
    spare = (1 << log) - sum(level > 0 for level in levels)
    found: list[int] = []
    before = total = 0
    for level, w in zip(levels, weights, strict=True):
        total += w
        after = spare * total // max(sum(weights), 1)
        found.append(1 + after - before if level else 0)
        before = after
    return found


# ---------------------------------------------------------------- the choice


@inner
def symbol_bits(counts: Array, frequencies: Array, log: Int, logs: Array) -> Int:
    """The sum of ``counts`` log2(2**log / frequencies), in bits, rounded up."""
    total = np.int64(0)
    for s in range(counts.size):
        if counts[s]:
            total += np.int64(counts[s]) * ((np.int64(log) << FRACTION) - logs[frequencies[s]])
    return -(-total >> FRACTION)


@inner
def _cost(counts: Array, target: Array, log: Int, precision: Int, logs: Array, work: Array) -> Int:
    """Bits of table and payload, or -1 where the frequencies do not do."""
    levels, frequencies = work[0], work[1]
    fill_levels(target, log, precision, levels)
    if fill_frequencies(levels, log, precision, frequencies) != OK:
        return np.int64(-1)
    payload = symbol_bits(counts, frequencies, log, logs)
    return payload + put_levels(levels, precision, np.zeros(0, np.uint8))


@inner
def _best(counts: Array, target: Array, low: Int, high: Int, logs: Array) -> tuple[Int, Int]:
    """The best m from ``low`` to ``high`` and p: one after the other, until one does not move."""
    work = np.zeros((2, counts.size), np.int64)
    log, precision = min(max(low, np.int64(11)), high), np.int64(2)
    best = np.int64(-1)
    first = True
    while True:
        moved = False
        for p in range(MAX_PRECISION + 1):
            cost = _cost(counts, target, log, p, logs, work) if p < log else np.int64(-1)
            if cost >= 0 and (best < 0 or cost < best):
                best, precision, moved = cost, np.int64(p), True
        if not (moved or first):
            break
        first = moved = False
        for m in range(low, high + 1):
            cost = _cost(counts, target, m, precision, logs, work) if precision < m else -1
            if cost >= 0 and (best < 0 or cost < best):
                best, log, moved = np.int64(cost), np.int64(m), True
        if not moved:
            break
    return log, precision


@jit
def fit_levels(
    counts: Array, most: Int, logs: Array, levels: Array, frequencies: Array
) -> tuple[Int, Int]:
    """Fill ``levels`` and ``frequencies``: m and p, where m is at most ``most`` if that will do."""
    shift = np.int64(0)
    while counts.sum() >> shift >= np.int64(1) << 40:
        shift += 1
    scaled, target = np.zeros(counts.size, np.int64), np.zeros(counts.size, np.int64)
    present = np.int64(0)
    for s in range(counts.size):
        if counts[s]:
            scaled[s] = max(np.int64(counts[s]) >> shift, np.int64(1))
            present += 1
    # A margin under the limit of 255 / 256, since levels are rounded.
    limit = 160 * (scaled.sum() - scaled.max())
    for s in range(counts.size):
        target[s] = min(scaled[s], limit)
    low = np.int64(MIN_LOG)
    while (present - 1) >> low:
        low += 1
    log, precision = _best(scaled, target, low, max(low, most), logs)
    fill_levels(target, log, precision, levels)
    fill_frequencies(levels, log, precision, frequencies)
    return log, precision


def best_levels(counts: Array, wide: bool) -> tuple[int, int, Array, Array]:
    """Levels and frequencies for which table and payload together are smallest.

    Parameters
    ----------
    counts : int64 array, shape (symbols,)
        Of the symbols from the first that occurs to the last; at least two occur.
    wide : bool
        Whether M may exceed 2**14, beyond which look-ups leave the fastest cache.

    Returns
    -------
    log, precision : int
    levels : int64 array, shape (symbols,)
    frequencies : int64 array, shape (symbols,)
        Their sum is 2**log.
    """
    levels, frequencies = np.zeros((2, counts.size), np.int64)
    most = MAX_LOG if wide else 14
    log, precision = fit_levels(frozen(counts), most, log2_table(), levels, frequencies)
    return log, precision, levels, frequencies
