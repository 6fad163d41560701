"""Which weights are kept, and their codes, each decision in the light of its neighbours.

A decision has seven contexts, each a small number that neighbours make up, with a counter of its
own (:mod:`espalier.kernels.range_coder`). The seven probabilities p_i are mixed as logarithms:

    p = squash(sum_i w_i stretch(p_i)),   stretch(p) = ln(p / (1 - p)),   squash = stretch^-1,

and the weights w_i follow the gradient of the coding cost: w_i += rate (bit - p) stretch(p_i). All
of it is integers: bytes are the same on every machine.

The tensor is seen as rows (first dimension) of channels (second) of places (the others): a filter,
its input channels, its kernel. ``SPEC.md``, section 3.4, gives the contexts.

References
----------
Mahoney 2005, "Adaptive weighing of context models for lossless data compression"; Wiedemann and
others 2020, DeepCABAC (binary decisions with contexts for weights).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from espalier.kernels.bitpack import OK, SHORT, TRAILING, Int, bytes_of, frozen, jit
from espalier.kernels.range_coder import (
    AT,
    HALF,
    LEAST,
    LIMIT,
    RATES,
    ended,
    finish,
    get_bit,
    new_state,
    put_bit,
    started,
)

Array = NDArray[Any]

inlined: Any = njit(inline="always")
"""The decorator of what is inlined: a call with so many arrays costs as much as a decision."""

INPUTS = 7
TOP = 2047
"""Largest logit, in parts of 256."""
WEIGHT = 14000
"""Where a weight begins, in parts of 2**16: seven of them are 1.5."""

_KEPT_CONTEXTS = 1 << 14


@cache
def logistic() -> tuple[Array, Array]:
    """squash: 2**16 / (1 + e**-x) for x = k / 256, at k + 2047; stretch: its inverse, at p >> 4.

    E_0 = 2**60 and E_(k+1) = floor(E_k F / 2**60), where F is the sum over i < 9 of
    floor(2**60 / (i! 256**i)); squash is floor(2**16 E_k / (2**60 + E_k)).
    """
    one = 1 << 60
    factor = sum(one // (_factorial(i) << 8 * i) for i in range(9))
    squash = np.zeros(2 * TOP + 1, np.int64)
    power = one
    for k in range(TOP + 1):
        p = (power << 16) // (one + power)
        squash[TOP + k], squash[TOP - k] = p, (1 << 16) - p
        power = power * factor >> 60
    stretch = np.searchsorted(squash, 16 * np.arange(1 << 12) + 8).clip(0, 2 * TOP) - TOP
    return frozen(squash.clip(LEAST, (1 << 16) - LEAST)), frozen(stretch.astype(np.int64))


def _factorial(n: int) -> int:
    return n * _factorial(n - 1) if n else 1


@inlined
def _decide(
    state: Array,
    digits: Array,
    writing: Int,
    bit: Int,
    contexts: Array,
    counters: Array,
    weights: Array,
    row: Int,
    tables: tuple[Array, Array],
    inputs: Array,
) -> Int:
    """Code one decision and learn from it; ``counters``: probabilities, and how often each met."""
    squash, stretch = tables
    dot = np.int64(0)
    for j in range(INPUTS):
        inputs[j] = stretch[counters[0, contexts[j]] >> 4]
        dot += weights[row, j] * inputs[j]
    logit: Any = min(max(dot >> 16, -TOP), TOP)
    p = squash[logit + TOP]
    if writing:
        put_bit(state, digits, bit, p)
    else:
        bit = get_bit(state, digits, p)
    error = 6 * ((bit << 16) - p)
    for j in range(INPUTS):
        weights[row, j] += (inputs[j] * error + (1 << 17)) >> 18
        at = contexts[j]
        old, seen = np.int64(counters[0, at]), np.int64(counters[1, at])
        new = old + ((((bit << 16) - old) * RATES[seen]) >> 16)
        counters[0, at] = min(max(new, LEAST), (1 << 16) - LEAST)
        counters[1, at] = seen + (seen < LIMIT)
    return bit


@jit
def _share(part: Int, whole: Int, steps: Int) -> Int:
    """Which of ``steps`` equal parts of 0 to 1 the fraction part / whole is in."""
    return ((2 * part + 1) * steps) // (2 * whole + 2)


@jit
def _full(state: Array, digits: Array, writing: Int) -> Int:
    """Whether digits have no room for one more and the last, or have been used up."""
    if writing:
        return np.int64(state[AT]) + 2 > digits.size
    return np.int64(state[AT]) > digits.size + 1


# ---------------------------------------------------------------- which are kept


@jit
def _kept(
    state: Array,
    digits: Array,
    writing: Int,
    mask: Array,
    places: Int,
    counters: Array,
    weights: Array,
    tables: tuple[Array, Array],
) -> Int:
    """Code ``mask``, or fill it; SHORT if the digits end before it does."""
    rows, columns = mask.shape
    s = np.int64(_KEPT_CONTEXTS)
    contexts, inputs = np.zeros(INPUTS, np.uint64), np.zeros(INPUTS, np.int64)
    in_column = np.zeros(columns, np.int64)
    in_channel = np.zeros(columns // places, np.int64)
    for r in range(rows):
        in_row, last = np.int64(0), np.int64(0)
        for channel in range(columns // places):
            if _full(state, digits, writing):
                return SHORT
            in_kernel = np.int64(0)
            of_channel = _share(in_channel[channel], r * places, 12)
            for place in range(places):
                if (place & 63) == 63 and _full(state, digits, writing):
                    return SHORT
                c = channel * places + place
                k = np.int64(min(place, 31))
                here: Any = min(in_kernel, 15)
                of_row = _share(in_row, c, 24)
                of_column = _share(in_column[c], r, 12)
                above = np.int64(0)
                if r > 0:
                    above = 2 * np.int64(mask[r - 1, c])
                    if c + 1 < columns:
                        above += np.int64(mask[r - 1, c + 1])
                if r > 1:
                    above += 4 * np.int64(mask[r - 2, c])
                before = np.int64(mask[r, c - places]) if channel > 0 else np.int64(0)
                contexts[0] = of_column * 32 + k
                contexts[1] = s + of_row * 8 + (last & 7)
                contexts[2] = 2 * s + (last & 1023)
                contexts[3] = 3 * s + of_channel * 32 + of_row
                contexts[4] = 4 * s + ((above * 2 + (last & 1)) * 2 + before) * 32 + k
                contexts[5] = 5 * s + (here * 32 + k) * 16 + of_channel
                contexts[6] = 6 * s + (of_row * 16 + of_column) * 16 + here
                bit = _decide(
                    state,
                    digits,
                    writing,
                    np.int64(mask[r, c]),
                    contexts,
                    counters,
                    weights,
                    0,
                    tables,
                    inputs,
                )
                mask[r, c] = bit
                in_row += bit
                in_kernel += bit
                in_column[c] += bit
                in_channel[channel] += bit
                last = (last << 1 | bit) & 1023
    return OK


# ---------------------------------------------------------------- codes


@jit
def _bits(x: Int) -> Int:
    n = np.int64(0)
    while x:
        x >>= 1
        n += 1
    return n


@jit
def _codes(
    state: Array,
    digits: Array,
    writing: Int,
    mask: Array,
    places: Int,
    ranks: Array,
    width: Int,
    middle: Int,
    counters: Array,
    weights: Array,
    tables: tuple[Array, Array],
) -> Int:
    """Code ``ranks`` (below 2**width) of the kept weights, or fill them."""
    rows, columns = mask.shape
    s = np.int64(32) << width
    contexts, inputs = np.zeros(INPUTS, np.uint64), np.zeros(INPUTS, np.int64)
    above = np.full(columns, -1, np.int64)
    sums, seen = np.zeros(columns // places, np.int64), np.zeros(columns // places, np.int64)
    all_sum, all_seen = np.int64(1) << max(width, 3), np.int64(8)
    last = np.int64(middle)
    t = 0
    for r in range(rows):
        row_sum, row_seen = all_sum * 8 // all_seen, np.int64(8)
        kept = np.int64(0)
        for c in range(columns):
            kept += mask[r, c]
        of_row = _share(kept, columns, 16)
        for channel in range(columns // places):
            in_kernel = np.int64(0)
            for place in range(places):
                in_kernel += mask[r, channel * places + place]
            for place in range(places):
                c = channel * places + place
                if not mask[r, c]:
                    continue
                if _full(state, digits, writing):
                    return SHORT
                near = sums[channel] + all_sum * 4 // all_seen
                a = min((row_sum << 7) // (row_seen << width), 31)
                b = min((near << 7) // ((seen[channel] + 4) << width), 31)
                m = _bits(abs(last - middle))
                u = (above[c] << 4) >> width if above[c] >= 0 else np.int64(16)
                beside = place > 0 and mask[r, c - 1]
                v = (last << 4) >> width if beside else np.int64(16)
                if places == 1:
                    v = min(in_kernel, 15)
                node = np.int64(1)
                rank = np.int64(ranks[t])
                for shift in range(width - 1, -1, -1):
                    contexts[0] = node
                    contexts[1] = s + (a << width) + node
                    contexts[2] = 2 * s + (b << width) + node
                    contexts[3] = 3 * s + (m << width) + node
                    contexts[4] = 4 * s + (u << width) + node
                    contexts[5] = 5 * s + (of_row << width) + node
                    contexts[6] = 6 * s + (v << width) + node
                    bit = _decide(
                        state,
                        digits,
                        writing,
                        (rank >> shift) & 1,
                        contexts,
                        counters,
                        weights,
                        shift,
                        tables,
                        inputs,
                    )
                    node = 2 * node + bit
                rank = node - (np.int64(1) << width)
                ranks[t] = rank
                t += 1
                size = abs(rank - middle)
                row_sum += size
                row_seen += 1
                sums[channel] += size
                seen[channel] += 1
                all_sum += size
                all_seen += 1
                last = rank
                above[c] = rank
    return OK


# ---------------------------------------------------------------- both ways


def _model(contexts: int, sets: int) -> tuple[Array, Array]:
    counters = np.zeros((2, INPUTS * contexts), np.int32)
    counters[0] = HALF
    return counters, np.full((sets, INPUTS), WEIGHT, np.int64)


def _both(kernel: Any, payload: bytes | memoryview | None, room: int, args: Any, model: Any) -> Any:
    """Run a kernel: its payload if there is none yet, else a status."""
    if payload is not None:
        state, digits = started(bytes_of(payload), 0)
        status = kernel(state, digits, 0, *args, *_model(*model), logistic())
        if status == OK and not (len(payload) % 4 == 0 and ended(state, digits)):
            status = TRAILING
        return int(status)
    while True:
        digits, state = np.zeros(room, np.uint32), new_state()
        if kernel(state, digits, 1, *args, *_model(*model), logistic()) == OK:
            return finish(state, digits)
        room *= 2


def encode_kept(mask: Array, places: int) -> bytes:
    """Write which weights are kept.

    Parameters
    ----------
    mask : uint8 array, shape (rows, channels * places)
        0 or 1.
    places : int
        Of a kernel.
    """
    room = mask.size // 32 + 64
    return bytes(_both(_kept, None, room, (mask, places), (_KEPT_CONTEXTS, 1)))


def decode_kept(payload: bytes | memoryview, mask: Array, places: int) -> int:
    """Fill ``mask``: the inverse of :func:`encode_kept`; a status."""
    return int(_both(_kept, payload, 0, (mask, places), (_KEPT_CONTEXTS, 1)))


def encode_codes(mask: Array, places: int, ranks: Array, width: int, middle: int) -> bytes:
    """Write the codes of kept weights.

    Parameters
    ----------
    mask : uint8 array, shape (rows, channels * places)
    places : int
    ranks : uint8 array, shape (kept,)
        Codes in the order of their values, each below 2**width.
    width : int
        1 to 8.
    middle : int
        The rank from which on values are not negative.
    """
    room = ranks.size * width // 32 + 64
    args = mask, places, ranks.copy(), width, middle
    return bytes(_both(_codes, None, room, args, (32 << width, width)))


def decode_codes(
    payload: bytes | memoryview, mask: Array, places: int, ranks: Array, width: int, middle: int
) -> int:
    """Fill ``ranks``: the inverse of :func:`encode_codes`; a status."""
    args = mask, places, ranks, width, middle
    return int(_both(_codes, payload, 0, args, (32 << width, width)))
