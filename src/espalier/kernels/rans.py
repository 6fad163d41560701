"""rANS: a stream of symbols as one large number, and the two inner loops.

With frequencies f_s that sum to M = 2**m and c_s = f_0 + ... + f_(s-1), a symbol s is put on top of
a state x, and taken off again, by

    push:  x -> floor(x / f_s) * M + c_s + x mod f_s
    pop:   s is the symbol with c_s <= x mod M < c_s + f_s;  x -> f_s floor(x / M) + x mod M - c_s

so that x grows by a factor of M / f_s. The last symbol is pushed first. The state is kept below
2**63: words of 32 bits move from its low end to the stream, and back where it falls below 2**31.
While M <= 2**15 this is asked after every second symbol only, which is what makes it fast: two
symbols cannot take more than the 32 bits that are there.

A stream of fewer than ``SPLIT_FROM`` symbols has one state; a longer one has blocks of at most
``BLOCK`` symbols, and each of them eight states that take turns, so that a processor can work on
all at once; they share one stream of words. Blocks can be handed to different threads, and that
changes no byte.

States begin at M, the least from which every symbol makes one grow: all of it is the number, and
next to nothing is lost. Until a state has reached 2**31 for the first time the decoder, for which
that is the end, takes no word for it: by then there are none. Where the eight grow at such
different rates that one would still be below when another has given a word away, they begin at
2**31 instead. The decoder need not know.

References
----------
Duda 2013, arXiv:1311.2540 (the numbers); Giesen 2014, arXiv:1402.3392 (states in turn).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from espalier.kernels.bitpack import (
    OK,
    RANGE,
    SHORT,
    TRAILING,
    Int,
    frozen,
    get_varint,
    inlined,
    jit,
    load64,
    peek,
)
from espalier.kernels.frequencies import FRACTION, fill_frequencies, log2_of
from espalier.kernels.levels import read_levels

Array = NDArray[Any]

LANES = 8
BLOCK = 1 << 20
SPLIT_FROM = 1 << 12

LOW = 1 << 31
"""A state below this takes a word, if it is not in its first steps."""

_SHARE, _START, _INVERSE, _SHIFT = range(4)
"""Columns of :func:`encode_table`."""

_LOW = np.uint64(LOW)
_WORD = np.uint64(32)


def block_starts(n: int) -> Array:
    """Where each of the ceil(n / 2**20) blocks starts, and ``n``; sizes differ by 1 at most."""
    blocks = -(-n // BLOCK)
    j = np.arange(blocks + 1, dtype=np.int64)
    return j * (n // blocks) + np.minimum(j, n % blocks)


def lanes_of(n: int) -> int:
    """States of each block of a stream of ``n`` symbols."""
    return 1 if n < SPLIT_FROM else LANES


def per_word(log: int) -> int:
    """Symbols of a state between two looks at whether it needs a word."""
    return 2 if log <= 15 else 1


@intrinsic
def _high_product_of(typingctx: Any, a: Any, b: Any) -> Any:
    """The high 64 bits of the product of two uint64, for which NumPy has no word."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide = args[0].type.__class__(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        shifted = builder.lshr(product, product.type(64))
        return builder.trunc(shifted, args[0].type)

    return types.uint64(types.uint64, types.uint64), codegen


_high_product: Any = _high_product_of


# ---------------------------------------------------------------- encoding


@jit
def _reciprocals(frequencies: Array, table: Array) -> None:
    for s in range(frequencies.size):
        f = np.uint64(frequencies[s])
        if f == 0:
            continue
        shift = np.uint64(0)
        while np.uint64(1) << shift < f:
            shift += np.uint64(1)
        # Long division of 2**(63 + shift), which has no room in 64 bits.
        quotient = (np.uint64(1) << np.uint64(63)) // f
        rest = (np.uint64(1) << np.uint64(63)) % f
        for _ in range(shift):
            quotient <<= np.uint64(1)
            rest <<= np.uint64(1)
            if rest >= f:
                quotient += np.uint64(1)
                rest -= f
        table[s, _INVERSE] = quotient + np.uint64(rest > 0)
        table[s, _SHIFT] = shift


