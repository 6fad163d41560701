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
from numpy.typing import NDArray

from espalier.kernels.bitpack import OK, SHORT, TRAILING, Int, bytes_of, frozen, inner, jit
from espalier.kernels.bitpack import RANGE as OUTSIDE
from espalier.kernels.magnitude_model import (
    CHANNEL,
    LONG,
    NEAR,
    NODES,
    SECOND,
    SIGNS,
    STEPS,
    fallen,
    inlined,
    learnt,
    moved,
    new_model,
    predicted,
    quantized,
    risen,
    signed_step,
)
from espalier.kernels.range_coder import (
    AT,
    CODE,
    RANGE,
    carry,
    ended,
    finish,
    started,
)

Array = NDArray[Any]

_DIGITS = 16
"""No element takes so many digits: 18 decisions of at most 11 bits."""
_SHIFT, _FULL, _ONE = np.uint64(32), np.uint64(1 << 32), np.uint64(1)
_NONE = np.zeros(0, np.int64)


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
    counters[i] = learnt(counter, bit)
    return left, low, at


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
    s, t, u, p = predicted(x, y, z, a, b, c)
    left, low, at = _coded(left, low, at, digits, bit, p)
    error = 6 * ((bit << 16) - p)
    weights[0, node], weights[1, node] = moved(a, s, error), moved(b, t, error)
    weights[2, node] = moved(c, u, error)
    counters[i], counters[j], counters[k] = learnt(x, bit), learnt(y, bit), learnt(z, bit)
    return left, low, at


