"""Exact values: biases, norm statistics, codebooks, kept weights; bit for bit.

Three layouts, of which the smallest is written:

``PLAIN``     the values as they lie in memory, little-endian.
``PLANES``    byte planes, each stored, constant or entropy-coded. A float's bits are rotated left
              by one first, so that all of the exponent of a float32 or bfloat16 falls into a byte.
``CONSTANT``  one value that stands for all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.entropy.coder import CODERS, EntropyCoder, coder_by_id
from espalier.entropy.cursor import Cursor, varint
from espalier.entropy.histogram import is_constant_view
from espalier.entropy.stream import (
    RAW,
    Stream,
    decode_symbols,
    encode_symbols,
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

_ROTATED = frozenset({"float16", "bfloat16", "float32", "float64", "complex64", "complex128"})


def _word_dtype(dtype: str, storage: np.dtype[Any]) -> np.dtype[Any]:
    """The unsigned integer of one component: half of a complex number, all of anything else."""
    size = storage.itemsize // 2 if dtype.startswith("complex") else storage.itemsize
    return np.dtype(f"<u{size}")


def _to_words(values: Array, dtype: str) -> Array:
    words = values.view(_word_dtype(dtype, values.dtype))
    if dtype in _ROTATED:
        bits = 8 * words.dtype.itemsize
        words = (words << 1) | (words >> (bits - 1))
    return words


def _from_words(words: Array, dtype: str, storage: np.dtype[Any]) -> Array:
    if dtype in _ROTATED:
        bits = 8 * words.dtype.itemsize
        words = (words >> 1) | (words << (bits - 1))
    return words.view(storage)


def _encode_plane(plane: Array, coder: EntropyCoder[Any]) -> tuple[bytes, int]:
    counts = count(plane)
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


def _encode_planes(values: Array, dtype: str, coder: EntropyCoder[Any]) -> Stream:
    words = _to_words(values, dtype)
    planes = words.view(np.uint8).reshape(words.size, words.dtype.itemsize)
    parts = [
        _encode_plane(np.ascontiguousarray(planes[:, i]), coder)
        for i in reversed(range(planes.shape[1]))
    ]
    body = b"".join(body for body, _ in parts)
    return Stream(PLANES, coder.id, body, sum(tables for _, tables in parts))


def encode_values(values: Array, dtype: str, coder: EntropyCoder[Any]) -> Stream:
    """Write exact values the smallest way.

    Parameters
    ----------
    values : array, shape (n,)
        In the storage dtype of ``dtype``.
    dtype : str
        A key of :data:`espalier.state.STORAGE_DTYPES`.
    coder : EntropyCoder
        Of the planes; with ``fixed`` the values lie plain.
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
    streams = [Stream(PLAIN, RAW, values.tobytes())]
    if coder.id != CODERS.get("fixed").id:
        streams.append(_encode_planes(values, dtype, coder))
    return smallest(streams)


def _decode_planes(cursor: Cursor, number: int, n: int, word: np.dtype[Any]) -> tuple[Array, int]:
    planes: list[Array] = []
    tables = 0
    coder_by_id(number)  # also where no plane is coded
    for i in reversed(range(word.itemsize)):
        start = cursor.at
        mode = cursor.u8(f"byte plane {i}")
        if mode == _PLANE_STORED:
            planes.append(np.frombuffer(cursor.take(n, f"byte plane {i}"), np.uint8))
            tables += 1
        elif mode == _PLANE_CONSTANT:
            planes.append(np.frombuffer(cursor.take(1, f"byte plane {i}"), np.uint8))
            tables += 1
        elif mode == _PLANE_CODED:
            body = cursor.take(cursor.varint(f"size of byte plane {i}"), f"byte plane {i}")
            tables += cursor.at - start - len(body)
            plane, table_bytes = decode_symbols(Cursor(body), number, n, 256)
            planes.append(plane)
            tables += table_bytes
        else:
            raise CorruptFile(f"byte plane {i} has mode {mode}, not 0, 1 or 2")
    cursor.end("byte planes")
    if all(plane.strides == (0,) or plane.size == 1 for plane in planes):
        # Nothing in the file pays for n values: keep one.
        one = np.array([plane[0] for plane in reversed(planes)], np.uint8).view(word)
        return np.broadcast_to(one, (n,)), tables
    out = np.empty((n, word.itemsize), np.uint8)
    for i, plane in enumerate(reversed(planes)):
        out[:, i] = plane
    return out.reshape(-1).view(word), tables


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
    if layout != PLANES:
        raise CorruptFile(f"layout {layout} of values with coder {number} is not known")
    word = _word_dtype(dtype, storage)
    parts = storage.itemsize // word.itemsize
    words, tables = _decode_planes(Cursor(body), number, n * parts, word)
    _check_bool(words, dtype)
    if is_constant_view(words):
        one = _from_words(np.full(parts, words[0], word), dtype, storage)
        return np.broadcast_to(one, (n,)), tables
    return _from_words(words, dtype, storage), tables


def _check_bool(values: Array, dtype: str) -> None:
    # A byte other than 0 and 1 in a NumPy bool is undefined behaviour.
    if dtype == "bool" and int(values[:1].max() if is_constant_view(values) else values.max()) > 1:
        raise CorruptFile("a bool is stored as neither 0 nor 1")