def encode_table(frequencies: Array) -> Array:
    """What pushing each symbol needs, shape (alphabet, 4), uint64.

    The columns are f, c, r and s, where r and s divide by f without dividing: with
    s = ceil(log2 f) and r = ceil(2**(63 + s) / f), floor(x / f) is floor(x r / 2**(63 + s)) for all
    x below 2**63 (Granlund and Montgomery 1994, theorem 4.2).
    """
    table = np.zeros((frequencies.size, 4), np.uint64)
    table[:, _SHARE] = frequencies
    table[:, _START] = np.cumsum(frequencies) - frequencies
    _reciprocals(frozen(frequencies), table)
    return table


@inlined
def _push(x: Int, s: Int, table: Array, log: Int) -> Int:
    quotient = _high_product(x << np.uint64(1), table[s, _INVERSE]) >> table[s, _SHIFT]
    rest = x - quotient * table[s, _SHARE]
    return (quotient << log) + table[s, _START] + rest


@inlined
def _push_two(
    x: Int, i: Int, symbols: Array, table: Array, log: Int, words: Array, at: Int
) -> tuple[Int, Int]:
    """Symbols i + 8 and i on top of one of 8 states; a word that is none will be overwritten."""
    i = np.uint64(i)
    second, first = np.uint64(symbols[i + np.uint64(LANES)]), np.uint64(symbols[i])
    room = np.uint64(63) - log - log
    full = x >> room >= table[second, _SHARE] * table[first, _SHARE]
    words[at - np.uint64(1)] = np.uint32(x & np.uint64(0xFFFFFFFF))
    x = x >> _WORD if full else x
    return _push(_push(x, second, table, log), first, table, log), at - np.uint64(full)


@jit
def _encode_turns(
    symbols: Array, table: Array, log: Int, x: Array, words: Array, at: Int, turns: Int
) -> Int:
    """The first ``turns`` times two symbols of each of 8 states, from the last to the first."""
    log = np.uint64(log)
    at = np.uint64(at)
    a, b, c, d, e, f, g, h = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
    for turn in range(turns):
        i = 16 * (turns - 1 - turn)
        h, at = _push_two(h, i + 7, symbols, table, log, words, at)
        g, at = _push_two(g, i + 6, symbols, table, log, words, at)
        f, at = _push_two(f, i + 5, symbols, table, log, words, at)
        e, at = _push_two(e, i + 4, symbols, table, log, words, at)
        d, at = _push_two(d, i + 3, symbols, table, log, words, at)
        c, at = _push_two(c, i + 2, symbols, table, log, words, at)
        b, at = _push_two(b, i + 1, symbols, table, log, words, at)
        a, at = _push_two(a, i, symbols, table, log, words, at)
    x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7] = a, b, c, d, e, f, g, h
    return np.int64(at)


@jit
def _encode(symbols: Array, table: Array, log: Int, states: Array, words: Array) -> Int:
    """Push all symbols, the last one first; words from the end of ``words``: the first one's place.

    ``states``: where they begin, and where they end. ``words`` has room for one more than there
    will be. -1 if a state is still below 2**31 when there are words already.
    """
    n = symbols.size
    lanes = states.size
    group = 2 if log <= 15 else 1
    turns = n // (2 * LANES) if lanes == LANES and group == 2 else 0
    room = np.uint64(63) - np.uint64(log * group)
    at = words.size
    lane = (n - 1) % lanes
    turn = (n - 1) // lanes
    i = n - 1
    while True:
        while i >= 2 * LANES * turns:
            s = np.int64(symbols[i])
            x = states[lane]
            if turn % group == group - 1:
                share = table[s, _SHARE]
                if group == 2:
                    share *= table[np.int64(symbols[i - lanes]), _SHARE]
                if x >> room >= share:
                    at -= 1
                    words[at] = np.uint32(x & np.uint64(0xFFFFFFFF))
                    x >>= _WORD
                elif x < _LOW and at < words.size:
                    return np.int64(-1)
            states[lane] = _push(x, s, table, np.uint64(log))
            i -= 1
            lane -= 1
            if lane < 0:
                lane = lanes - 1
                turn -= 1
        if turns == 0 or states.min() >= _LOW:
            break
        turns -= 1
    if turns:
        at = _encode_turns(symbols, table, log, states, words, at, turns)
    return np.int64(at)


