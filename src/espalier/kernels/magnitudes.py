"""Codes of shared weights: the size of each, by the sizes around it, in adaptive decisions.

A code stands for a signed number: how far its value is from zero in the order of the codebook. Of
the sizes of such numbers there are running means over the channel, the column, the last thirty and
the last two elements; quantized, they are the contexts of three counters, whose probabilities are
mixed as in :mod:`espalier.kernels.neighbours`. A size is told by its number of bits, in unary, then
by its bits; whether it is 0, and whether 1, are mixed decisions, all others plain ones. This is
several times as fast as ranks by :mod:`espalier.kernels.neighbours`, and as small where there are
few levels. ``SPEC.md``, section 3.5, gives every number.

References
----------
Wiedemann and others 2020, DeepCABAC (binarization by zero, sign and size); Mahoney 2005 (mixing).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from espalier.kernels.bitpack import OK, SHORT, TRAILING, Int, frozen, jit
from espalier.kernels.bitpack import RANGE as OUTSIDE
from espalier.kernels.neighbours import TOP, logistic
from espalier.kernels.range_coder import (
    AT,
    CODE,
    HALF,
    LEAST,
    LIMIT,
    RANGE,
    RATES,
    carry,
    digits_of,
    ended,
    finish,
    new_state,
)

Array = NDArray[Any]

inlined: Any = njit(inline="always")
"""The decorator of what is inlined: a decision takes less time than a call."""

WEIGHT = 32666
"""Where a weight begins, in parts of 2**16: three of them are 1.5."""
STEPS = 32
"""Values that a quantized mean has."""
NODES = 2
"""Mixed decisions: is it 1 or more, is it 2 or more. Further ones hardly depend on more than the
last thirty elements."""

_CHANNEL = STEPS * NODES
_NEAR = 2 * STEPS * NODES
_CONTEXTS = (2 + STEPS) * STEPS * NODES
_SECOND, _SIGNS, _LONG = 256, 512, 544
"""Where plain counters begin, behind those of further bits by the bits so far: of the second bit by
the number of bits, of signs, of whether it has more than n bits."""
_PLAIN = _LONG + 16 * STEPS
_DIGITS = 16
"""No element takes so many digits: 18 decisions of at most 11 bits."""
_SHIFT = np.uint64(32)

_NONE = np.zeros(0, np.int64)
_BOUNDS = [2 * ((4 + i % 4) << i // 4) - 8 for i in range(1, STEPS)]
_STEP = frozen(np.searchsorted(_BOUNDS, np.arange(_BOUNDS[-1] + 1), "right").astype(np.int32))
"""A mean in parts of 16, quantized: four steps to each doubling of it and a half."""

_SQUASH, _STRETCH = (frozen(table.astype(np.int32)) for table in logistic())
_RATES = frozen(RATES.astype(np.int32))


@inlined
def _quantized(mean: Int) -> Int:
    return np.int64(_STEP[np.uint64(min(mean, _STEP.size - 1))])


@inlined
def _signed(value: Int) -> Int:
    """A signed number, quantized: 0 to 16, 8 for 0."""
    size = (_quantized(16 * abs(value)) + 2) >> 2
    return 8 - size if value < 0 else 8 + size


@inlined
def _learnt(counter: Int, bit: Int) -> Int:
    """A counter, probability * 2**10 + decisions met, after one more."""
    q, seen = counter >> 10, counter & 1023
    q += (((bit << 16) - q) * np.int64(_RATES[np.uint64(seen)])) >> 16
    # Never over 2**16 - LEAST: after n ones it is at most 2**16 - 2**15 / (n + 1), n up to LIMIT.
    return max(q, np.int64(LEAST)) << 10 | (seen + np.int64(seen < LIMIT))


@inlined
def _coded(
    left: Int, code: Int, at: Int, digits: Array, writing: Int, bit: Int, p: Int
) -> tuple[Int, Int, Int, Int]:
    """A decision of the range coder: the bit, and the coder's range, code and place after it."""
    bound = (left >> np.uint64(16)) * np.uint64(p)
    if writing:
        if bit:
            left = bound
        else:
            code += bound
            left -= bound
            if code < bound:
                carry(digits, at)
        if left >> _SHIFT == np.uint64(0):
            digits[at] = np.uint32(code >> _SHIFT)
            at += 1
            code <<= _SHIFT
            left <<= _SHIFT
    else:
        bit = np.int64(code < bound)
        if bit:
            left = bound
        else:
            code -= bound
            left -= bound
        if left >> _SHIFT == np.uint64(0):
            digit = np.uint64(digits[at]) if at < digits.size else np.uint64(0)
            at += 1
            code = (code << _SHIFT) | digit
            left <<= _SHIFT
    return bit, left, code, at


