"""Bits in bytes: unaligned words, fixed-width fields, gaps between kept positions.

Every bit stream of the file is *least significant bit first*: bit ``i`` of a stream is bit ``i % 8``
of byte ``i // 8``, and a field's low bit comes first. A field of up to 57 bits can then be read with
one unaligned little-endian 64-bit load and one shift, with no branch on where it lies.

Decode kernels check every bound and return a status, since a file may be hostile; the callers in
:mod:`espalier.entropy` raise. A plain Python reference (``*_reference``) stands beside each kernel
and agrees with it byte for byte.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

Array = NDArray[Any]

OK = 0
"""The whole stream was decoded, and ended where it should."""
SHORT = 1
"""The stream ends before its last symbol."""
TRAILING = 2
"""Bytes, or padding bits that are not zero, follow the last symbol."""
RANGE = 3
"""A symbol or a position lies outside what the tensor allows."""

SLACK = 8
"""Bytes that an output buffer of a packing kernel has beyond its last one: stores are 8 wide."""


def _word_pointer(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    word = context.get_value_type(types.uint64).as_pointer()
    return builder.bitcast(cgutils.gep_inbounds(builder, data, offset), word)


def _swap(builder: Any, word: Any) -> Any:
    return word if sys.byteorder == "little" else builder.bswap(word)


@intrinsic
def _load64_fast(typingctx: Any, array: Any, offset: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _word_pointer(context, builder, signature.args[0], args[0], args[1])
        return _swap(builder, builder.load(pointer, align=1))

    return types.uint64(array, types.int64), codegen


@intrinsic
def _store64_fast(typingctx: Any, array: Any, offset: Any, word: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _word_pointer(context, builder, signature.args[0], args[0], args[1])
        builder.store(_swap(builder, args[2]), pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, types.uint64), codegen


@njit
def _load64_checked(array: Array, offset: int) -> int:
    word = np.uint64(0)
    for i in range(8):
        word |= np.uint64(array[offset + i]) << np.uint64(8 * i)
    return word


@njit
def _store64_checked(array: Array, offset: int, word: int) -> None:
    for i in range(8):
        array[offset + i] = np.uint8((word >> np.uint64(8 * i)) & np.uint64(255))


# With NUMBA_BOUNDSCHECK=1 the raw loads and stores give way to indexing, so that one run of the
# kernels' tests checks every access.
load64 = _load64_checked if config.BOUNDSCHECK else _load64_fast
"""``load64(array, offset)``: the 8 bytes at ``offset`` of a uint8 array, as a little-endian uint64."""
store64 = _store64_checked if config.BOUNDSCHECK else _store64_fast
"""``store64(array, offset, word)``: write a uint64 as 8 little-endian bytes."""


@njit(cache=True, nogil=True)
def peek(buffer: Array, bit: int) -> int:
    """At least 57 bits of ``buffer`` from ``bit`` on, in the low bits; zeros past its end."""
    byte = bit >> 3
    shift = np.uint64(bit & 7)
    if byte + 8 <= buffer.size:
        return load64(buffer, byte) >> shift
    word = np.uint64(0)
    for i in range(byte, buffer.size):
        word |= np.uint64(buffer[i]) << np.uint64(8 * (i - byte))
    return word >> shift


# ---------------------------------------------------------------- fixed-width fields


@njit(cache=True, nogil=True)
def _pack(symbols: Array, width: int, out: Array) -> None:
    acc = np.uint64(0)
    filled = 0
    byte = 0
    for i in range(symbols.size):
        acc |= np.uint64(symbols[i]) << np.uint64(filled)
        filled += width
        store64(out, byte, acc)
        byte += filled >> 3
        acc >>= np.uint64(filled & ~7)
        filled &= 7


@njit(cache=True, nogil=True)
def _unpack(buffer: Array, width: int, out: Array) -> None:
    mask = (np.uint64(1) << np.uint64(width)) - np.uint64(1)
    bit = 0
    for i in range(out.size):
        out[i] = peek(buffer, bit) & mask
        bit += width


def packed_bytes(n: int, width: int) -> int:
    """Bytes of ``n`` fields of ``width`` bits: ceil(n * width / 8)."""
    return (n * width + 7) // 8


def padding_is_zero(buffer: Array, bits: int) -> bool:
    """Whether the bits of ``buffer`` after the first ``bits`` are all zero, and under 8."""
    if buffer.size != (bits + 7) // 8:
        return False
    return bits % 8 == 0 or int(buffer[-1]) >> (bits % 8) == 0


def pack(symbols: Array, width: int) -> Array:
    """Write each symbol in ``width`` bits, least significant bit first.

    Parameters
    ----------
    symbols : array of unsigned integers, shape (n,)
        Each less than 2**width.
    width : int
        0 to 48.

    Returns
    -------
    uint8 array, shape (ceil(n * width / 8),)
        The last byte is padded with zero bits.

    Examples
    --------
    >>> pack(np.array([1, 2, 3], np.uint8), 4).tolist()
    [33, 3]
    """
    size = packed_bytes(symbols.size, width)
    out = np.zeros(size + SLACK, np.uint8)
    if size:
        _pack(np.ascontiguousarray(symbols), width, out)
    return out[:size]


def unpack(buffer: Array, n: int, width: int, dtype: Any) -> tuple[Array, int]:
    """Read ``n`` fields of ``width`` bits: the inverse of :func:`pack`, and a status."""
    size = packed_bytes(n, width)
    if buffer.size != size:
        return np.zeros(0, dtype), SHORT if buffer.size < size else TRAILING
    if not padding_is_zero(buffer, n * width):
        return np.zeros(0, dtype), TRAILING
    if not size:
        # No bits, so nothing proves that n is honest: a view that takes no memory.
        return np.broadcast_to(np.zeros((), dtype), (n,)), OK
    out = np.empty(n, dtype)
    _unpack(buffer, width, out)
    return out, OK


def pack_reference(symbols: Array, width: int) -> bytes:
    """:func:`pack` in plain Python."""
    word = 0
    for i, symbol in enumerate(symbols.tolist()):
        word |= symbol << (i * width)
    return word.to_bytes(packed_bytes(symbols.size, width), "little")


def unpack_reference(buffer: bytes, n: int, width: int) -> list[int]:
    """:func:`unpack` in plain Python."""
    word = int.from_bytes(buffer, "little")
    return [(word >> (i * width)) & ((1 << width) - 1) for i in range(n)]


# ---------------------------------------------------------------- gaps with fillers


@njit(cache=True, nogil=True)
def _pack_gaps(positions: Array, width: int, out: Array) -> None:
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


@njit(cache=True, nogil=True)
def _unpack_gaps(buffer: Array, width: int, size: int, out: Array) -> tuple[int, int]:
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
    _pack_gaps(np.ascontiguousarray(positions), width, out)
    return out[:size]


def unpack_gaps(buffer: Array, n: int, width: int, size: int) -> tuple[Array, int]:
    """Read ``n`` positions below ``size``: the inverse of :func:`pack_gaps`, and a status."""
    if n * width > 8 * buffer.size:
        return np.zeros(0, np.int64), SHORT
    out = np.empty(n, np.int64)
    status, bits = _unpack_gaps(buffer, width, size, out)
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


@njit(cache=True, nogil=True)
def _log2(x: int) -> int:
    n = np.int64(0)
    while x > 1:
        x >>= 1
        n += 1
    return n


@njit(cache=True, nogil=True)
def _split_gaps(positions: Array, direct: int, top: int, tokens: Array, raw: Array) -> int:
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


@njit(cache=True, nogil=True)
def _join_gaps(
    tokens: Array, raw: Array, direct: int, top: int, size: int, out: Array
) -> tuple[int, int]:
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
    _split_gaps(np.ascontiguousarray(positions), direct, top, tokens, raw)
    return tokens, raw[:size]


def join_gaps(tokens: Array, raw: Array, direct: int, top: int, size: int) -> tuple[Array, int]:
    """Read positions below ``size``: the inverse of :func:`split_gaps`, and a status."""
    out = np.empty(tokens.size, np.int64)
    status, bits = _join_gaps(tokens, raw, direct, top, size, out)
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
