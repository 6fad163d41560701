"""Prefix codes: the best lengths under a limit, canonical code words, the decoder's table.

Code words go least significant bit first with their bits reversed, so that the table is indexed by
the low bits of what lies ahead in the stream.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.bitpack import OK, SHORT, Int, inner, jit, peek, put_bits

Array = NDArray[Any]

MAX_LENGTH = 16
"""Longest code word, in bits, that a table may hold."""

# ---------------------------------------------------------------- code lengths


@jit
def _package_merge(weights: Array, limit: Int, lengths: Array) -> None:
    n = weights.size
    width = 2 * n
    is_leaf = np.zeros((limit, width), np.bool_)
    sizes = np.zeros(limit, np.int64)
    previous = np.empty(width, np.int64)
    current = np.empty(width, np.int64)
    count = 0
    for level in range(limit):
        packages = count // 2
        leaf = 0
        package = 0
        m = 0
        while leaf < n or package < packages:
            take_leaf = package >= packages
            if leaf < n and package < packages:
                merged = previous[2 * package] + previous[2 * package + 1]
                take_leaf = weights[leaf] <= merged
            if take_leaf:
                current[m] = weights[leaf]
                is_leaf[level, m] = True
                leaf += 1
            else:
                current[m] = previous[2 * package] + previous[2 * package + 1]
                package += 1
            m += 1
        sizes[level] = m
        count = m
        previous, current = current, previous
    take = 2 * n - 2
    for level in range(limit - 1, -1, -1):
        leaves = 0
        for i in range(take):
            if is_leaf[level, i]:
                leaves += 1
        for i in range(leaves):
            lengths[i] += 1
        take = 2 * (take - leaves)


@inner
def fill_lengths(counts: Array, limit: Int, lengths: Array) -> None:
    """:func:`code_lengths` of a small alphabet, of which two symbols at least occur."""
    rising, order = np.empty(counts.size, np.int64), np.empty(counts.size, np.int64)
    n = 0
    for s in range(counts.size):
        if counts[s]:
            at = n
            while at > 0 and rising[at - 1] > counts[s]:
                rising[at], order[at] = rising[at - 1], order[at - 1]
                at -= 1
            rising[at], order[at] = counts[s], s
            n += 1
    found = np.zeros(n, np.uint8)
    _package_merge(rising[:n], limit, found)
    for i in range(n):
        lengths[order[i]] = found[i]


def code_lengths(counts: Array, limit: int) -> Array:
    """Lengths of the best prefix code with no code word longer than ``limit`` bits.

    Minimises sum of counts * lengths subject to sum of 2**-length = 1 and length <= limit, by
    package-merge. Symbols of equal count are taken in rising order, so the result is unique.

    Parameters
    ----------
    counts : integer array, shape (alphabet,)
        How often each symbol occurs; 0 leaves it out.
    limit : int
        At least log2 of the number of symbols that occur, at most 16.

    Returns
    -------
    uint8 array, shape (alphabet,)
        0 for a symbol that does not occur. A lone symbol has length 0 too: it takes no bits.

    Examples
    --------
    >>> code_lengths(np.array([5, 1, 0, 2, 8]), 12).tolist()
    [2, 3, 0, 3, 1]

    References
    ----------
    Larmore and Hirschberg 1990, "A fast algorithm for optimal length-limited Huffman codes".
    """
    used = np.flatnonzero(counts)
    lengths = np.zeros(counts.size, np.uint8)
    if used.size < 2:
        return lengths
    order = used[np.argsort(counts[used], kind="stable")]
    found = np.zeros(used.size, np.uint8)
    _package_merge(counts[order].astype(np.int64), limit, found)
    lengths[order] = found
    return lengths


def code_lengths_reference(counts: list[int], limit: int) -> list[int]:
    """:func:`code_lengths` in plain Python: packages are lists of the symbols in them."""
    leaves = sorted((c, [s]) for s, c in enumerate(counts) if c)
    lengths = [0] * len(counts)
    if len(leaves) < 2:
        return lengths
    merged: list[tuple[int, list[int]]] = []
    for _ in range(limit):
        pairs = zip(merged[0::2], merged[1::2], strict=False)
        packages = [(a[0] + b[0], a[1] + b[1]) for a, b in pairs]
        merged = sorted(leaves + packages, key=lambda item: item[0])  # stable: leaves first
    for _, symbols in merged[: 2 * len(leaves) - 2]:
        for s in symbols:
            lengths[s] += 1
    return lengths


# ---------------------------------------------------------------- code words and tables


@jit
def fill_code_words(lengths: Array, words: Array) -> None:
    totals = np.zeros(MAX_LENGTH + 2, np.int64)
    for s in range(lengths.size):
        totals[lengths[s] + 1] += 1
    totals[1] = 0
    following = np.zeros(MAX_LENGTH + 2, np.int64)
    for i in range(1, MAX_LENGTH + 1):
        following[i] = (following[i - 1] + totals[i]) << 1
    for s in range(lengths.size):
        length = np.int64(lengths[s])
        if length:
            word = following[length]
            following[length] += 1
            reverse = np.int64(0)
            for _ in range(length):
                reverse = (reverse << 1) | (word & 1)
                word >>= 1
            words[s] = reverse


def code_words(lengths: Array) -> Array:
    """Canonical code words, bits reversed: shorter ones first, then by symbol, counting up.

    The code words of RFC 1951, section 3.2.2. ``lengths`` must satisfy Kraft's equality.

    Returns
    -------
    uint32 array, shape (alphabet,)

    Examples
    --------
    >>> [f"{w:b}" for w in code_words(np.array([2, 3, 0, 3, 1], np.uint8))]  # 10, 110, -, 111, 0
    ['1', '11', '0', '111', '0']
    """
    words = np.zeros(lengths.size, np.uint32)
    fill_code_words(lengths, words)
    return words


@jit
def fill_decode_table(lengths: Array, words: Array, table: Array) -> None:
    for s in range(lengths.size):
        length = np.int64(lengths[s])
        if length:
            entry = (np.uint32(s) << np.uint32(8)) | np.uint32(length)
            for index in range(np.int64(words[s]), table.size, np.int64(1) << length):
                table[index] = entry


def decode_table(lengths: Array) -> Array:
    """The look-up table of a complete code: indexed by the next bits, symbol << 8 | length.

    Returns
    -------
    array, shape (2**max(lengths),)
        uint16 for an alphabet of at most 256 symbols, else uint32.
    """
    wide = lengths.size > 256
    table = np.zeros(1 << int(lengths.max()), np.uint32 if wide else np.uint16)
    fill_decode_table(lengths, code_words(lengths), table)
    return table


# ---------------------------------------------------------------- lengths as steps

BAD_LENGTH = 4
"""A length that no code word has, or a run of absent symbols at the first or the last symbol."""
LONG_RUN = 5
"""A run of absent symbols whose length has more than 17 bits."""
BAD_RUN = 6
"""More absent symbols than are left."""


@inner
def first_guess(span: Int) -> Int:
    """The length that the first one is a step from: the bits of ``span``, from 1 to 16."""
    guess = np.int64(1)
    while span >> guess and guess < MAX_LENGTH:
        guess += 1
    return guess


@inner
def put_lengths(lengths: Array, out: Array) -> Int:
    """Write lengths, of which the first and the last are not 0; returns the number of bits.

    ``out`` is of zeros; an empty one only counts them.
    """
    bit, absent = np.int64(0), np.int64(0)
    previous = first_guess(lengths.size - 1)
    for i in range(lengths.size):
        length = np.int64(lengths[i])
        if length == 0:
            absent += 1
            continue
        if absent:
            width = np.int64(0)
            while absent >> (width + 1):
                width += 1
            bit = put_bits(out, bit, np.int64(7), 3)
            bit = put_bits(out, bit + width, np.int64(1), 1)
            bit = put_bits(out, bit, absent - (np.int64(1) << width), width)
            absent = np.int64(0)
        step = length - previous
        if step == 0:
            bit = put_bits(out, bit, np.int64(0), 1)
        elif abs(step) == 1:
            bit = put_bits(out, bit, np.int64(1 if step > 0 else 5), 3)
        else:
            bit = put_bits(out, bit, np.int64(3), 3)
            bit = put_bits(out, bit, length - 1, 4)
        previous = length
    return bit


@jit
def written_lengths(lengths: Array) -> Array:
    """The bits of :func:`put_lengths`, padded with zeros to a whole byte."""
    out = np.zeros((put_lengths(lengths, np.zeros(0, np.uint8)) + 7) // 8, np.uint8)
    put_lengths(lengths, out)
    return out


def write_lengths_reference(lengths: list[int]) -> bytes:
    """:func:`written_lengths` in plain Python."""
    text, absent = "", 0
    previous = min(max((len(lengths) - 1).bit_length(), 1), MAX_LENGTH)
    for length in lengths:
        if length == 0:
            absent += 1
            continue
        if absent:
            # Elias' gamma code: as many zeros as there are bits after the leading one, then the
            # number, its leading one first, so that the reader knows the width by then.
            text += "111" + "0" * (absent.bit_length() - 1) + "1" + f"{absent:b}"[:0:-1]
            absent = 0
        step = length - previous
        if abs(step) > 1:
            text += "110" + f"{length - 1:04b}"[::-1]
        else:
            text += ("0", "100", "101")[step]
        previous = length
    return int(text[::-1], 2).to_bytes((len(text) + 7) // 8, "little")


@jit
def read_lengths(
    data: Array, bit: Int, first: Int, last: Int, lengths: Array
) -> tuple[Int, Int, Int, Int]:
    """Lengths of ``first`` to ``last``, in the prefix code of :mod:`espalier.entropy.lengths`.

    Parameters
    ----------
    data : uint8 array
    bit : int
        Where they begin.
    lengths : uint8 array, written to

    Returns
    -------
    status : int
    bit : int
        The first one not read.
    symbol, value : int
        Where it failed, and at what.
    """
    one = np.uint64(1)
    end = 8 * data.size
    symbol, previous = np.int64(first), first_guess(last - first)
    while symbol <= last:
        word = peek(data, bit)
        absent = False
        length = np.int64(previous)
        if not word & one:
            bit += 1
        elif not (word >> one) & one:
            length += 1 - 2 * np.int64((word >> np.uint64(2)) & one)
            bit += 3
        elif not (word >> np.uint64(2)) & one:
            length = np.int64((word >> np.uint64(3)) & np.uint64(15)) + 1
            bit += 7
        else:
            absent = True
            bit += 3
        if bit > end:
            return SHORT, bit, symbol, length
        if absent and symbol != first and symbol != last:
            word >>= np.uint64(3)
            zeros = np.int64(0)
            while not (word >> np.uint64(zeros)) & one:
                zeros += 1
                if bit + zeros >= end:
                    return SHORT, bit, symbol, zeros
                if zeros > 16:
                    return LONG_RUN, bit, symbol, zeros
            low = (word >> np.uint64(zeros + 1)) & ((one << np.uint64(zeros)) - one)
            run = (np.int64(1) << zeros) | np.int64(low)
            bit += 2 * zeros + 1
            if bit > end:
                return SHORT, bit, symbol, run
            if run > last - symbol:
                return BAD_RUN, bit, symbol, run
            symbol += run
            continue
        if absent or not 1 <= length <= MAX_LENGTH:
            return BAD_LENGTH, bit, symbol, -1 if absent else length
        lengths[symbol] = length
        previous = length
        symbol += 1
    return OK, bit, symbol, np.int64(0)


def read_lengths_reference(bits: list[int], symbols: int, previous: int) -> list[int]:
    """:func:`read_lengths` in plain Python, for bits that are known to be sound."""
    left = iter(bits)

    def field(width: int) -> int:
        return sum(next(left) << i for i in range(width))

    lengths: list[int] = []
    while len(lengths) < symbols:
        if not field(1):
            lengths.append(previous)
        elif not field(1):
            lengths.append(previous - 1 if field(1) else previous + 1)
        elif not field(1):
            lengths.append(field(4) + 1)
        else:
            zeros = 0
            while not field(1):
                zeros += 1
            lengths += [0] * (1 << zeros | field(zeros))
            continue
        previous = lengths[-1]
    return lengths