@inlined
def _plain(
    left: Int, code: Int, at: Int, digits: Array, writing: Int, bit: Int, counters: Array, i: Int
) -> tuple[Int, Int, Int, Int]:
    """A decision by one counter."""
    counter = np.int64(counters[i])
    bit, left, code, at = _coded(left, code, at, digits, writing, bit, counter >> 10)
    counters[i] = _learnt(counter, bit)
    return bit, left, code, at


@inlined
def _mixed(
    left: Int,
    code: Int,
    at: Int,
    digits: Array,
    writing: Int,
    bit: Int,
    contexts: tuple[Int, Int, Int],
    node: Int,
    counters: Array,
    weights: Array,
) -> tuple[Int, Int, Int, Int]:
    """A decision by three counters, written out: a loop over them takes twice the time."""
    i, j, k = contexts[0] + node, contexts[1] + node, contexts[2] + node
    x, y, z = np.int64(counters[i]), np.int64(counters[j]), np.int64(counters[k])
    s = np.int64(_STRETCH[np.uint64(x >> 14)])
    t = np.int64(_STRETCH[np.uint64(y >> 14)])
    u = np.int64(_STRETCH[np.uint64(z >> 14)])
    a, b, c = weights[0, node], weights[1, node], weights[2, node]
    logit = min(max((a * s + b * t + c * u) >> 16, np.int64(-TOP)), np.int64(TOP))
    p = np.int64(_SQUASH[np.uint64(logit + TOP)])
    bit, left, code, at = _coded(left, code, at, digits, writing, bit, p)
    error = 6 * ((bit << 16) - p)
    half = np.int64(1 << 17)
    weights[0, node] = a + ((s * error + half) >> 18)
    weights[1, node] = b + ((t * error + half) >> 18)
    weights[2, node] = c + ((u * error + half) >> 18)
    counters[i], counters[j], counters[k] = _learnt(x, bit), _learnt(y, bit), _learnt(z, bit)
    return bit, left, code, at