def encode(symbols: Array, frequencies: Array, log: int) -> list[tuple[Array, Array]]:
    """Encode symbols: of each block the last states (uint64) and the words (uint32).

    Parameters
    ----------
    symbols : uint8 or uint16 array, shape (n,), n > 0
        Each of a frequency > 0.
    frequencies : int64 array, shape (alphabet,)
        Their sum is 2**log, and none is as large.
    log : int
        4 to 17.
    """
    table = frozen(encode_table(frequencies))
    lanes = lanes_of(symbols.size)
    blocks: list[tuple[Array, Array]] = []
    for start, stop in pairwise(block_starts(symbols.size).tolist()):
        words = np.empty((stop - start) * log // 32 + lanes + 1, np.uint32)
        at = -1
        for first in (1 << log, LOW):
            if at < 0:
                states = np.full(lanes, first, np.uint64)
                at = int(_encode(frozen(symbols[start:stop]), table, log, states, words))
        blocks.append((states, words[at:].copy()))
    return blocks


def encode_reference(
    symbols: list[int], frequencies: Array, log: int
) -> list[tuple[list[int], list[int]]]:
    """:func:`encode` in plain Python."""
    blocks = []
    for begin, end in pairwise(block_starts(len(symbols)).tolist()):
        for first in (1 << log, LOW):
            block = _block_reference(symbols[begin:end], frequencies, log, first)
            if block is not None:
                blocks.append(block)
                break
    return blocks


def _block_reference(
    symbols: list[int], frequencies: Array, log: int, first: int
) -> tuple[list[int], list[int]] | None:
    share = frequencies.tolist()
    start = (np.cumsum(frequencies) - frequencies).tolist()
    lanes, group = lanes_of(len(symbols)), per_word(log)
    states = [first] * lanes
    words: list[int] = []
    for i in reversed(range(len(symbols))):
        s, lane = symbols[i], i % lanes
        if i // lanes % group == group - 1:
            both = share[s] * (share[symbols[i - lanes]] if group == 2 else 1)
            if states[lane] >= both << (63 - group * log):
                words.append(states[lane] & 0xFFFFFFFF)
                states[lane] >>= 32
            elif states[lane] < LOW and words:
                return None
        quotient, rest = divmod(states[lane], share[s])
        states[lane] = (quotient << log) + start[s] + rest
    return states, words[::-1]


# ---------------------------------------------------------------- decoding


@jit
def _pop(x: Int, i: Int, slots: Array, entries: Array, log: Int, out: Array) -> Int:
    slot = x & ((np.uint64(1) << log) - np.uint64(1))
    s = slots[slot]
    out[np.uint64(i)] = s
    entry = entries[s]
    share = entry & np.uint64(0xFFFFFFFF)
    return share * (x >> log) + slot - (entry >> _WORD)


@jit
def _refill(x: Int, words: Array, at: Int) -> tuple[Int, Int]:
    low = x < _LOW
    word = np.uint64(words[at])
    return ((x << _WORD) | word) if low else x, at + np.uint64(low)


@jit
def _turns(
    words: Array, at: Int, x: Array, slots: Array, entries: Array, log: Int, out: Array, turns: Int
) -> Int:
    """``turns`` times two symbols of each of 8 states, from ``out``'s start on.

    The caller has made sure that there are eight words for each turn.
    """
    log = np.uint64(log)
    at = np.uint64(at)
    a, b, c, d, e, f, g, h = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
    for i in range(0, 16 * turns, 16):
        a = _pop(a, i, slots, entries, log, out)
        b = _pop(b, i + 1, slots, entries, log, out)
        c = _pop(c, i + 2, slots, entries, log, out)
        d = _pop(d, i + 3, slots, entries, log, out)
        e = _pop(e, i + 4, slots, entries, log, out)
        f = _pop(f, i + 5, slots, entries, log, out)
        g = _pop(g, i + 6, slots, entries, log, out)
        h = _pop(h, i + 7, slots, entries, log, out)
        a = _pop(a, i + 8, slots, entries, log, out)
        b = _pop(b, i + 9, slots, entries, log, out)
        c = _pop(c, i + 10, slots, entries, log, out)
        d = _pop(d, i + 11, slots, entries, log, out)
        e = _pop(e, i + 12, slots, entries, log, out)
        f = _pop(f, i + 13, slots, entries, log, out)
        g = _pop(g, i + 14, slots, entries, log, out)
        h = _pop(h, i + 15, slots, entries, log, out)
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


@jit
def _one_by_one(
    words: Array,
    at: Int,
    states: Array,
    slots: Array,
    entries: Array,
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
        x = _pop(x, i, slots, entries, np.uint64(log), out)
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


@jit
def _in_turn(
    words: Array, states: Array, slots: Array, entries: Array, log: Int, out: Array
) -> tuple[Int, Int]:
    """As many symbols of 8 states as can be read without a check: how many, and words read."""
    at = np.int64(0)
    i = np.int64(0)
    while True:
        # Each round covers a fixed share of what is left, whatever the words say.
        turns = min((out.size - i) // (2 * LANES), (words.size - at) // LANES)
        if turns <= 0:
            return i, at
        at = _turns(words, at, states, slots, entries, log, out[i:], turns)
        i += 2 * LANES * turns


@jit
def _block(words: Array, states: Array, slots: Array, entries: Array, log: Int, out: Array) -> Int:
    """Read the symbols of one block into ``out``: a status. States are moved along."""
    i, at = np.int64(0), np.int64(0)
    if states.size == LANES and log <= 15:
        i, at = _in_turn(words, states, slots, entries, log, out)
    at = _one_by_one(words, at, states, slots, entries, log, out, i)
    if at < words.size:
        return TRAILING
    begin = np.uint64(1) << np.uint64(log)
    if states[0] == _LOW:
        begin = _LOW
    for lane in range(states.size):
        if states[lane] != begin:
            return RANGE
    return OK


@jit
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


@jit
def _words(data: Array, at: Int, end: Int) -> Array:
    """The words from ``at`` to ``end``; they may lie at any byte."""
    words = np.empty((end - at) >> 2, np.uint32)
    for i in range(0, words.size - 1, 2):
        pair = load64(data, at + 4 * i)
        words[i], words[i + 1] = np.uint32(pair & np.uint64(0xFFFFFFFF)), np.uint32(pair >> _WORD)
    if words.size & 1:
        words[words.size - 1] = np.uint32(peek(data, 8 * (end - 4)) & np.uint64(0xFFFFFFFF))
    return words


@jit
def _payload(data: Array, at: Int, slots: Array, entries: Array, log: Int, out: Array) -> Int:
    """The symbols of all blocks, from ``at`` to the end of ``data``: a status."""
    n = out.size
    blocks = (n + BLOCK - 1) // BLOCK
    ends = np.empty(blocks, np.int64)
    for block in range(blocks - 1):
        ends[block], at = get_varint(data, at)
        if at < 0 or ends[block] > data.size:
            return SHORT
    states = np.empty(1 if n < SPLIT_FROM else LANES, np.uint64)
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
        status = _block(words, states, slots, entries, log, out[start:stop])
        if status != OK:
            return status
        at, start = end, stop
    return OK


@jit
def decode(
    data: Array, first: Int, span: Int, log: Int, precision: Int, n: Int, none: Array
) -> tuple[Int, Int, Array]:
    """Read levels and payload: where the payload begins, a status, and the symbols.

    Parameters
    ----------
    data : uint8 array
    first, span : int
        The first symbol that occurs, and how far the last one is from it, at least 1.
    log, precision : int
        m and p of :mod:`espalier.kernels.frequencies`.
    n : int
    none : uint8 or uint16 array, shape (0,)
        Of the dtype of the symbols.

    Returns
    -------
    payload : int
        Its first byte; -1 if the status is of the table.
    status : int
    symbols : array, shape (n,)
        Only if the status is OK.
    """
    levels, frequencies = np.zeros(span + 1, np.int64), np.empty(span + 1, np.int64)
    status, payload = read_levels(data, log, precision, levels)
    if status == OK:
        status = fill_frequencies(levels, log, precision, frequencies)
    if status != OK:
        return np.int64(-1), status, none
    # Twice what they can hold: no proof is asked for here, only that memory is paid for.
    least = (np.int64(log) << FRACTION) - log2_of(frequencies.max())
    if n > ((np.int64(16) * (data.size - payload) + 128) << FRACTION) // least:
        return payload, SHORT, none
    slots = np.empty(1 << log, none.dtype)
    entries = np.empty(first + span + 1, np.uint64)
    start = np.int64(0)
    for s in range(span + 1):
        f = frequencies[s]
        entries[first + s] = np.uint64(f) | np.uint64(start) << _WORD
        slots[start : start + f] = first + s
        start += f
    out = np.empty(n, none.dtype)
    return payload, _payload(data, payload, slots, entries, log, out), out


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
