"""Kept positions as the gaps between them: fixed-width with fillers, or tokens and raw bits.

The gap of a kept position is its distance from the one before it, less 1; the first one's, from the
place before the tensor. A plain Python reference stands beside each kernel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.bitpack import (
    OK,
    RANGE,
    SHORT,
    SLACK,
    TRAILING,
    Int,
    frozen,
    jit,
    pack_reference,
    packed_bytes,
    padding_is_zero,
    peek,
    store64,
)

Array = NDArray[Any]

# ---------------------------------------------------------------- gaps with fillers


@jit
def _pack_gaps(positions: Array, width: Int, out: Array) -> None:
    filler = (np.int64(1) << np.int64(width)) - np.int64(1)
    acc = np.uint64(0)
    filled = 0
    byte = 0
    last = np.int64(-1)
    for i in range(positions.size):
        gap = positions[i] - last - 1
        last = positions[i]
        done = False
        while not done:
            done = gap < filler
            field = gap if done else filler
            gap -= field
            acc |= np.uint64(field) << np.uint64(filled)
            filled += width
            store64(out, byte, acc)
            byte += filled >> 3
            acc >>= np.uint64(filled & ~7)
            filled &= 7


@jit
def _unpack_gaps(buffer: Array, width: Int, size: Int, out: Array) -> tuple[Int, Int]:
    """Positions into ``out``; returns (status, bits read)."""
    filler = (np.int64(1) << np.int64(width)) - np.int64(1)
    bits = np.int64(8) * buffer.size
    bit = np.int64(0)
    position = np.int64(-1)
    for i in range(out.size):
        while True:
            if bit + width > bits:
                return SHORT, bit
            field = np.int64(peek(buffer, bit) & np.uint64(filler))
            bit += width
            position += field
            if position >= size:
                return RANGE, bit
            if field != filler:
                break
        position += 1
        if position >= size:
            return RANGE, bit
        out[i] = position
    return OK, bit


def pack_gaps(positions: Array, width: int, entries: int) -> Array:
    """Write the gaps before ``positions`` in fields of ``width`` bits, with fillers.

    A field of all ones says "advance 2**width - 1 places, and no weight stands there": the filler
    zero of Han et al. 2016, section 2, figure 2, without the value that it takes up there. With
    ``width`` 1 the stream is the bitmap of the tensor up to its last nonzero.

    Parameters
    ----------
    positions : int64 array, shape (n,)
        Strictly rising, from 0.
    width : int
        1 to 32.
    entries : int
        Number of fields, fillers included: the sum over gaps g of g // (2**width - 1) + 1.

    Returns
    -------
    uint8 array, shape (ceil(entries * width / 8),)

    Examples
    --------
    >>> pack_gaps(np.array([1, 2, 9]), 2, 5).tolist()  # fields 1, 0, 3, 3, 0
    [241, 0]
    """
    size = packed_bytes(entries, width)
    out = np.zeros(size + SLACK, np.uint8)
    _pack_gaps(frozen(positions), width, out)
    return out[:size]


def unpack_gaps(buffer: Array, n: int, width: int, size: int) -> tuple[Array, int]:
    """Read ``n`` positions below ``size``: the inverse of :func:`pack_gaps`, and a status."""
    if n * width > 8 * buffer.size:
        return np.zeros(0, np.int64), SHORT
    out = np.empty(n, np.int64)
    status, bits = _unpack_gaps(frozen(buffer), width, size, out)
    if status == OK and not padding_is_zero(buffer, bits):
        status = TRAILING
    return out, status


def pack_gaps_reference(positions: Array, width: int) -> bytes:
    """:func:`pack_gaps` in plain Python."""
    filler = (1 << width) - 1
    fields: list[int] = []
    last = -1
    for position in positions.tolist():
        fillers, rest = divmod(position - last - 1, filler)
        fields += [filler] * fillers + [rest]
        last = position
    return pack_reference(np.array(fields, np.uint64), width)


def unpack_gaps_reference(buffer: bytes, n: int, width: int) -> list[int]:
    """:func:`unpack_gaps` in plain Python, for a stream that is known to be whole."""
    filler = (1 << width) - 1
    word = int.from_bytes(buffer, "little")
    positions: list[int] = []
    position = -1
    while len(positions) < n:
        field = word & filler
        word >>= width
        position += field
        if field != filler:
            position += 1
            positions.append(position)
    return positions


# ---------------------------------------------------------------- gaps as tokens and raw bits


@jit
def _log2(x: Int) -> Int:
    n = np.int64(0)
    while x > 1:
        x >>= 1
        n += 1
    return n


@jit
def _split_gaps(positions: Array, direct: Int, top: Int, tokens: Array, raw: Array) -> Int:
    """Tokens into ``tokens``, raw bits into ``raw``; returns the number of raw bits."""
    limit = np.int64(1) << np.int64(direct)
    acc = np.uint64(0)
    filled = 0
    byte = 0
    last = np.int64(-1)
    for i in range(positions.size):
        gap = positions[i] - last - 1
        last = positions[i]
        if gap < limit:
            tokens[i] = gap
            continue
        exponent = _log2(gap)
        low = exponent - top
        tokens[i] = limit + ((exponent - direct) << top) + ((gap >> low) & ((1 << top) - 1))
        acc |= np.uint64(gap & ((np.int64(1) << low) - 1)) << np.uint64(filled)
        filled += low
        store64(raw, byte, acc)
        byte += filled >> 3
        acc >>= np.uint64(filled & ~7)
        filled &= 7
    return 8 * byte + filled


@jit
def _join_gaps(
    tokens: Array, raw: Array, direct: Int, top: Int, size: Int, out: Array
) -> tuple[Int, Int]:
    """Positions into ``out``; returns (status, raw bits read)."""
    limit = np.int64(1) << np.int64(direct)
    bits = np.int64(8) * raw.size
    bit = np.int64(0)
    position = np.int64(-1)
    for i in range(tokens.size):
        gap = np.int64(tokens[i])
        if gap >= limit:
            rest = gap - limit
            low = (rest >> top) + direct - top
            if low > 48:
                return RANGE, bit
            if bit + low > bits:
                return SHORT, bit
            head = (np.int64(1) << np.int64(top)) | (rest & ((np.int64(1) << np.int64(top)) - 1))
            mask = (np.uint64(1) << np.uint64(low)) - np.uint64(1)
            gap = (head << np.int64(low)) | np.int64(peek(raw, bit) & mask)
            bit += low
        position += gap + 1
        if position >= size:
            return RANGE, bit
        out[i] = position
    return OK, bit


def split_gaps(positions: Array, direct: int, top: int, raw_bits: int) -> tuple[Array, Array]:
    """Split the gaps before ``positions`` into small tokens, to be entropy-coded, and raw bits.

    A gap g below 2**direct is its own token. Any other, with e = floor(log2 g), has the token

        2**direct + (e - direct) * 2**top + (the ``top`` bits of g after its leading one)

    and its e - top low bits follow in the raw stream. No gap needs an escape or a filler.

    Parameters
    ----------
    positions : int64 array, shape (n,)
        Strictly rising, from 0.
    direct, top : int
        0 <= top <= direct <= 7.
    raw_bits : int
        The sum of e - top over the gaps that are not direct.

    Returns
    -------
    tokens : uint8 array, shape (n,)
    raw : uint8 array, shape (ceil(raw_bits / 8),)

    Examples
    --------
    >>> tokens, raw = split_gaps(np.array([3, 17]), 2, 0, 3)  # gaps 3 and 13 = 1 101
    >>> tokens.tolist(), raw.tolist()
    ([3, 5], [5])
    """
    size = (raw_bits + 7) // 8
    tokens = np.empty(positions.size, np.uint8)
    raw = np.zeros(size + SLACK, np.uint8)
    _split_gaps(frozen(positions), direct, top, tokens, raw)
    return tokens, raw[:size]


def join_gaps(tokens: Array, raw: Array, direct: int, top: int, size: int) -> tuple[Array, int]:
    """Read positions below ``size``: the inverse of :func:`split_gaps`, and a status."""
    out = np.empty(tokens.size, np.int64)
    status, bits = _join_gaps(frozen(tokens), frozen(raw), direct, top, size, out)
    if status == OK and not padding_is_zero(raw, bits):
        status = TRAILING
    return out, status


def split_gaps_reference(positions: Array, direct: int, top: int) -> tuple[list[int], bytes]:
    """:func:`split_gaps` in plain Python."""
    tokens: list[int] = []
    word = bits = 0
    last = -1
    for position in positions.tolist():
        gap, last = position - last - 1, position
        if gap < 1 << direct:
            tokens.append(gap)
            continue
        exponent = gap.bit_length() - 1
        low = exponent - top
        tokens.append((1 << direct) + ((exponent - direct) << top) + (gap >> low) - (1 << top))
        word |= (gap & ((1 << low) - 1)) << bits
        bits += low
    return tokens, word.to_bytes((bits + 7) // 8, "little")


def join_gaps_reference(tokens: list[int], raw: bytes, direct: int, top: int) -> list[int]:
    """:func:`join_gaps` in plain Python, for a stream that is known to be whole."""
    word = int.from_bytes(raw, "little")
    positions: list[int] = []
    position = -1
    for gap in tokens:
        if gap >= 1 << direct:
            exponent, head = divmod(gap - (1 << direct), 1 << top)
            low = exponent + direct - top
            gap = ((1 << top | head) << low) | (word & ((1 << low) - 1))
            word >>= low
        position += gap + 1
        positions.append(position)
    return positions