@jit
def _code(
    state: Array,
    digits: Array,
    positions: Array,
    channel_of: Array,
    codes: Array,
    order: Array,
    middle: Int,
    least: Int,
    most: Int,
    counters: Array,
    weights: Array,
    plain: Array,
    writing: Int = 0,
) -> Int:
    """Fill ``codes``, or write them; no ``positions``: all elements are kept.

    ``order`` has the code of each rank; to write, the rank of each code. Where ``writing`` is left
    out, what only a writer does is not compiled.
    """
    left, code, at = state[RANGE], state[CODE], np.int64(state[AT])
    columns = channel_of.size
    of_column = np.full(columns, 16, np.int64)
    of_channel = np.full(channel_of[-1] + 1, 128, np.int64)
    recent, near, start = np.int64(1024), np.int64(0), np.int64(0)
    before, last = np.int64(-1), np.int64(0)
    for n in range(codes.size):
        place = positions[n] if positions.size else np.int64(n)
        if place >= start + columns:
            start = place // columns * columns
        if at + _DIGITS > digits.size if writing else at > digits.size + 1:
            return SHORT
        column = np.uint64(place - start)
        channel = channel_of[column]
        above = of_column[column]
        by_recent = _quantized(recent >> 6)
        contexts = (
            np.uint64(by_recent * NODES),
            np.uint64(_CHANNEL + _quantized(of_channel[np.uint64(channel)] >> 3) * NODES),
            np.uint64(_NEAR + (_quantized(above) * STEPS + _quantized(near)) * NODES),
        )
        value = np.int64(0)
        if writing:
            value = np.int64(order[np.uint64(codes[n])]) - middle
            value += least if value >= 0 else np.int64(0)
        known = abs(value)
        bits, size = least, least
        while bits < most:
            more = np.int64(known >> bits != 0)
            if bits < NODES:
                bit, left, code, at = _mixed(
                    left,
                    code,
                    at,
                    digits,
                    writing,
                    more,
                    contexts,
                    np.uint64(bits),
                    counters,
                    weights,
                )
            else:
                i = np.uint64(_LONG + by_recent * 16 + bits)
                bit, left, code, at = _plain(left, code, at, digits, writing, more, plain, i)
            if not bit:
                break
            bits += 1
            size = np.int64(1)
        if bits > 1:
            i = np.uint64(_SECOND + bits)
            bit, left, code, at = _plain(
                left, code, at, digits, writing, (known >> (bits - 2)) & 1, plain, i
            )
            size = 2 + bit
            for shift in range(bits - 3, -1, -1):
                bit, left, code, at = _plain(
                    left, code, at, digits, writing, (known >> shift) & 1, plain, np.uint64(size)
                )
                size = 2 * size + bit
        signed = np.int64(0)
        if size:
            beside = place == before + 1 and column and channel_of[column - 1] == channel
            i = np.uint64(_SIGNS + (_signed(last) if beside else np.int64(8)))
            bit, left, code, at = _plain(
                left, code, at, digits, writing, np.int64(value < 0), plain, i
            )
            signed = -size if bit else size
        if not writing:
            rank = middle + signed - (least if signed > 0 else np.int64(0))
            if rank < 0 or rank >= order.size:
                return OUTSIDE
            codes[n] = order[np.uint64(rank)]
        before, last = place, signed
        recent += (1024 * size - recent) >> 5
        of_channel[channel] += (128 * size - of_channel[channel]) >> 4
        of_column[column] = above + ((16 * size - above) >> 3)
        near += (16 * size - near) >> 1
    state[RANGE], state[CODE], state[AT] = left, code, np.uint64(at)
    return OK


def _model() -> tuple[Array, Array, Array]:
    start = HALF << 10
    counters = np.full(_CONTEXTS, start, np.int32)
    return counters, np.full((3, NODES), WEIGHT, np.int64), np.full(_PLAIN, start, np.int32)


def _arguments(
    positions: Array | None, columns: int, places: int, levels: int, middle: int
) -> tuple[Any, ...]:
    channel_of = np.arange(columns, dtype=np.int64) // places
    least = 0 if positions is None else 1  # of what is kept of a sparse tensor, nothing is zero
    most = max(middle, levels - 1 - middle + least).bit_length()
    return frozen(_NONE if positions is None else positions), channel_of, (middle, least, most)


def encode_codes(
    codes: Array,
    order: Array,
    positions: Array | None,
    columns: int,
    places: int,
    middle: int,
) -> bytes:
    """Write the codes of kept weights.

    Parameters
    ----------
    codes : uint8 array, shape (kept,)
    order : uint8 array, shape (levels,)
        The codes in the order of their values; 2 to 256.
    positions : int64 array, shape (kept,), or None
        None: all elements are kept.
    columns, places : int
        Elements of a row, and of a kernel.
    middle : int
        The rank from which on values are not negative.
    """
    kept, channel_of, numbers = _arguments(positions, columns, places, order.size, middle)
    ranks = np.empty_like(order)
    ranks[order] = np.arange(order.size)
    what = kept, channel_of, codes.astype(np.uint8), frozen(ranks), *numbers
    room = codes.size // 4 + 64
    while True:
        digits, state = np.zeros(room, np.uint32), new_state()
        if _code(state, digits, *what, *_model(), 1) == OK:
            return finish(state, digits)
        room *= 2


def decode_codes(
    payload: bytes | memoryview,
    codes: Array,
    order: Array,
    positions: Array | None,
    columns: int,
    places: int,
    middle: int,
) -> int:
    """Fill ``codes``: the inverse of :func:`encode_codes`; a status, RANGE for what is no code."""
    kept, channel_of, numbers = _arguments(positions, columns, places, order.size, middle)
    digits = digits_of(payload)
    state = new_state(digits)
    status = _code(state, digits, kept, channel_of, codes, frozen(order), *numbers, *_model())
    if status == OK and not (len(payload) % 4 == 0 and ended(state, digits)):
        status = TRAILING
    return int(status)