@inner
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
        by_recent = quantized(recent >> 6)
        contexts = (
            np.uint64(by_recent * NODES),
            np.uint64(CHANNEL + quantized(of_channel[np.uint64(channel)] >> 3) * NODES),
            np.uint64(NEAR + (quantized(above) * STEPS + quantized(near)) * NODES),
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
                i = np.uint64(LONG + by_recent * 16 + bits)
                left, low, at = _plain(left, low, at, digits, more, plain, i)
            if not more:
                break
            bits += 1
        for shift in range(bits - 2, -1, -1):
            first = shift == bits - 2
            i = np.uint64(SECOND + bits if first else size >> (shift + 1))
            left, low, at = _plain(left, low, at, digits, (size >> shift) & 1, plain, i)
        if size:
            beside = place == before + 1 and column and channel_of[column - 1] == channel
            i = np.uint64(SIGNS + (signed_step(last) if beside else np.int64(8)))
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
    return bit, bound if one else left - bound, code if one else code - bound, learnt(counter, bit)


@inlined
def _joined(code: Int, digit: Int) -> Int:
    return (code << _SHIFT) | np.uint64(digit)


@inner
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
    of_column = np.full(columns, 16, np.int32)
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
        above = np.int64(of_column[column])
        by_recent = quantized(recent >> 6)
        i = np.uint64(by_recent * NODES)
        j = np.uint64(CHANNEL + quantized(of_channel[channel] >> 3) * NODES)
        k = np.uint64(NEAR + (quantized(above) * STEPS + quantized(near)) * NODES)
        size, bits, more = np.int64(0), least, True
        if least == 0:
            x, y, z = np.int64(counters[i]), np.int64(counters[j]), np.int64(counters[k])
            s, t, u, p = predicted(x, y, z, a, b, c)
            bound = (left >> np.uint64(16)) * np.uint64(p)
            if code < bound:
                left, error, bits = bound, 6 * ((1 << 16) - p), np.int64(1)
                x, y, z = risen(x), risen(y), risen(z)
            else:
                left, code, error, more = left - bound, code - bound, -6 * p, False
                x, y, z = fallen(x), fallen(y), fallen(z)
            a, b, c = moved(a, s, error), moved(b, t, error), moved(c, u, error)
            counters[i], counters[j], counters[k] = x, y, z
            if left < _FULL:
                code, left = _joined(code, digits[np.uint64(at)]), left << _SHIFT
                at += 1
        if more:
            size = np.int64(1)
            if most > 1:
                i, j, k = i + _ONE, j + _ONE, k + _ONE
                x, y, z = np.int64(counters[i]), np.int64(counters[j]), np.int64(counters[k])
                s, t, u, p = predicted(x, y, z, d, e, f)
                bound = (left >> np.uint64(16)) * np.uint64(p)
                if code < bound:
                    left, error, bits = bound, 6 * ((1 << 16) - p), np.int64(2)
                    x, y, z = risen(x), risen(y), risen(z)
                else:
                    left, code, error = left - bound, code - bound, -6 * p
                    x, y, z = fallen(x), fallen(y), fallen(z)
                if left < _FULL:
                    code, left = _joined(code, digits[np.uint64(at)]), left << _SHIFT
                    at += 1
                d, e, f = moved(d, s, error), moved(e, t, error), moved(f, u, error)
                counters[i], counters[j], counters[k] = x, y, z
            if bits == NODES:
                while bits < most:
                    i = np.uint64(LONG + by_recent * 16 + bits)
                    bit, left, code, plain[i] = _decided(left, code, np.int64(plain[i]))
                    if left < _FULL:
                        code, left = _joined(code, digits[np.uint64(at)]), left << _SHIFT
                        at += 1
                    if not bit:
                        break
                    bits += 1
                i = np.uint64(SECOND + bits)
                for _ in range(bits - 1):
                    bit, left, code, plain[i] = _decided(left, code, np.int64(plain[i]))
                    if left < _FULL:
                        code, left = _joined(code, digits[np.uint64(at)]), left << _SHIFT
                        at += 1
                    size = 2 * size + bit
                    i = np.uint64(size)
            beside = place == before + 1 and column and channel_of[column - _ONE] == channel
            i = np.uint64(SIGNS + (signed_step(last) if beside else np.int64(8)))
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


@inner
def _numbers(columns: Int, places: Int, levels: Int, middle: Int, sparse: bool) -> Any:
    """The channel of each column, and the numbers of bits that a size begins and ends with."""
    least = np.int64(sparse)  # of what is kept of a sparse tensor, nothing is zero
    largest, most = max(middle, levels - 1 - middle + least), np.int64(0)
    while largest >> most:
        most += 1
    return np.arange(columns) // places, least, most


@jit
def read_codes(
    body: Array,
    codes: Array,
    order: Array,
    positions: Array,
    columns: Int,
    places: Int,
    middle: Int,
) -> Int:
    """:func:`decode_codes` in a kernel; no ``positions``: all elements are kept."""
    channel_of, least, most = _numbers(columns, places, order.size, middle, positions.size > 0)
    state, digits = started(body, np.int64(_DIGITS))
    models = new_model()
    status = _read(state, digits, positions, channel_of, codes, order, middle, least, most, *models)
    whole = body.size & 3 == 0 and ended(state, digits[: digits.size - _DIGITS])
    return TRAILING if status == OK and not whole else status


@jit
def _write_codes(
    digits: Array,
    codes: Array,
    ranks: Array,
    positions: Array,
    columns: Int,
    places: Int,
    middle: Int,
) -> Array:
    """Digits of ``codes``: the state after them, or none where there is no room for them."""
    channel_of, least, most = _numbers(columns, places, ranks.size, middle, positions.size > 0)
    models = new_model()
    state = np.zeros(3, np.uint64)
    state[RANGE] = ~np.uint64(0)
    status = _write(
        state, digits, positions, channel_of, codes, ranks, middle, least, most, *models
    )
    return state if status == OK else np.zeros(0, np.uint64)


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
    ranks = np.empty_like(order)
    ranks[order] = np.arange(order.size)
    what = frozen(codes.astype(np.uint8)), frozen(ranks), _frozen_positions(positions)
    room = codes.size // 4 + 64
    while True:
        digits = np.zeros(room, np.uint32)
        state = _write_codes(digits, *what, columns, places, middle)
        if state.size:
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
    kept = _frozen_positions(positions)
    return int(read_codes(bytes_of(payload), codes, frozen(order), kept, columns, places, middle))


def _frozen_positions(positions: Array | None) -> Array:
    return frozen(_NONE if positions is None else positions)
