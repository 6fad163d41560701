"""Exact values: biases, norm statistics, codebooks, kept weights; bit for bit.

Seven layouts, of which the smallest is written:

``PLAIN``     the values as they lie in memory, little-endian.
``PLANES``    byte planes: :mod:`espalier.entropy.planes`.
``CONSTANT``  one value that stands for all.
``SORTED``    distinct values in rising order, and their order: :mod:`espalier.entropy.codebooks`.
``MULTIPLES`` multiples of one step, in rising order: :mod:`espalier.entropy.multiples`.
``RUNS``      where runs of equal values begin, and one value for each.
``ZLIB``      the values as they lie in memory, by zlib: for files that are no tensors.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.entropy.choice import Coders, as_coders
from espalier.entropy.codebooks import SORTED, decode_sorted, encode_sorted
from espalier.entropy.coder import CODERS, EntropyCoder
from espalier.entropy.cursor import Cursor, varint
from espalier.entropy.histogram import is_constant_view
from espalier.entropy.multiples import MULTIPLES, decode_multiples, encode_multiples
from espalier.entropy.planes import PLANES, decode_planes, encode_planes
from espalier.entropy.positions import FREE, TOKENS, decode_positions, encode_tokens
from espalier.entropy.stream import EMPTY, RAW, Stream, read_empty, smallest, split_method
from espalier.errors import CorruptFile, TruncatedFile

Array = NDArray[Any]

PLAIN = 0
CONSTANT = 2
RUNS = 4
ZLIB = 5

_UNFOLD_FREE = 1 << 16
_UNFOLD = 4096
"""Items that each byte of runs may unfold to, beside ``_UNFOLD_FREE``."""
_RUN = 4
"""Items of a run, in the mean, from which runs are tried."""
_SAMPLE = 1 << 16
_TEXT_SAMPLE = 1 << 14
_UNSIGNED = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}


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
        return EMPTY
    first = values[:1].tobytes()
    same = is_constant_view(values)
    if not same:
        values = np.ascontiguousarray(values)
        words = _words(values)
        same = values.size > 1 and words[-1].tobytes() == first and bool((words == words[0]).all())
    if same:
        return Stream(CONSTANT, RAW, first)
    entropy = [coder for coder in as_coders(coders) if coder.id != CODERS.get("fixed").id]
    if entropy:
        tried: list[Stream | None] = [encode_planes(values, dtype, entropy)]
        if codebook:
            tried.append(encode_multiples(values, dtype))
            tried += [encode_sorted(values, dtype, coder) for coder in entropy]
        else:
            starts = starts_of_runs(values)
            if starts is not None:
                tried += [_encode_runs(values, starts, dtype, coder) for coder in entropy]
        stream = smallest([stream for stream in tried if stream is not None])
        if len(stream.body) < values.nbytes:
            return stream
    return Stream(PLAIN, RAW, values.tobytes())


def encode_file(data: bytes, coders: Coders) -> Stream:
    """Bytes that are no tensor's, mostly text: by zlib too.

    zlib takes a while, so it is asked about the beginning first, which may be of weights.
    """
    stream = encode_values(np.frombuffer(data, np.uint8), "uint8", coders)
    head = data[:_TEXT_SAMPLE]
    if len(zlib.compress(head, 1)) < len(head):
        deflated = zlib.compress(data, 9)
        if len(deflated) < len(stream.body):
            return Stream(ZLIB, RAW, deflated)
    return stream


def _words(values: Array) -> Array:
    """The bits of each value as an unsigned integer, shape (n,); two of complex128, (n, 2)."""
    if values.itemsize > 8:
        return values.view("<u8").reshape(values.size, -1)
    return values.view(_UNSIGNED[values.itemsize])


def starts_of_runs(values: Array) -> Array | None:
    """Where runs of equal bits begin (int64, the first one at 0); None if most are short."""
    words = _words(values)
    changes = np.zeros(0, np.bool_)
    for part in (words[:_SAMPLE], words) if words.shape[0] > _SAMPLE else (words,):
        changes = part[1:] != part[:-1]
        if changes.ndim > 1:
            changes = changes.any(axis=1)
        if _RUN * (int(np.count_nonzero(changes)) + 1) > part.shape[0]:
            return None
    return np.concatenate([np.zeros(1, np.int64), np.flatnonzero(changes) + 1])


def _encode_runs(
    values: Array, starts: Array, dtype: str, coder: EntropyCoder[Any]
) -> Stream | None:
    """Values as runs; None where a reader would ask for more bytes than that takes."""
    where = encode_tokens(starts, coder)
    each = encode_planes(values[starts], dtype, [coder])
    head = varint(starts.size) + varint(len(where.body))
    body = b"".join((head, where.body, each.body))
    if not _runs_are_paid(values.size, starts.size, len(body)):
        return None
    return Stream(RUNS, coder.id, body, len(head) + where.table_bytes + each.table_bytes)


def _runs_are_paid(n: int, runs: int, size: int) -> bool:
    """Whether ``size`` bytes may unfold to so many runs and items."""
    return n <= _UNFOLD_FREE + _UNFOLD * size and runs <= FREE + 8 * size


def _decode_runs(
    number: int, body: memoryview, n: int, dtype: str, storage: np.dtype[Any]
) -> tuple[Array, int]:
    cursor = Cursor(body)
    runs = cursor.varint("runs", n)
    if not runs or not _runs_are_paid(n, runs, len(body)):
        raise CorruptFile(f"{n} values in {runs} runs cannot lie in {len(body)} bytes")
    where = cursor.take(cursor.varint("bytes of the starts of runs"), "starts of runs")
    head = cursor.at - len(where)
    starts, start_tables = decode_positions(TOKENS << 4 | number, where, runs, n)
    if starts[0]:
        raise CorruptFile(f"the first run begins at value {starts[0]}")
    each, tables = decode_planes(cursor.rest(), number, runs, dtype, storage)
    return np.repeat(each, np.diff(starts, append=n)), head + start_tables + tables


def _decode_zlib(body: memoryview, size: int) -> Array:
    """What zlib made of ``size`` bytes; memory grows with what comes out, and stops there."""
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(body, size + 1)
    except zlib.error as error:
        raise CorruptFile(f"not sound zlib data: {error}") from None
    if not stream.eof and len(data) <= size:
        raise TruncatedFile(f"zlib data ends before the last of {size} bytes")
    if len(data) != size or stream.unused_data:
        raise CorruptFile(f"zlib data is not of {size} bytes, or is followed by others")
    return np.frombuffer(data, np.uint8)


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
    if layout == MULTIPLES and number == RAW:
        return decode_multiples(body, n, dtype, storage)
    if layout == SORTED and number != RAW:
        return decode_sorted(number, body, n, dtype, storage)
    if layout == PLANES:
        found = decode_planes(body, number, n, dtype, storage)
    elif layout == RUNS and number != RAW:
        found = _decode_runs(number, body, n, dtype, storage)
    elif layout == ZLIB and number == RAW:
        found = _decode_zlib(body, n * storage.itemsize).view(storage), 0
    else:
        raise CorruptFile(f"layout {layout} of values with coder {number} is not known")
    _check_bool(found[0], dtype)
    return found


def _check_bool(values: Array, dtype: str) -> None:
    # A byte other than 0 and 1 in a NumPy bool is undefined behaviour. One value that is seen any
    # number of times is looked at once.
    looked_at = values[:1] if is_constant_view(values) else values
    if dtype == "bool" and looked_at.view(np.uint8).max() > 1:
        raise CorruptFile("a bool is stored as neither 0 nor 1")
