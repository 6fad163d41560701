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

from espalier.kernels.bitpack import Int, frozen, inlined, inner, jit, put_bits
from espalier.kernels.frequencies import symbol_bits

Array = NDArray[Any]

LANES = 8
BLOCK = 1 << 20
SPLIT_FROM = 1 << 12

SLACK_BITS, SLACK_SHARE = 8, 1 << 16
"""Bits by which a payload may differ from those announced, and of how many bits one more."""

STATE_BITS = 6
"""Before each state, its size."""

LOW = 1 << 31
"""A state below this takes a word, if it is not in its first steps."""

_SHARE, _START, _INVERSE, _SHIFT = range(4)
"""Columns of :func:`encode_table`."""

_LOW = np.uint64(LOW)
_WORD = np.uint64(32)


def block_starts(n: int) -> list[int]:
    """Where each of the ceil(n / 2**20) blocks starts, and ``n``; sizes differ by 1 at most."""
    blocks = -(-n // BLOCK)
    return [j * (n // blocks) + min(j, n % blocks) for j in range(blocks + 1)]


def lanes_of(n: int) -> int:
    """States of each block of a stream of ``n`` symbols."""
    return 1 if n < SPLIT_FROM else LANES


lanes_in: Any = inner(lanes_of)
""":func:`lanes_of` in a kernel."""


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
def fill_table(frequencies: Array, table: Array) -> None:
    start = np.uint64(0)
    for s in range(frequencies.size):
        f = np.uint64(frequencies[s])
        table[s, _SHARE], table[s, _START] = f, start
        if f == 0:
            table[s, _INVERSE] = table[s, _SHIFT] = f
            continue
        start += f
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
    table = np.empty((frequencies.size, 4), np.uint64)
    fill_table(frozen(frequencies), table)
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


@inner
def _put_states(states: Array, out: Array) -> Int:
    """States, each its number of bits after the leading one and those bits: bytes written."""
    bit = np.int64(0)
    for lane in range(states.size):
        bits = np.int64(63)
        while not states[lane] >> np.uint64(bits):
            bits -= 1
        bit = put_bits(out, bit, bits, STATE_BITS)
        bit = put_bits(out, bit, np.int64(states[lane] ^ (np.uint64(1) << np.uint64(bits))), bits)
    return (bit + 7) >> 3


@jit
def block(symbols: Array, table: Array, log: Int) -> Array:
    """The bytes of one block: states, then words."""
    lanes = lanes_in(symbols.size)
    states, words = np.empty(lanes, np.uint64), np.empty(0, np.uint32)
    at = np.int64(-1)
    for first in (np.uint64(1) << np.uint64(log), _LOW):
        if at < 0:
            words = np.empty(symbols.size * log // 32 + lanes + 1, np.uint32)
            states[:] = first
            at = _encode(symbols, table, log, states, words)
    out = np.zeros(9 * lanes + 4 * (words.size - at), np.uint8)
    size = _put_states(states, out)
    words = words[at:]
    body = out[size:]
    for i in range(words.size):
        for k in range(4):
            body[4 * i + k] = np.uint8((words[i] >> np.uint32(8 * k)) & np.uint32(255))
    return out[: size + 4 * words.size]


@jit
def payload_bits(counts: Array, frequencies: Array, log: Int, logs: Array) -> Int:
    """Bits of a payload, with states and words; ``logs``: :func:`frequencies.log2_table`."""
    n = counts.sum()
    states = lanes_in(n) * -(-n // BLOCK)
    return symbol_bits(counts, frequencies, log, logs) + states * (log + STATE_BITS)


def encode(symbols: Array, frequencies: Array, log: int) -> list[bytes]:
    """Encode symbols: the bytes of each block.

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
    return [
        block(frozen(symbols[start:stop]), table, log).tobytes()
        for start, stop in pairwise(block_starts(symbols.size))
    ]


def encode_reference(
    symbols: list[int], frequencies: Array, log: int
) -> list[tuple[list[int], list[int]]]:
    """The last states and the words of each block of :func:`encode`, in plain Python."""
    blocks = []
    for begin, end in pairwise(block_starts(len(symbols))):
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


def bytes_reference(states: list[int], words: list[int]) -> bytes:
    """The bytes of a block in plain Python."""
    word = at = 0
    for state in states:
        bits = state.bit_length() - 1
        word |= (bits | (state - (1 << bits)) << STATE_BITS) << at
        at += STATE_BITS + bits
    return word.to_bytes((at + 7) // 8, "little") + b"".join(w.to_bytes(4, "little") for w in words)
