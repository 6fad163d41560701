"""Reading rANS: the inner loop that takes symbols off eight states, and what they stand for.

The numbers, the states and the blocks are those of :mod:`espalier.kernels.rans`. What comes out is
not the symbol itself but what a table has for it, a shared weight for example, so that nobody has
to go through the symbols again.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.bitpack import (
    OK,
    RANGE,
    SHORT,
    TRAILING,
    Int,
    get_varint,
    inner,
    jit,
    load64,
    peek,
)
from espalier.kernels.frequencies import FRACTION, fill_frequencies, log2_of
from espalier.kernels.levels import read_levels
from espalier.kernels.rans import BLOCK, LANES, LOW, lanes_in, per_word

Array = NDArray[Any]
Tables: TypeAlias = tuple[Array, Array, Array]
"""The symbol of each slot; the frequency of each symbol and, in the high word, the sum of those
before it; what each symbol stands for."""

_LOW = np.uint64(LOW)
_WORD = np.uint64(32)


@inner
def _pop(x: Int, i: Int, tables: Tables, log: Int, out: Array) -> Int:
    slots, entries, values = tables
    slot = x & ((np.uint64(1) << log) - np.uint64(1))
    s = np.uint64(slots[slot])
    out[np.uint64(i)] = values[s]
    entry = entries[s]
    share = entry & np.uint64(0xFFFFFFFF)
    return share * (x >> log) + slot - (entry >> _WORD)


@inner
def _refill(x: Int, words: Array, at: Int) -> tuple[Int, Int]:
    low = x < _LOW
    word = np.uint64(words[at])
    return ((x << _WORD) | word) if low else x, at + np.uint64(low)


@inner
def _turns(
    words: Array, at: Int, x: Array, tables: Tables, log: Int, out: Array, turns: Int
) -> Int:
    """``turns`` times two symbols of each of 8 states, from ``out``'s start on.

    The caller has made sure that there are eight words for each turn.
    """
    log = np.uint64(log)
    at = np.uint64(at)
    a, b, c, d, e, f, g, h = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
    for i in range(0, 16 * turns, 16):
        a = _pop(a, i, tables, log, out)
        b = _pop(b, i + 1, tables, log, out)
        c = _pop(c, i + 2, tables, log, out)
        d = _pop(d, i + 3, tables, log, out)
        e = _pop(e, i + 4, tables, log, out)
        f = _pop(f, i + 5, tables, log, out)
        g = _pop(g, i + 6, tables, log, out)
        h = _pop(h, i + 7, tables, log, out)
        a = _pop(a, i + 8, tables, log, out)
        b = _pop(b, i + 9, tables, log, out)
        c = _pop(c, i + 10, tables, log, out)
        d = _pop(d, i + 11, tables, log, out)
        e = _pop(e, i + 12, tables, log, out)
        f = _pop(f, i + 13, tables, log, out)
        g = _pop(g, i + 14, tables, log, out)
        h = _pop(h, i + 15, tables, log, out)
        a, at = _refill(a, words, at)
        b, at = _refill(b, words, at)
        c, at = _refill(c, words, at)
        d, at = _refill(d, words, at)
        e, at = _refill(e, words, at)
        f, at = _refill(f, words, at)
        g, at = _refill(g, words, at)
        h, at = _refill(h, words, at)
    x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7] = a, b, c, d, e, f, g, h
    return np.int64(at)


@inner
def _one_by_one(
    words: Array,
    at: Int,
    states: Array,
    tables: Tables,
    log: Int,
    out: Array,
    i: Int,
) -> Int:
    """Symbols ``i`` on of a block; returns how many words were read."""
    lanes = states.size
    group = 2 if log <= 15 else 1
    lane, turn = i % lanes, i // lanes
    first = states[0] if lanes == 1 else np.uint64(0)  # one state is kept in a register
    while i < out.size:
        x = first if lanes == 1 else states[lane]
        x = _pop(x, i, tables, np.uint64(log), out)
        if turn % group == group - 1 and x < _LOW and at < words.size:
            x = (x << _WORD) | np.uint64(words[at])
            at += 1
        if lanes == 1:
            first = x
        else:
            states[lane] = x
        i += 1
        lane += 1
        if lane == lanes:
            lane = 0
            turn += 1
    if lanes == 1:
        states[0] = first
    return at


@inner
def _in_turn(words: Array, states: Array, tables: Tables, log: Int, out: Array) -> tuple[Int, Int]:
    """As many symbols of 8 states as can be read without a check: how many, and words read."""
    at = np.int64(0)
    i = np.int64(0)
    while True:
        # Each round covers a fixed share of what is left, whatever the words say.
        turns = min((out.size - i) // (2 * LANES), (words.size - at) // LANES)
        if turns <= 0:
            return i, at
        at = _turns(words, at, states, tables, log, out[i:], turns)
        i += 2 * LANES * turns


@inner
def _block(words: Array, states: Array, tables: Tables, log: Int, out: Array) -> Int:
    """Read the symbols of one block into ``out``: a status. States are moved along."""
    i, at = np.int64(0), np.int64(0)
    if states.size == LANES and log <= 15:
        i, at = _in_turn(words, states, tables, log, out)
    at = _one_by_one(words, at, states, tables, log, out, i)
    if at < words.size:
        return TRAILING
    begin = np.uint64(1) << np.uint64(log)
    if states[0] == _LOW:
        begin = _LOW
    for lane in range(states.size):
        if states[lane] != begin:
            return RANGE
    return OK


@inner
def _states(data: Array, at: Int, end: Int, states: Array) -> Int:
    """The states at the start of a block: the byte where its words begin, or -1.

    A state 2**b + x is the field b of 6 bits, then x in b bits.
    """
    bit = 8 * np.int64(at)
    for lane in range(states.size):
        b = np.int64(peek(data, bit) & np.uint64(63))
        if b > 62 or bit + 6 + b > 8 * end:
            return np.int64(-1)
        low = min(b, np.int64(32))
        x = peek(data, bit + 6) & ((np.uint64(1) << np.uint64(low)) - np.uint64(1))
        high = peek(data, bit + 6 + low) & ((np.uint64(1) << np.uint64(b - low)) - np.uint64(1))
        states[lane] = (np.uint64(1) << np.uint64(b)) | x | (high << np.uint64(low))
        bit += 6 + b
    if bit & 7 and data[bit >> 3] >> (bit & 7):
        return np.int64(-1)
    return (bit + 7) >> 3


@inner
def _words(data: Array, at: Int, end: Int) -> Array:
    """The words from ``at`` to ``end``; they may lie at any byte."""
    words = np.empty((end - at) >> 2, np.uint32)
    for i in range(0, words.size - 1, 2):
        pair = load64(data, at + 4 * i)
        words[i], words[i + 1] = np.uint32(pair & np.uint64(0xFFFFFFFF)), np.uint32(pair >> _WORD)
    if words.size & 1:
        words[words.size - 1] = np.uint32(peek(data, 8 * (end - 4)) & np.uint64(0xFFFFFFFF))
    return words


@inner
def read_payload(data: Array, at: Int, tables: Tables, log: Int, out: Array) -> Int:
    """The symbols of all blocks, from ``at`` to the end of ``data``: a status."""
    n = out.size
    blocks = (n + BLOCK - 1) // BLOCK
    ends = np.empty(blocks, np.int64)
    for block in range(blocks - 1):
        ends[block], at = get_varint(data, at)
        if at < 0 or ends[block] > data.size:
            return SHORT
    states = np.empty(lanes_in(n), np.uint64)
    start = np.int64(0)
    for block in range(blocks):
        end = np.int64(data.size) if block == blocks - 1 else at + ends[block]
        if end > data.size:
            return SHORT
        at = _states(data, at, end, states)
        if at < 0 or (end - at) & 3:
            return RANGE
        stop = start + n // blocks + (block < n % blocks)
        words = _words(data, at, end)
        status = _block(words, states, tables, log, out[start:stop])
        if status != OK:
            return status
        at, start = end, stop
    return OK


@inner
def read_table(
    data: Array, first: Int, span: Int, log: Int, precision: Int, n: Int, slots: Array
) -> tuple[Int, Int, Array]:
    """Read levels and fill ``slots``: where the payload begins, a status, and the entries.

    The first byte of the payload is -1 if the status is of the table.
    """
    levels, frequencies = np.zeros(span + 1, np.int64), np.empty(span + 1, np.int64)
    entries = np.empty(first + span + 1, np.uint64)
    status, payload = read_levels(data, log, precision, levels)
    if status == OK:
        status = fill_frequencies(levels, log, precision, frequencies)
    if status != OK:
        return np.int64(-1), status, entries
    # Twice what they can hold: no proof is asked for here, only that memory is paid for.
    most = np.int64(0)
    for f in frequencies:
        most = max(most, f)
    least = (np.int64(log) << FRACTION) - log2_of(most)
    if n > ((np.int64(16) * (data.size - payload) + 128) << FRACTION) // least:
        return payload, SHORT, entries
    start = np.int64(0)
    for s in range(span + 1):
        f = frequencies[s]
        entries[first + s] = np.uint64(f) | np.uint64(start) << _WORD
        slots[start : start + f] = first + s
        start += f
    return payload, OK, entries


@jit
def decode(
    data: Array,
    first: Int,
    span: Int,
    log: Int,
    precision: Int,
    n: Int,
    values: Array,
    slots: Array,
) -> tuple[Int, Int, Array]:
    """Read levels and payload: where the payload begins, a status, and what the symbols stand for.

    Parameters
    ----------
    data : uint8 array
    first, span : int
        The first symbol that occurs, and how far the last one is from it, at least 1.
    log, precision : int
        m and p of :mod:`espalier.kernels.frequencies`.
    n : int
    values : array, shape (more than first + span,)
        What each symbol stands for.
    slots : array, shape (0,)
        Of a dtype that holds every symbol.

    Returns
    -------
    payload : int
        Its first byte; -1 if the status is of the table.
    status : int
    found : array, shape (n,)
        Of the dtype of ``values``. Only if the status is OK.
    """
    slots = np.empty(1 << log, slots.dtype)
    payload, status, entries = read_table(data, first, span, log, precision, n, slots)
    if status != OK:
        return payload, status, values
    out = np.empty(n, values.dtype)
    return payload, read_payload(data, payload, (slots, entries, values), log, out), out


def decode_reference(
    states: list[int], words: list[int], frequencies: Array, log: int, n: int
) -> list[int]:
    """:func:`decode` in plain Python, for a block that is known to be whole."""
    slots = np.repeat(np.arange(frequencies.size), frequencies).tolist()
    start = (np.cumsum(frequencies) - frequencies).tolist()
    group, left = per_word(log), iter(words)
    x = list(states)
    symbols: list[int] = []
    for i in range(n):
        lane = i % len(x)
        slot = x[lane] % (1 << log)
        s = slots[slot]
        symbols.append(s)
        x[lane] = int(frequencies[s]) * (x[lane] >> log) + slot - start[s]
        if i // len(x) % group == group - 1 and x[lane] < LOW:
            word = next(left, None)  # none is left while a state grows for the first time
            x[lane] = x[lane] if word is None else x[lane] << 32 | word
    return symbols
