"""Adaptive binary range coding: one decision at a time, each by a probability that learns.

A payload is a number v, the digits of a fraction in base 2**32. Of the numbers that are left,
``range`` from ``low`` on, a decision of probability p / 2**16 that its bit is 1 takes the first
floor(range / 2**16) p if it is, the others if not. Where fewer than 2**32 are left, the next digit
is fixed. At the end one digit more fixes v: the least that is not below low. A reader knows
both, and can tell that no digit was cut off or added.

A counter is a probability and the number n of decisions that it has seen, at most ``LIMIT``. A
decision moves it by 1 / (n + 2) of the way: the estimate of Krichevsky and Trofimov 1981, until n
stays at its limit.

A symbol is written as the bits of its number, the highest first, each with the counter of the bits
before it. A plain Python reference stands beside the kernels and agrees with them byte for byte.

References
----------
Martin 1979 (range coding); Wiegand and others 2003 (adaptive binary coding, as in DeepCABAC).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.bitpack import Int, bytes_of, frozen, inner, jit

Array = NDArray[Any]

LEAST = 32
"""Least probability of a bit, in parts of 2**16."""
HALF = 1 << 15
LIMIT = 1023

_ALL = (1 << 64) - 1
_DIGIT = np.uint64(32)
_LOW_DIGIT = np.uint64(0xFFFFFFFF)

RATES = frozen(np.array([(1 << 16) // (n + 2) for n in range(LIMIT + 1)], np.int64))
"""How far a counter moves after n decisions, in parts of 2**16."""

RANGE, CODE, AT = 0, 1, 2
"""Fields of a coder's state, a uint64 array; what it reads or writes is ``digits[AT]``. To encode,
``CODE`` holds low, to decode, v less low."""


def new_state() -> Array:
    """An encoder at its start."""
    return np.array([_ALL, 0, 0], np.uint64)


@jit
def started(body: Array, slack: Int) -> tuple[Array, Array]:
    """A decoder at its start: its state, and the whole digits of ``body`` and ``slack`` zeros."""
    size = body.size >> 2
    digits = np.zeros(size + slack, np.uint32)
    for i in range(4 * size):
        digits[i >> 2] = (digits[i >> 2] << np.uint32(8)) | np.uint32(body[i])
    state = np.zeros(3, np.uint64)
    state[RANGE], state[AT] = np.uint64(_ALL), np.uint64(2)
    for i in range(2):
        state[CODE] = (state[CODE] << _DIGIT) | np.uint64(digits[i] if i < size else 0)
    return state, digits


@jit
def carry(digits: Array, at: Int) -> None:
    """Add 1 to the digits before ``at``."""
    at -= 1
    while at >= 0:
        digits[at] = np.uint32(np.uint64(digits[at]) + np.uint64(1) & _LOW_DIGIT)
        if digits[at]:
            return
        at -= 1


@jit
def put_bit(state: Array, digits: Array, bit: Int, p: Int) -> None:
    """Encode a decision. The caller has seen that ``digits`` has room for one more."""
    bound = (state[RANGE] >> np.uint64(16)) * np.uint64(p)
    if bit:
        state[RANGE] = bound
    else:
        low = state[CODE] + bound
        if low < bound:
            carry(digits, np.int64(state[AT]))
        state[CODE] = low
        state[RANGE] -= bound
    if state[RANGE] >> _DIGIT == np.uint64(0):
        digits[np.int64(state[AT])] = np.uint32(state[CODE] >> _DIGIT)
        state[AT] += np.uint64(1)
        state[CODE] <<= _DIGIT
        state[RANGE] <<= _DIGIT


@jit
def get_bit(state: Array, digits: Array, p: Int) -> Int:
    """Decode a decision; digits past the end are 0."""
    bound = (state[RANGE] >> np.uint64(16)) * np.uint64(p)
    bit = np.int64(state[CODE] < bound)
    if bit:
        state[RANGE] = bound
    else:
        state[CODE] -= bound
        state[RANGE] -= bound
    if state[RANGE] >> _DIGIT == np.uint64(0):
        at = np.int64(state[AT])
        digit = np.uint64(digits[at]) if at < digits.size else np.uint64(0)
        state[AT] += np.uint64(1)
        state[CODE] = (state[CODE] << _DIGIT) | digit
        state[RANGE] <<= _DIGIT
    return bit


def finish(state: Array, digits: Array) -> bytes:
    """The payload of an encoder at its end; ``digits`` has room for one more."""
    at = int(state[AT])
    last = -(-int(state[CODE]) >> 32)
    if last >> 32:
        carry(digits, at)
    digits[at] = last & 0xFFFFFFFF
    return digits[: at + 1].astype(">u4").tobytes()


def digits_of(payload: bytes | memoryview) -> Array:
    """The digits of a payload, uint32; of an odd number of bytes, those that are whole."""
    return np.frombuffer(payload, ">u4", len(payload) // 4).astype(np.uint32)


@jit
def ended(state: Array, digits: Array) -> bool:
    """Whether a decoder at its end has read exactly the ``digits`` that an encoder writes."""
    if np.int64(state[AT]) - 1 != digits.size:
        return False
    window = np.uint64(digits[-1]) << _DIGIT
    low = window - state[CODE]
    return ((low + _LOW_DIGIT) >> _DIGIT) << _DIGIT == window


# ---------------------------------------------------------------- symbols, without a context


@jit
def _encode(symbols: Array, width: Int, chances: Array, counts: Array, digits: Array) -> Array:
    """Digits of all symbols into ``digits``; the state, or an empty one where they do not fit."""
    low, left, at = np.uint64(0), np.uint64(_ALL), np.int64(0)
    for i in range(symbols.size):
        if at + width >= digits.size:
            return np.zeros(0, np.uint64)
        symbol = np.int64(symbols[i])
        node = np.int64(1)
        for shift in range(width - 1, -1, -1):
            bit = (symbol >> shift) & 1
            p = chances[node]
            bound = (left >> np.uint64(16)) * np.uint64(p)
            if bit:
                left = bound
            else:
                low += bound
                left -= bound
                if low < bound:
                    carry(digits, at)
            if left >> _DIGIT == np.uint64(0):
                digits[at] = np.uint32(low >> _DIGIT)
                at += 1
                low <<= _DIGIT
                left <<= _DIGIT
            n = counts[node]
            p += (((bit << 16) - p) * RATES[n]) >> 16
            chances[node] = min(max(p, LEAST), (1 << 16) - LEAST)
            counts[node] = n + (n < LIMIT)
            node = 2 * node + bit
    state = np.zeros(3, np.uint64)
    state[RANGE], state[CODE], state[AT] = left, low, np.uint64(at)
    return state


@jit
def _decode(
    state: Array, digits: Array, width: Int, chances: Array, counts: Array, out: Array, i: Int
) -> Int:
    """Symbols ``i`` on into ``out``, until it or the digits are used up; the number of symbols."""
    left, code, at = state[RANGE], state[CODE], np.int64(state[AT])
    while i < out.size and at <= digits.size + 1:
        node = np.int64(1)
        for _ in range(width):
            p = chances[node]
            bound = (left >> np.uint64(16)) * np.uint64(p)
            one = code < bound
            bit = np.int64(one)
            left = bound if one else left - bound
            code = code if one else code - bound
            if left >> _DIGIT == np.uint64(0):
                digit = np.uint64(digits[at]) if at < digits.size else np.uint64(0)
                at += 1
                code = (code << _DIGIT) | digit
                left <<= _DIGIT
            n = counts[node]
            p += (((bit << 16) - p) * RATES[n]) >> 16
            chances[node] = min(max(p, LEAST), (1 << 16) - LEAST)
            counts[node] = n + (n < LIMIT)
            node = 2 * node + bit
        out[i] = node - (np.int64(1) << width)
        i += 1
    state[RANGE], state[CODE], state[AT] = left, code, np.uint64(at)
    return i


def encode(symbols: Array, width: int) -> bytes:
    """Encode symbols below 2**width, each bit by the counter of the bits before it.

    Parameters
    ----------
    symbols : uint8 or uint16 array, shape (n,)
    width : int
        0 to 16.
    """
    room = symbols.size * width // 32 + 64
    while True:
        digits = np.zeros(room + width + 1, np.uint32)
        chances, counts = np.full(1 << width, HALF, np.int64), np.zeros(1 << width, np.int64)
        state = _encode(frozen(symbols), width, chances, counts, digits)
        if state.size:
            return finish(state, digits)
        room *= 2


def decode(payload: bytes | memoryview, n: int, width: int, dtype: Any) -> tuple[Array, bool]:
    """Read ``n`` symbols: the inverse of :func:`encode`, and whether it was exactly one of them.

    No more memory is taken than some symbols for each byte, until more of them have come up.
    """
    state, digits = started(bytes_of(payload), 0)
    chances, counts = np.full(1 << width, HALF, np.int64), np.zeros(1 << width, np.int64)
    out = np.empty(min(n, 64 * len(payload) + 4096), dtype)
    found = int(_decode(state, digits, width, chances, counts, out, 0))
    while found == out.size < n:
        out = np.concatenate((out, np.empty(min(n - out.size, 3 * out.size), dtype)))
        found = int(_decode(state, digits, width, chances, counts, out, found))
    return out, found == n and len(payload) % 4 == 0 and bool(ended(state, digits))


@inner
def read_values(body: Array, alphabet: Int, values: Array, out: Array) -> bool:
    """In a kernel, :func:`decode` symbols of a small alphabet, and look them up in ``values``."""
    width = np.int64(0)
    while (alphabet - 1) >> width:
        width += 1
    if body.size & 3 or not 0 < width <= 8:
        return False
    state, digits = started(body, np.int64(0))
    chances, counts = np.full(1 << width, HALF, np.int64), np.zeros(1 << width, np.int64)
    symbols = np.empty(out.size, np.uint8)
    found = _decode(state, digits, width, chances, counts, symbols, np.int64(0))
    if found != out.size or not ended(state, digits):
        return False
    for i in range(out.size):
        if symbols[i] >= alphabet:
            return False
        out[i] = values[np.uint64(symbols[i])]
    return True


def encode_reference(symbols: list[int], width: int) -> bytes:
    """:func:`encode` in plain Python."""
    low, left, size = 0, _ALL, 64
    chances, counts = [HALF] * (1 << width), [0] * (1 << width)
    for symbol in symbols:
        node = 1
        for shift in reversed(range(width)):
            bit = symbol >> shift & 1
            bound = (left >> 16) * chances[node]
            low, left = (low, bound) if bit else (low + bound, left - bound)
            if left < 1 << 32:
                low, left, size = low << 32, left << 32, size + 32
            move = ((bit << 16) - chances[node]) * int(RATES[counts[node]]) >> 16
            chances[node] = min(max(chances[node] + move, LEAST), (1 << 16) - LEAST)
            counts[node] = min(counts[node] + 1, LIMIT)
            node = 2 * node + bit
    return (-(-low >> 32)).to_bytes(size // 8 - 4, "big")


def decode_reference(payload: bytes, n: int, width: int) -> list[int]:
    """:func:`decode` in plain Python, for a payload that is known to be whole."""
    digits = iter(digits_of(payload).tolist())
    code = next(digits, 0) << 32 | next(digits, 0)
    left = _ALL
    chances, counts = [HALF] * (1 << width), [0] * (1 << width)
    symbols: list[int] = []
    for _ in range(n):
        node = 1
        for _ in range(width):
            bound = (left >> 16) * chances[node]
            bit = int(code < bound)
            code, left = (code, bound) if bit else (code - bound, left - bound)
            if left < 1 << 32:
                code, left = code << 32 | next(digits, 0), left << 32
            move = ((bit << 16) - chances[node]) * int(RATES[counts[node]]) >> 16
            chances[node] = min(max(chances[node] + move, LEAST), (1 << 16) - LEAST)
            counts[node] = min(counts[node] + 1, LIMIT)
            node = 2 * node + bit
        symbols.append(node - (1 << width))
    return symbols
