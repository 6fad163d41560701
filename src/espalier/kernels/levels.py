"""The table of rANS as bits: levels, of neighbours mostly close to each other.

A level is 0 for a symbol that does not occur; what one stands for: see
:mod:`espalier.kernels.frequencies`. Where counts form a bowl, neighbours differ by little: their
differences are written in Golomb-Rice codes whose parameter follows the running mean, as in JPEG-LS
(Weinberger, Seroussi and Sapiro 2000), and runs of absent symbols in Elias' gamma code. A plain
Python reference stands beside the kernels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.bitpack import OK, RANGE, SHORT, Int, frozen, inner, jit, put_bits

Array = NDArray[Any]

MIN_LOG, MAX_LOG = 4, 17
"""Least and greatest m = log2 M."""
MAX_PRECISION = 7


@inner
def largest_level(log: Int, precision: Int) -> Int:
    """The largest level whose weight is below 2**log."""
    return (log - precision + 1) << precision


@inner
def _log2(x: Int) -> Int:
    n = np.int64(0)
    while x > 1:
        x >>= 1
        n += 1
    return n


@inner
def _rice(mean: Int) -> Int:
    """The parameter for a running sum ``mean`` of about eight values."""
    return _log2(max((mean * 3) >> 5, 1))


@inner
def put_levels(levels: Array, precision: Int, out: Array) -> Int:
    """Write levels, of which the first and the last are not 0; returns the number of bits."""
    bit = np.int64(0)
    mean = np.int64(16) << precision
    last = np.int64(0)
    absent = False
    s = 0
    while s < levels.size:
        level = np.int64(levels[s])
        if absent:
            run = np.int64(1)
            while levels[s] == 0:
                run += 1
                s += 1
            level = np.int64(levels[s])
            width = _log2(run)
            bit = put_bits(out, bit, np.int64(1) << width, width + 1)
            bit = put_bits(out, bit, run - (np.int64(1) << width), width)
            value = level - 1
        elif s == 0:
            value = level - 1
        else:
            step = level - last
            value = 2 * step if step >= 0 else -2 * step - 1
        k = _rice(mean)
        quotient = value >> k
        bit = put_bits(out, bit + quotient, 1, 1)
        bit = put_bits(out, bit, value & ((np.int64(1) << k) - 1), k)
        mean += value - (mean >> 3)
        absent = level == 0
        last = level
        s += 1
    return bit


@inner
def _get(buffer: Array, bit: Int, width: Int) -> Int:
    """``width`` bits at ``bit``; zeros past the end."""
    value = np.int64(0)
    for i in range(width):
        at = bit + i
        if at >> 3 < buffer.size:
            value |= np.int64((buffer[at >> 3] >> (at & 7)) & 1) << i
    return value


@inner
def _get_unary(buffer: Array, bit: Int, most: Int) -> Int:
    """The number of zero bits before the next one, or -1 if there are more than ``most``."""
    n = np.int64(0)
    while n <= most:
        if (bit + n) >> 3 >= buffer.size:
            return np.int64(-1)
        if (buffer[(bit + n) >> 3] >> ((bit + n) & 7)) & 1:
            return n
        n += 1
    return np.int64(-1)


@inner
def get_levels(buffer: Array, log: Int, precision: Int, levels: Array) -> tuple[Int, Int]:
    """Read levels: the inverse of :func:`put_levels`; a status and the number of bits."""
    most = largest_level(log, precision)
    bits = np.int64(8) * buffer.size
    bit = np.int64(0)
    mean = np.int64(16) << precision
    last = np.int64(0)
    absent = False
    s = np.int64(0)
    while s < levels.size:
        if absent:
            width = _get_unary(buffer, bit, 16)
            if width < 0:
                return (SHORT if bit + 17 > bits else RANGE), bit
            bit += width + 1
            s += (np.int64(1) << width) + _get(buffer, bit, width) - 1
            bit += width
            if s >= levels.size:
                return RANGE, bit
        k = _rice(mean)
        quotient = _get_unary(buffer, bit, (2 * most) >> k)
        if quotient < 0:
            return (SHORT if bit + ((2 * most) >> k) + 1 > bits else RANGE), bit
        bit += quotient + 1
        value = (quotient << k) | _get(buffer, bit, k)
        bit += k
        if absent or s == 0:
            level = value + 1
        else:
            level = last + (value >> 1 if value & 1 == 0 else -((value + 1) >> 1))
        if level < 0 or level > most:
            return RANGE, bit
        levels[s] = level
        mean += value - (mean >> 3)
        absent = level == 0
        last = level
        s += 1
    if bit > bits:
        return SHORT, bit
    return (RANGE if absent else OK), bit


@jit
def _written(levels: Array, precision: Int) -> Array:
    bits = put_levels(levels, precision, np.zeros(0, np.uint8))
    out = np.zeros((bits + 7) // 8, np.uint8)
    put_levels(levels, precision, out)
    return out


def write_levels(levels: Array, precision: int) -> bytes:
    """The bits of levels, padded with zeros to a whole byte.

    Examples
    --------
    >>> write_levels(np.array([3, 4, 4, 1]), 0).hex()
    '6410'
    """
    return bytes(_written(frozen(levels.astype(np.int64)), precision))


@jit
def read_levels(buffer: Array, log: Int, precision: Int, levels: Array) -> tuple[Int, Int]:
    """Fill ``levels`` from the start of ``buffer``: a status, and the bytes that they take."""
    status, bits = get_levels(buffer, log, precision, levels)
    size = (bits + 7) >> 3
    if status == OK and bits & 7 and buffer[size - 1] >> (bits & 7):
        status = RANGE
    return status, size


def write_levels_reference(levels: list[int], precision: int) -> bytes:
    """:func:`write_levels` in plain Python."""
    text = ""
    mean, last, run = 16 << precision, None, 0
    for level in levels:
        if last == 0:
            run += 1
            if level == 0:
                continue
            text += "0" * (run.bit_length() - 1) + "1" + f"{run:b}"[:0:-1]
            run = 0
        if not last:
            value = level - 1
        else:
            step = level - last
            value = 2 * step if step >= 0 else -2 * step - 1
        k = max(mean * 3 >> 5, 1).bit_length() - 1
        text += "0" * (value >> k) + "1"
        text += "".join(str(value >> i & 1) for i in range(k))
        mean += value - (mean >> 3)
        last = level
    return int(text[::-1], 2).to_bytes((len(text) + 7) // 8, "little")


def read_levels_reference(data: bytes, precision: int, n: int) -> list[int]:
    """:func:`read_levels` in plain Python, for levels that are known to be whole."""
    bits = iter("".join(f"{byte:08b}"[::-1] for byte in data))

    def unary() -> int:
        zeros = 0
        while next(bits) == "0":
            zeros += 1
        return zeros

    def field(width: int) -> int:
        return sum(int(next(bits)) << i for i in range(width))

    levels: list[int] = []
    mean = 16 << precision
    while len(levels) < n:
        fresh = not levels or levels[-1] == 0
        if levels and fresh:
            width = unary()
            levels += [0] * ((1 << width) + field(width) - 1)
        k = max(mean * 3 >> 5, 1).bit_length() - 1
        value = (unary() << k) + field(k)
        mean += value - (mean >> 3)
        step = value // 2 if value % 2 == 0 else -(value + 1) // 2
        levels.append(value + 1 if fresh else levels[-1] + step)
    return levels
