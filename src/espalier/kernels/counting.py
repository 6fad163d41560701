"""How often each symbol occurs, several times as fast as ``np.bincount``, which widens to int64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.bitpack import Int, frozen, inner, jit
from espalier.kernels.frequencies import FRACTION, log2_table

Array = NDArray[Any]


@jit
def _count(symbols: Array, counts: Array) -> None:
    # Four tables in turn: equal neighbours would otherwise wait for each other's increment.
    four = np.zeros((4, counts.size), np.int64)
    n = symbols.size & ~3
    for i in range(0, n, 4):
        four[0, symbols[i]] += 1
        four[1, symbols[i + 1]] += 1
        four[2, symbols[i + 2]] += 1
        four[3, symbols[i + 3]] += 1
    for i in range(n, symbols.size):
        four[0, symbols[i]] += 1
    for s in range(counts.size):
        counts[s] = four[0, s] + four[1, s] + four[2, s] + four[3, s]


def count(symbols: Array) -> Array:
    """Occurrences of each possible symbol of a uint8 or uint16 array, shape (256 or 65536,), int64.

    Examples
    --------
    >>> count(np.array([3, 1, 3], np.uint8))[:4].tolist()
    [0, 1, 0, 2]
    """
    counts = np.empty(1 << (8 * symbols.dtype.itemsize), np.int64)
    _count(frozen(symbols), counts)
    return counts


def count_reference(symbols: list[int], size: int) -> list[int]:
    """:func:`count` in plain Python."""
    counts = [0] * size
    for symbol in symbols:
        counts[symbol] += 1
    return counts


# ---------------------------------------------------------------- byte planes

SAMPLED = 1 << 14
"""Bytes of a plane from which a sample tells whether it is worth counting."""
_PLACES = 64
_LEAST_AT_EACH, _MOST_AT_EACH = 1 << 6, 1 << 10


@inner
def _share(c: Int, logs: Array) -> Int:
    """2**16 c log2 c, of the highest bits of c."""
    shift = np.int64(0)
    while c >> shift >= logs.size:
        shift += 1
    return c * (logs[c >> shift] + (shift << FRACTION))


@inner
def _entropy_bits(counts: Array, logs: Array) -> Int:
    """n times the entropy: n log2 n - sum of c log2 c, rounded down."""
    n = total = np.int64(0)
    for c in counts:
        n += c
        total -= _share(c, logs)
    return (total + _share(n, logs)) >> FRACTION


@inner
def _sample(plane: Array) -> Array:
    """About an eighth of a plane, a kibibyte at most at each of 64 places."""
    step = plane.size // _PLACES
    each = min(max(step // 8, _LEAST_AT_EACH), _MOST_AT_EACH)
    sample = np.empty(_PLACES * each, np.uint8)
    for i in range(_PLACES):
        part, into = plane[i * step : (i + 1) * step], sample[i * each : (i + 1) * each]
        for k in range(each):
            into[k] = part[k]
    return sample


@jit
def fill_histograms(planes: Array, most: Int, logs: Array, counts: Array, used: Array) -> None:
    """The kernel of :func:`histograms`."""
    for k in range(planes.shape[0]):
        plane = planes[k]
        if plane.size >= SAMPLED:
            # The sample's own table would weigh several times as much as it does in the end.
            sample = _sample(plane)
            _count(sample, counts[k])
            if _entropy_bits(counts[k], logs) >= 8 * (sample.size - sample.size // 128):
                continue
        _count(plane, counts[k])
        n = np.int64(0)
        for c in counts[k]:
            n += np.int64(c > 0)
        if n == 1 or _entropy_bits(counts[k], logs) + n <= 8 * most:
            used[k] = n


def histograms(planes: Array, most: int) -> tuple[Array, Array]:
    """How often each byte is in each plane, where a coder may bring that to ``most`` bytes.

    A payload of symbols by themselves takes their entropy, and its table a bit for each that
    occurs. Of a long plane a sample is asked first.

    Parameters
    ----------
    planes : uint8 array, shape (r, n)
    most : int

    Returns
    -------
    counts : int64 array, shape (r, 256)
        Where it is worth it.
    used : int64 array, shape (r,)
        How many of them are not 0; 1 where one byte is in all places, 0 where it is not worth it.

    Examples
    --------
    >>> counts, used = histograms(np.array([[0, 1, 0, 1], [5, 5, 5, 5]], np.uint8), 3)
    >>> counts[:, :6].tolist(), used.tolist()
    ([[2, 2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 4]], [2, 1])
    """
    counts = np.zeros((len(planes), 256), np.int64)
    used = np.zeros(len(planes), np.int64)
    fill_histograms(frozen(planes), most, log2_table(), counts, used)
    return counts, used


def histograms_reference(planes: list[bytes], most: int) -> list[list[int] | None]:
    """The counts of :func:`histograms` in plain Python; None where it is not worth it."""
    logs = log2_table().tolist()

    def share(c: int) -> int:
        shift = 0
        while c >> shift >= len(logs):
            shift += 1
        return int(c * (logs[c >> shift] + (shift << FRACTION)))

    def entropy(counts: list[int]) -> int:
        return share(sum(counts)) - sum(map(share, counts)) >> FRACTION

    found: list[list[int] | None] = []
    for plane in planes:
        counts: list[int] | None = count_reference([*plane], 256)
        if len(plane) >= SAMPLED:
            step = len(plane) // _PLACES
            each = min(max(step // 8, _LEAST_AT_EACH), _MOST_AT_EACH)
            sample = b"".join(plane[i * step :][:each] for i in range(_PLACES))
            if entropy(count_reference([*sample], 256)) >= 8 * (len(sample) - len(sample) // 128):
                counts = None
        if counts is not None:
            used = 256 - counts.count(0)
            if used > 1 and entropy(counts) + used > 8 * most:
                counts = None
        found.append(counts)
    return found
