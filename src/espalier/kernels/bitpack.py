"""Bits in bytes: unaligned words and fixed-width fields.

Every bit stream of the file is *least significant bit first*: bit ``i`` of a stream is bit
``i % 8`` of byte ``i // 8``, and a field's low bit comes first. A field of up to 57 bits can then
be read with one unaligned little-endian 64-bit load and one shift, with no branch on its place.

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
Int = Any
"""An integer inside a kernel: int64 to numba, where a type checker sees int and np.int64."""

jit: Any = njit(cache=True, nogil=True)
"""The decorator of every kernel here: compiled when first called, kept on disk, free of the GIL."""

_njit: Any = njit  # whose type does not know of all options
inner: Any = _njit(cache=True, nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)
"""Of what only kernels call: nothing is compiled that a call from Python would need."""

inlined: Any = njit(cache=True, nogil=True, forceinline=True)
"""Of what kernels call in their innermost loop: with arrays to hand over, a call costs most."""

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


@jit
def _load64_checked(array: Array, offset: Int) -> Int:
    word = np.uint64(0)
    for i in range(8):
        word |= np.uint64(array[offset + i]) << np.uint64(8 * i)
    return word


@jit
def _store64_checked(array: Array, offset: Int, word: Int) -> None:
    for i in range(8):
        array[offset + i] = np.uint8((word >> np.uint64(8 * i)) & np.uint64(255))


# With NUMBA_BOUNDSCHECK=1 the raw loads and stores give way to indexing, so that one run of the
# kernels' tests checks every access.
_CHECKED = bool(getattr(config, "BOUNDSCHECK", None))
load64: Any = _load64_checked if _CHECKED else _load64_fast
"""``load64(array, offset)``: 8 bytes of a uint8 array as a little-endian uint64."""
store64: Any = _store64_checked if _CHECKED else _store64_fast
"""``store64(array, offset, word)``: write a uint64 as 8 little-endian bytes."""


@inner
def peek(buffer: Array, bit: Int) -> Int:
    """At least 57 bits of ``buffer`` from ``bit`` on, in the low bits; zeros past its end."""
    byte = bit >> 3
    shift = np.uint64(bit & 7)
    if byte + 8 <= buffer.size:
        return load64(buffer, byte) >> shift
    word = np.uint64(0)
    for i in range(byte, buffer.size):
        word |= np.uint64(buffer[i]) << np.uint64(8 * (i - byte))
    return word >> shift


def frozen(array: Array) -> Array:
    """A contiguous, read-only view or copy: a kernel is then compiled for one kind of array."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def bytes_of(body: bytes | memoryview) -> Array:
    """``body`` as a read-only uint8 array, without a copy."""
    data = np.frombuffer(body, np.uint8)
    data.flags.writeable = False
    return data


@inner
def get_varint(buffer: Array, at: Int) -> tuple[Int, Int]:
    """A variable-length integer in its shortest form, and the byte after it: -1 if there is none.

    See :func:`espalier.entropy.cursor.varint`.
    """
    value = np.int64(0)
    for shift in range(0, 63, 7):
        if at >= buffer.size:
            return value, np.int64(-1)
        byte = np.int64(buffer[at])
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, np.int64(at) if byte or shift == 0 else np.int64(-1)
    return value, np.int64(-1)


@inner
def put_varint(out: Array, at: Int, value: Int) -> Int:
    """Write a variable-length integer: the byte after it."""
    while value > 127:
        out[at] = np.uint8(value & 127 | 128)
        value >>= 7
        at += 1
    out[at] = np.uint8(value)
    return at + 1


@inner
def put_bits(out: Array, bit: Int, value: Int, width: Int) -> Int:
    """``width`` bits of ``value`` at ``bit`` of zeros; an empty ``out`` only counts them."""
    if out.size:
        for i in range(width):
            at = bit + i
            out[at >> 3] |= np.uint8(((value >> i) & 1) << (at & 7))
    return bit + width


@jit
def set_bits(buffer: Array, first: Int, places: Array) -> Int:
    """Which bits are set, counted from ``first``: a status. There must be as many as ``places``.

    The first bit must be set, and one of the last byte.
    """
    n = np.int64(0)
    for i in range(buffer.size):
        byte = np.int64(buffer[i])
        for bit in range(8):
            if (byte >> bit) & 1:
                if n == places.size:
                    return TRAILING
                places[n] = first + 8 * i + bit
                n += 1
    if n < places.size:
        return SHORT
    return OK if buffer[0] & 1 and buffer[buffer.size - 1] else RANGE


# ---------------------------------------------------------------- fixed-width fields


@jit
def _pack(symbols: Array, width: Int, out: Array) -> None:
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


@jit
def _unpack(buffer: Array, width: Int, out: Array) -> None:
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
        _pack(frozen(symbols), width, out)
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
    _unpack(frozen(buffer), width, out)
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
