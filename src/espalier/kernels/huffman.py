"""Huffman coding: the two inner loops, for a code from :mod:`espalier.kernels.prefix_code`.

A stream of n symbols is split into S = ``substreams(n)`` runs of consecutive symbols, coded apart:
1 for a small n, so that a tiny layer pays nothing, otherwise 8 for each 2**20 symbols begun. Eight
runs decoded in turn hide the latency of the table look-up behind each other; further blocks can be
handed to further threads, and change no byte.

Code words are written least significant bit first with their bits reversed, so that the decoder's
table is indexed by the low bits of an unaligned 64-bit load.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.bitpack import (
    OK,
    SHORT,
    SLACK,
    TRAILING,
    Int,
    frozen,
    inner,
    jit,
    load64,
    peek,
    store64,
)
from espalier.kernels.prefix_code import (
    code_words,
    decode_table,
    fill_code_words,
    fill_decode_table,
)

Array = NDArray[Any]

LANES = 8
"""Runs of a block, decoded in turn by one thread."""
BLOCK = 1 << 20
"""Symbols of a block at most."""
SLACK_BITS, SLACK_SHARE = 8, 1 << 14
"""Bits by which a payload may differ from those announced, and of how many bits one more."""
SPLIT_FROM = 1 << 14
"""Number of symbols from which a stream is split at all."""


def substreams(n: int) -> int:
    """S, the number of runs that a stream of ``n`` symbols is split into."""
    return 1 if n < SPLIT_FROM else LANES * -(-n // BLOCK)


_substreams = inner(substreams)


def run_starts(n: int) -> Array:
    """Where each run starts, and ``n``: run j has n // S symbols, and one more if j < n mod S."""
    s = substreams(n)
    j = np.arange(s + 1, dtype=np.int64)
    return j * (n // s) + np.minimum(j, n % s)


# ---------------------------------------------------------------- encoding


@inner
def _encode_run(symbols: Array, start: Int, stop: Int, codes: Array, out: Array, byte: Int) -> Int:
    """Write one run from byte ``byte`` of ``out`` on; returns the byte after it."""
    acc = np.uint64(0)
    filled = np.uint64(0)
    low = np.uint64(31)
    shift = np.uint64(5)
    i = start
    # Three code words of at most 16 bits and 7 bits left over fit in 64. They are joined to each
    # other before they are joined to the accumulator, which keeps its chain of dependences short.
    while i + 3 <= stop:
        a = np.uint64(codes[symbols[i]])
        b = np.uint64(codes[symbols[i + 1]])
        c = np.uint64(codes[symbols[i + 2]])
        i += 3
        la = a & low
        lab = la + (b & low)
        joined = (a >> shift) | ((b >> shift) << la) | ((c >> shift) << lab)
        acc |= joined << filled
        filled += lab + (c & low)
        store64(out, byte, acc)
        byte += np.int64(filled >> np.uint64(3))
        acc >>= filled & np.uint64(56)
        filled &= np.uint64(7)
    while i < stop:
        a = np.uint64(codes[symbols[i]])
        i += 1
        acc |= (a >> shift) << filled
        filled += a & low
        store64(out, byte, acc)
        byte += np.int64(filled >> np.uint64(3))
        acc >>= filled & np.uint64(56)
        filled &= np.uint64(7)
    return byte + np.int64((filled + np.uint64(7)) >> np.uint64(3))


@jit
def word_bits(counts: Array, lengths: Array) -> Int:
    """Bits of the code words of symbols that occur ``counts`` times."""
    bits = np.int64(0)
    for s in range(min(counts.size, lengths.size)):
        bits += np.int64(counts[s]) * np.int64(lengths[s])
    return bits


@jit
def payload_bits(counts: Array, lengths: Array) -> Int:
    """Bits of a payload: each run but the last has its size, and ends with half a byte, say."""
    words = word_bits(counts, lengths)
    runs = _substreams(counts.sum()) if words else np.int64(1)
    size, left = np.int64(1), words // (8 * runs)
    while left > 127:
        left >>= 7
        size += 1
    return words + (8 * size + 4) * (runs - 1)


@jit
def encode_runs(symbols: Array, lengths: Array, bits: Int) -> tuple[Array, Array]:
    """:func:`encode`, but that the bytes are followed by others."""
    n, runs = symbols.size, _substreams(symbols.size)
    words = np.zeros(lengths.size, np.uint32)
    fill_code_words(lengths, words)
    codes = np.empty(lengths.size, np.uint32)
    for s in range(lengths.size):
        codes[s] = words[s] << np.uint32(5) | np.uint32(lengths[s])
    out = np.empty((bits + 7) // 8 + runs + SLACK, np.uint8)
    ends = np.empty(runs, np.int64)
    start = byte = np.int64(0)
    for j in range(runs):
        stop = start + n // runs + np.int64(j < n % runs)
        byte = _encode_run(symbols, start, stop, codes, out, byte)
        ends[j], start = byte, stop
    return out, ends


def encode(symbols: Array, lengths: Array, bits: int) -> tuple[Array, Array]:
    """Write the code words of ``symbols``, run after run, each run from a byte of its own on.

    Parameters
    ----------
    symbols : uint8 or uint16 array, shape (n,)
        Each less than the alphabet, and of length > 0.
    lengths : uint8 array, shape (alphabet,)
    bits : int
        Sum of the code lengths of the symbols, which sizes the output.

    Returns
    -------
    data : uint8 array
    ends : int64 array, shape (S,)
        The byte after each run.
    """
    out, ends = encode_runs(frozen(symbols), frozen(lengths), bits)
    return out[: ends[-1]], ends


def encode_reference(symbols: list[int], lengths: Array) -> tuple[bytes, list[int]]:
    """:func:`encode` in plain Python."""
    words = code_words(lengths).tolist()
    starts = run_starts(len(symbols)).tolist()
    data = b""
    ends: list[int] = []
    for start, stop in pairwise(starts):
        word = bits = 0
        for s in symbols[start:stop]:
            word |= words[s] << bits
            bits += int(lengths[s])
        data += word.to_bytes((bits + 7) // 8, "little")
        ends.append(len(data))
    return data, ends


# ---------------------------------------------------------------- decoding


@inner
def _symbols(buffer: Array, bit: Int, table: Array, out: Array, i: Int, stop: Int) -> Int:
    """Symbols ``i`` to ``stop`` of a run, one by one; the bit after them, or -1 past the end."""
    mask = np.uint64(table.size - 1)
    limit = np.int64(8) * buffer.size
    while i < stop and bit < limit:
        entry = table[peek(buffer, bit) & mask]
        out[i] = entry >> 8
        bit += np.int64(entry & 255)
        i += 1
    return bit if i == stop else np.int64(-1)


@inner
def _four(buffer: Array, bit: Int, table: Array, mask: Int, out: Array, i: Int) -> Int:
    """Four symbols from one load, 4 * 14 + 7 <= 64; returns the bit after them.

    Indices are unsigned, since numba would otherwise ask of each whether it counts from the end.
    """
    word = load64(buffer, bit >> 3) >> np.uint64(bit & 7)
    low = np.uint64(255)
    shift = np.uint64(8)
    entry = np.uint64(table[word & mask])
    out[np.uint64(i)] = entry >> shift
    used = entry & low
    word >>= used
    entry = np.uint64(table[word & mask])
    out[np.uint64(i + 1)] = entry >> shift
    length = entry & low
    used += length
    word >>= length
    entry = np.uint64(table[word & mask])
    out[np.uint64(i + 2)] = entry >> shift
    length = entry & low
    used += length
    word >>= length
    entry = np.uint64(table[word & mask])
    out[np.uint64(i + 3)] = entry >> shift
    return bit + np.int64(used + (entry & low))


@inner
def _lanes(buffer: Array, bits: Array, starts: Array, table: Array, out: Array, steps: Int) -> None:
    """``4 * steps`` symbols of each of 8 runs, in turn, from ``bits`` on, which is moved along.

    The caller has made sure that no load can pass the end of the buffer.
    """
    mask = np.uint64(table.size - 1)
    b0, b1, b2, b3 = bits[0], bits[1], bits[2], bits[3]
    b4, b5, b6, b7 = bits[4], bits[5], bits[6], bits[7]
    s0, s1, s2, s3 = starts[0], starts[1], starts[2], starts[3]
    s4, s5, s6, s7 = starts[4], starts[5], starts[6], starts[7]
    for i in range(0, 4 * steps, 4):
        b0 = _four(buffer, b0, table, mask, out, s0 + i)
        b1 = _four(buffer, b1, table, mask, out, s1 + i)
        b2 = _four(buffer, b2, table, mask, out, s2 + i)
        b3 = _four(buffer, b3, table, mask, out, s3 + i)
        b4 = _four(buffer, b4, table, mask, out, s4 + i)
        b5 = _four(buffer, b5, table, mask, out, s5 + i)
        b6 = _four(buffer, b6, table, mask, out, s6 + i)
        b7 = _four(buffer, b7, table, mask, out, s7 + i)
    bits[0], bits[1], bits[2], bits[3] = b0, b1, b2, b3
    bits[4], bits[5], bits[6], bits[7] = b4, b5, b6, b7


@jit
def _block(
    buffer: Array, bits: Array, starts: Array, stops: Array, table: Array, out: Array, most: Int
) -> None:
    """As much of 8 runs as can be decoded with whole loads; moves ``bits`` and ``starts`` along.

    ``most``: longest code word. The steps that are safe whatever the bits say are taken without a
    check; then the ends are looked at anew. Each round covers a fixed share of what is left.
    """
    safe = np.int64(8) * (np.int64(buffer.size) - 8)
    while True:
        steps = out.size
        for j in range(LANES):
            steps = min(steps, (stops[j] - starts[j]) >> 2, (safe - bits[j]) // (4 * most))
        if steps <= 0:
            return
        _lanes(buffer, bits, starts, table, out, steps)
        for j in range(LANES):
            starts[j] += 4 * steps


@jit
def _finish(
    buffer: Array, bits: Array, ends: Array, at: Array, stops: Array, table: Array, out: Array
) -> Int:
    """The rest of all runs: run j has symbols at[j] to stops[j] left, from bit bits[j] on."""
    for j in range(ends.size):
        bit = _symbols(buffer, bits[j], table, out, at[j], stops[j])
        if bit < 0 or bit > 8 * ends[j]:
            return SHORT
        if bit <= 8 * (ends[j] - 1):
            return TRAILING
        if bit & 7 and buffer[ends[j] - 1] >> (bit & 7):
            return TRAILING
    return OK


@inner
def decode_run(buffer: Array, lengths: Array, most: Int, out: Array) -> Int:
    """The symbols of a lone run, all of ``buffer``, into ``out``: a status.

    ``lengths`` are those of a complete code of at most 256 symbols; ``most``, the greatest of them,
    is at most 14.
    """
    words = np.zeros(lengths.size, np.uint32)
    fill_code_words(lengths, words)
    table = np.empty(np.int64(1) << most, np.uint16)
    fill_decode_table(lengths, words, table)
    mask = np.uint64(table.size - 1)
    safe = np.int64(8) * (buffer.size - 8)
    bit = i = np.int64(0)
    while True:
        steps = min((out.size - i) >> 2, (safe - bit) // (4 * most))
        if steps <= 0:
            break
        for _ in range(steps):
            bit = _four(buffer, bit, table, mask, out, i)
            i += 4
    bit = _symbols(buffer, bit, table, out, i, out.size)
    if bit < 0 or bit > 8 * buffer.size:
        return SHORT
    if bit <= 8 * (buffer.size - 1) or (bit & 7 and buffer[buffer.size - 1] >> (bit & 7)):
        return TRAILING
    return OK


def decode(buffer: Array, n: int, ends: Array, lengths: Array) -> tuple[Array, int]:
    """Read ``n`` symbols: the inverse of :func:`encode`, and a status.

    Parameters
    ----------
    buffer : uint8 array
    n : int
        At most ``8 * buffer.size``, since every symbol takes a bit at least.
    ends : int64 array, shape (S,)
        The byte after each run; rising, the last one ``buffer.size``.
    lengths : uint8 array, shape (alphabet,)
        A complete code: Kraft's sum is 1.
    """
    out = np.empty(n, np.uint16 if lengths.size > 256 else np.uint8)
    bits = 8 * np.concatenate((np.zeros(1, np.int64), ends[:-1]))
    starts = run_starts(n)
    at, stops = starts[:-1].copy(), starts[1:]
    most = int(lengths.max())
    data, table = frozen(buffer), decode_table(lengths)
    if most <= 14:  # not called for a lone run: a process of short streams need not compile it
        for j in range(0, ends.size - LANES + 1, LANES):
            k = j + LANES
            _block(data, bits[j:k], at[j:k], stops[j:k], table, out, most)
    return out, _finish(data, bits, ends, at, stops, table, out)


def decode_reference(buffer: bytes, n: int, ends: list[int], lengths: Array) -> list[int]:
    """:func:`decode` in plain Python, for a stream that is known to be whole."""
    words = code_words(lengths).tolist()
    by_code = {(int(ln), words[s]): s for s, ln in enumerate(lengths) if ln}
    starts = run_starts(n).tolist()
    symbols: list[int] = []
    begin = 0
    for end, (start, stop) in zip(ends, pairwise(starts), strict=True):
        word = int.from_bytes(buffer[begin:end], "little")
        for _ in range(stop - start):
            length = 1
            while (length, word & ((1 << length) - 1)) not in by_code:
                length += 1
            symbols.append(by_code[length, word & ((1 << length) - 1)])
            word >>= length
        begin = end
    return symbols
