"""Exact values: biases, norm statistics, codebooks, kept weights; bit for bit.

Four layouts, of which the smallest is written:

``PLAIN``     the values as they lie in memory, little-endian.
``PLANES``    byte planes, each stored, constant or entropy-coded. A float's bits are rotated left
              by one first, so that all of the exponent of a float32 or bfloat16 falls into a byte.
``CONSTANT``  one value that stands for all.
``SORTED``    distinct values in rising order, and their order: :mod:`espalier.entropy.codebooks`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.entropy.choice import Coders, as_coders
from espalier.entropy.codebooks import SORTED, decode_sorted, encode_sorted
from espalier.entropy.coder import CODERS, EntropyCoder, coder_by_id
from espalier.entropy.cursor import Cursor, varint
from espalier.entropy.histogram import is_constant_view
from espalier.entropy.stream import (
    RAW,
    Stream,
    decode_symbols,
    encode_symbols,
    margin,
    read_empty,
    smallest,
    split_method,
)
from espalier.errors import CorruptFile, TruncatedFile
from espalier.kernels.counting import count

Array = NDArray[Any]

PLAIN = 0
PLANES = 1
CONSTANT = 2

_PLANE_STORED = 0
_PLANE_CODED = 1
_PLANE_CONSTANT = 2

_BLOCK = 1 << 16
"""Words taken apart or put together at a time, so that they stay in the cache."""

_ROTATED = frozenset({"float16", "bfloat16", "float32", "float64", "complex64", "complex128"})


def _word_dtype(dtype: str, storage: np.dtype[Any]) -> np.dtype[Any]:
    """The unsigned integer of one component: half of a complex number, all of anything else."""
    size = storage.itemsize // 2 if dtype.startswith("complex") else storage.itemsize
    return np.dtype(f"<u{size}")


def _split(values: Array, dtype: str) -> Array:
    """The byte planes of ``values``, most significant first, shape (bytes of a word, words)."""
    words = values.view(_word_dtype(dtype, values.dtype))
    width = words.dtype.itemsize
    planes = np.empty((width, words.size), np.uint8)
    for start in range(0, words.size, _BLOCK):
        block = words[start : start + _BLOCK]
        if dtype in _ROTATED:
            block = (block << 1) | (block >> (8 * width - 1))
        for i in range(width):
            planes[i, start : start + _BLOCK] = block >> (8 * (width - 1 - i))
    return planes


def _join(planes: list[Array], n: int, dtype: str, word: np.dtype[Any]) -> Array:
    """The ``n`` words of byte planes: the inverse of :func:`_split`; a plane may be one byte."""
    words = np.empty(n, word)
    for start in range(0, n, _BLOCK):
        block = words[start : start + _BLOCK]
        block[:] = planes[0][start : start + _BLOCK] if planes[0].size == n else planes[0]
        for plane in planes[1:]:
            block <<= 8
            block |= plane[start : start + _BLOCK] if plane.size == n else plane
        if dtype in _ROTATED:
            block[:] = (block >> 1) | (block << (8 * word.itemsize - 1))
    return words


def _announced(planes: Array, counts: list[Array], coder: EntropyCoder[Any]) -> int:
    """Bits of all planes by ``coder``, to within a margin for each."""
    bits = 0
    for plane, of_plane in zip(planes, counts, strict=True):
        table = coder.fit(of_plane)
        coded = coder.bits(of_plane, table) + 8 * len(coder.write_table(table))
        bits += min(coded, 8 * plane.size)
    return bits


def _encode_plane(plane: Array, counts: Array, coder: EntropyCoder[Any]) -> tuple[bytes, int]:
    if counts[plane[0]] == plane.size:
        return bytes([_PLANE_CONSTANT, plane[0]]), 1
    table = coder.fit(counts)
    if coder.bits(counts, table) < 8 * plane.size:
        coded = encode_symbols(plane, counts, coder)
        size = varint(len(coded.body))
        if len(size) + len(coded.body) < plane.size:
            head = bytes([_PLANE_CODED]) + size
            return head + coded.body, coded.table_bytes + len(head)
    return bytes([_PLANE_STORED]) + plane.tobytes(), 1


def _encode_planes(values: Array, dtype: str, coders: list[EntropyCoder[Any]]) -> Stream:
    planes = _split(values, dtype)
    counts = [count(plane) for plane in planes]
    if len(coders) > 1:
        announced = [_announced(planes, counts, coder) for coder in coders]
        limit = min(announced) + len(planes) * margin(min(announced))
        coders = [c for c, bits in zip(coders, announced, strict=True) if bits <= limit]
    tried: list[Stream] = []
    for coder in coders:
        parts = [_encode_plane(p, c, coder) for p, c in zip(planes, counts, strict=True)]
        body = b"".join(body for body, _ in parts)
        tried.append(Stream(PLANES, coder.id, body, sum(tables for _, tables in parts)))
    return smallest(tried)


def encode_values(values: Array, dtype: str, coders: Coders, codebook: bool = False) -> Stream:
    """Write exact values the smallest way.

    Parameters
    ----------
    values : array, shape (n,)
        In the storage dtype of ``dtype``.
    dtype : str
        A key of :data:`espalier.state.STORAGE_DTYPES`.
    coders : EntropyCoder, or several
        Of the planes; with ``fixed`` alone the values lie plain.
    codebook : bool
        Whether it may pay to tell values apart from their order.
    """
    if not values.size:
        return Stream(PLAIN, RAW, b"")
    first = values[:1].tobytes()
    same = is_constant_view(values)
    if not same:
        values = np.ascontiguousarray(values)
        words = values.view(np.uint8).reshape(values.size, -1)
        same = values.size > 1 and words[-1].tobytes() == first and bool((words == words[0]).all())
    if same:
        return Stream(CONSTANT, RAW, first)
    entropy = [coder for coder in as_coders(coders) if coder.id != CODERS.get("fixed").id]
    if entropy:
        tried = [_encode_planes(values, dtype, entropy)]
        if codebook:
            ordered = [encode_sorted(values, dtype, coder) for coder in entropy]
            tried += [stream for stream in ordered if stream is not None]
        stream = smallest(tried)
        if len(stream.body) < values.nbytes:
            return stream
    return Stream(PLAIN, RAW, values.tobytes())


def _decode_planes(cursor: Cursor, number: int, n: int, width: int) -> tuple[list[Array], int]:
    """The ``width`` planes of ``n`` words, most significant first; a constant one is one byte."""
    planes: list[Array] = []
    tables = 0
    coder_by_id(number)  # also where no plane is coded
    for i in reversed(range(width)):
        field = f"byte plane {i}"
        start = cursor.at
        mode = cursor.u8(field)
        if mode == _PLANE_CODED:
            body = cursor.take(cursor.varint(f"size of {field}"), field)
            tables += cursor.at - start - len(body)
            plane, table_bytes = decode_symbols(Cursor(body), number, n, 256)
            planes.append(plane[:1] if plane.strides == (0,) else plane)
            tables += table_bytes
        elif mode in (_PLANE_STORED, _PLANE_CONSTANT):
            size = n if mode == _PLANE_STORED else 1
            planes.append(np.frombuffer(cursor.take(size, field), np.uint8))
            tables += 1
        else:
            raise CorruptFile(f"{field} has mode {mode}, not 0, 1 or 2")
    cursor.end("byte planes")
    return planes, tables


def decode_values(
    method: int, body: memoryview, n: int, dtype: str, storage: np.dtype[Any]
) -> tuple[Array, int]:
    """Read ``n`` values (in ``storage``), and the bytes of tables and parameters.

    Equal values come as a read-only view of stride 0, so that a few bytes cannot ask for much
    memory before somebody wants the dense tensor.
    """
    if not n:
        read_empty(method, body)
        return np.zeros(0, storage), 0
    layout, number = split_method(method)
    if layout in (PLAIN, CONSTANT) and number == RAW:
        need = storage.itemsize * (n if layout == PLAIN else 1)
        if len(body) != need:
            error = TruncatedFile if len(body) < need else CorruptFile
            raise error(f"{n} {dtype} values should be {need} bytes, not {len(body)}")
        values = np.frombuffer(body, np.uint8)
        _check_bool(values, dtype)
        if layout == PLAIN:
            return values.view(storage).copy(), 0
        return np.broadcast_to(values.copy().view(storage), (n,)), 0
    if layout == SORTED and number != RAW:
        return decode_sorted(number, body, n, dtype, storage)
    if layout != PLANES:
        raise CorruptFile(f"layout {layout} of values with coder {number} is not known")
    word = _word_dtype(dtype, storage)
    parts = storage.itemsize // word.itemsize
    planes, tables = _decode_planes(Cursor(body), number, n * parts, word.itemsize)
    # Where no plane has a byte for each word, nothing in the file pays for n values: keep one.
    constant = all(plane.size == 1 for plane in planes)
    values = _join(planes, parts if constant else n * parts, dtype, word)
    _check_bool(values, dtype)
    values = values.view(storage)
    return (np.broadcast_to(values, (n,)) if constant else values), tables


def _check_bool(values: Array, dtype: str) -> None:
    # A byte other than 0 and 1 in a NumPy bool is undefined behaviour.
    if dtype == "bool" and int(values.max()) > 1:
        raise CorruptFile("a bool is stored as neither 0 nor 1")
