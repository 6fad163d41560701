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
_SHIFT, _FULL, _ONE = np.uint64(32), np.uint64(1 << 32), np.uint64(1)

_NONE = np.zeros(0, np.int64)
_BOUNDS = [2 * ((4 + i % 4) << i // 4) - 8 for i in range(1, STEPS)]
_STEP = frozen(np.searchsorted(_BOUNDS, np.arange(_BOUNDS[-1] + 1), "right").astype(np.int32))
"""A mean in parts of 16, quantized: four steps to each doubling of it and a half."""

_SQUASH, _STRETCH = (
    frozen(t.astype(dtype)) for t, dtype in zip(logistic(), (np.uint16, np.int16), strict=True)
)  # small, to stay in the fastest cache
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
def _risen(counter: Int) -> Int:
    """:func:`_learnt` of a one: the probability is never too low then."""
    q, seen = counter >> 10, counter & 1023
    q += (((1 << 16) - q) * np.int64(_RATES[np.uint64(seen)])) >> 16
    return q << 10 | (seen + np.int64(seen < LIMIT))


@inlined
def _fallen(counter: Int) -> Int:
    return _learnt(counter, np.int64(0))


@inlined
def _coded(left: Int, low: Int, at: Int, digits: Array, bit: Int, p: Int) -> tuple[Int, Int, Int]:
    """Write a decision: the coder's range, low and place after it."""
    bound = (left >> np.uint64(16)) * np.uint64(p)
    if bit:
        left = bound
    else:
        low += bound
        left -= bound
        if low < bound:
            carry(digits, at)
    if left < _FULL:
        digits[at] = np.uint32(low >> _SHIFT)
        at += 1
        low <<= _SHIFT
        left <<= _SHIFT
    return left, low, at


@inlined
def _plain(
    left: Int, low: Int, at: Int, digits: Array, bit: Int, counters: Array, i: Int
) -> tuple[Int, Int, Int]:
    """Write a decision by one counter."""
    counter = np.int64(counters[i])
    left, low, at = _coded(left, low, at, digits, bit, counter >> 10)
    counters[i] = _learnt(counter, bit)
    return left, low, at


@inlined
def _predicted(x: Int, y: Int, z: Int, a: Int, b: Int, c: Int) -> tuple[Int, Int, Int, Int]:
    """Of three counters and their weights, the stretched probabilities and the mixed one."""
    s = np.int64(_STRETCH[np.uint64(x >> 14)])
    t = np.int64(_STRETCH[np.uint64(y >> 14)])
    u = np.int64(_STRETCH[np.uint64(z >> 14)])
    logit = min(max((a * s + b * t + c * u) >> 16, np.int64(-TOP)), np.int64(TOP))
    return s, t, u, np.int64(_SQUASH[np.uint64(logit + TOP)])


@inlined
def _moved(weight: Int, stretched: Int, error: Int) -> Int:
    return weight + ((stretched * error + np.int64(1 << 17)) >> 18)


@inlined
def _mixed(
    left: Int,
    low: Int,
    at: Int,
    digits: Array,
    bit: Int,
    contexts: tuple[Int, Int, Int],
    node: Int,
    counters: Array,
    weights: Array,
) -> tuple[Int, Int, Int]:
    """Write a decision by three counters, written out: a loop over them takes twice the time."""
    i, j, k = contexts[0] + node, contexts[1] + node, contexts[2] + node
    x, y, z = np.int64(counters[i]), np.int64(counters[j]), np.int64(counters[k])
    a, b, c = weights[0, node], weights[1, node], weights[2, node]
    s, t, u, p = _predicted(x, y, z, a, b, c)
    left, low, at = _coded(left, low, at, digits, bit, p)
    error = 6 * ((bit << 16) - p)
    weights[0, node], weights[1, node] = _moved(a, s, error), _moved(b, t, error)
    weights[2, node] = _moved(c, u, error)
    counters[i], counters[j], counters[k] = _learnt(x, bit), _learnt(y, bit), _learnt(z, bit)
    return left, low, at


@jit
def _write(
    state: Array,
    digits: Array,
    positions: Array,
    channel_of: Array,
    codes: Array,
    ranks: Array,
    middle: Int,
    least: Int,
    most: Int,
    counters: Array,
    weights: Array,
    plain: Array,
) -> Int:
    """Write ``codes``; no ``positions``: all elements are kept. ``ranks``: of each code."""
    left, low, at = state[RANGE], state[CODE], np.int64(state[AT])
    columns = channel_of.size
    of_column = np.full(columns, 16, np.int64)
    of_channel = np.full(channel_of[-1] + 1, 128, np.int64)
    recent, near, start = np.int64(1024), np.int64(0), np.int64(0)
    before, last = np.int64(-1), np.int64(0)
    for n in range(codes.size):
        place = positions[n] if positions.size else np.int64(n)
        if place >= start + columns:
            start = place // columns * columns
        if at + _DIGITS > digits.size:
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
        signed = np.int64(ranks[np.uint64(codes[n])]) - middle
        signed += least if signed >= 0 else np.int64(0)
        size, bits = abs(signed), least
        while bits < most:
            more = np.int64(size >> bits != 0)
            if bits < NODES:
                node = np.uint64(bits)
                left, low, at = _mixed(
                    left, low, at, digits, more, contexts, node, counters, weights
                )
            else:
                i = np.uint64(_LONG + by_recent * 16 + bits)
                left, low, at = _plain(left, low, at, digits, more, plain, i)
            if not more:
                break
            bits += 1
        for shift in range(bits - 2, -1, -1):
            first = shift == bits - 2
            i = np.uint64(_SECOND + bits if first else size >> (shift + 1))
            left, low, at = _plain(left, low, at, digits, (size >> shift) & 1, plain, i)
        if size:
            beside = place == before + 1 and column and channel_of[column - 1] == channel
            i = np.uint64(_SIGNS + (_signed(last) if beside else np.int64(8)))
            left, low, at = _plain(left, low, at, digits, np.int64(signed < 0), plain, i)
        before, last = place, signed
        recent += (1024 * size - recent) >> 5
        of_channel[channel] += (128 * size - of_channel[channel]) >> 4
        of_column[column] = above + ((16 * size - above) >> 3)
        near += (16 * size - near) >> 1
    state[RANGE], state[CODE], state[AT] = left, low, np.uint64(at)
    return OK


@inlined
def _decided(left: Int, code: Int, counter: Int) -> tuple[Int, Int, Int, Int]:
    """Read a decision by one counter: the bit, range, code, and the counter after it."""
    bound = (left >> np.uint64(16)) * np.uint64(counter >> 10)
    one = code < bound
    bit = np.int64(one)
    return bit, bound if one else left - bound, code if one else code - bound, _learnt(counter, bit)


@inlined
def _joined(code: Int, digit: Int) -> Int:
    return (code << _SHIFT) | np.uint64(digit)


@jit
def _read(
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
) -> Int:
    """Fill ``codes``; ``order``: of each rank. ``_DIGITS`` zeros follow the last of the digits.

    No array is handed to another function: numba would count its users anew at each decision, which
    takes as long as the decision. A mixed decision is a branch, so that what follows it need not
    wait until its probability is known; signs and low bits cannot be foreseen, and are none.
    """
    left, code, at = state[RANGE], state[CODE], np.int64(state[AT])
    columns = channel_of.size
    of_column = np.full(columns, 16, np.int64)
    of_channel = np.full(channel_of[-1] + 1, 128, np.int64)
    recent, near, start = np.int64(1024), np.int64(0), np.int64(0)
    before, last = np.int64(-1), np.int64(0)
    a, b, c = weights[0, 0], weights[1, 0], weights[2, 0]
    d, e, f = weights[0, 1], weights[1, 1], weights[2, 1]
    for n in range(codes.size):
        place = positions[n] if positions.size else np.int64(n)
        if place >= start + columns:
            start = place // columns * columns
        if at > digits.size - _DIGITS + 1:
            return SHORT
        column = np.uint64(place - start)
        channel = np.uint64(channel_of[column])
        above = of_column[column]
        by_recent = _quantized(recent >> 6)
        i = np.uint64(by_recent * NODES)
        j = np.uint64(_CHANNEL + _quantized(of_channel[channel] >> 3) * NODES)
        k = np.uint64(_NEAR + (_quantized(above) * STEPS + _quantized(near)) * NODES)
        size, bits, more = np.int64(0), least, True
        if least == 0:
            x, y, z = np.int64(counters[i]), np.int64(counters[j]), np.int64(counters[k])
            s, t, u, p = _predicted(x, y, z, a, b, c)
            bound = (left >> np.uint64(16)) * np.uint64(p)
            if code < bound:
                left, error, bits = bound, 6 * ((1 << 16) - p), np.int64(1)
                x, y, z = _risen(x), _risen(y), _risen(z)
            else:
                left, code, error, more = left - bound, code - bound, -6 * p, False
                x, y, z = _fallen(x), _fallen(y), _fallen(z)
            a, b, c = _moved(a, s, error), _moved(b, t, error), _moved(c, u, error)
            counters[i], counters[j], counters[k] = x, y, z
            if left < _FULL:
                code, left = _joined(code, digits[np.uint64(at)]), left << _SHIFT
                at += 1
        if more:
            size = np.int64(1)
            if most > 1:
                i, j, k = i + _ONE, j + _ONE, k + _ONE
                x, y, z = np.int64(counters[i]), np.int64(counters[j]), np.int64(counters[k])
                s, t, u, p = _predicted(x, y, z, d, e, f)
                bound = (left >> np.uint64(16)) * np.uint64(p)
                if code < bound:
                    left, error, bits = bound, 6 * ((1 << 16) - p), np.int64(2)
                    x, y, z = _risen(x), _risen(y), _risen(z)
                else:
                    left, code, error = left - bound, code - bound, -6 * p
                    x, y, z = _fallen(x), _fallen(y), _fallen(z)
                if left < _FULL:
                    code, left = _joined(code, digits[np.uint64(at)]), left << _SHIFT
                    at += 1
                d, e, f = _moved(d, s, error), _moved(e, t, error), _moved(f, u, error)
                counters[i], counters[j], counters[k] = x, y, z
            if bits == NODES:
                while bits < most:
                    i = np.uint64(_LONG + by_recent * 16 + bits)
                    bit, left, code, plain[i] = _decided(left, code, np.int64(plain[i]))
                    if left < _FULL:
                        code, left = _joined(code, digits[np.uint64(at)]), left << _SHIFT
                        at += 1
                    if not bit:
                        break
                    bits += 1
                i = np.uint64(_SECOND + bits)
                for _ in range(bits - 1):
                    bit, left, code, plain[i] = _decided(left, code, np.int64(plain[i]))
                    if left < _FULL:
                        code, left = _joined(code, digits[np.uint64(at)]), left << _SHIFT
                        at += 1
                    size = 2 * size + bit
                    i = np.uint64(size)
            beside = place == before + 1 and column and channel_of[column - _ONE] == channel
            i = np.uint64(_SIGNS + (_signed(last) if beside else np.int64(8)))
            negative, left, code, plain[i] = _decided(left, code, np.int64(plain[i]))
            if left < _FULL:
                code, left = _joined(code, digits[np.uint64(at)]), left << _SHIFT
                at += 1
            last = (size ^ -negative) + negative
        else:
            last = np.int64(0)
        rank = middle + last - (least if last > 0 else np.int64(0))
        if rank < 0 or rank >= order.size:
            return OUTSIDE
        codes[n] = order[np.uint64(rank)]
        before = place
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
        if _write(state, digits, *what, *_model()) == OK:
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
    padded = np.concatenate((digits, np.zeros(_DIGITS, np.uint32)))
    status = _read(state, padded, kept, channel_of, codes, frozen(order), *numbers, *_model())
    if status == OK and not (len(payload) % 4 == 0 and ended(state, digits)):
        status = TRAILING
    return int(status)
