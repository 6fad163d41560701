"""Words as byte planes, each stored, constant or entropy-coded, by what pays.

A plane that is coded costs time both ways, and that of a mantissa's high bits saves a three
hundredth at most. So one that is not short is coded where that saves more than a 128th of it; with
the coder ``context``, which nobody takes who is in a hurry, where it saves a byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.entropy.coder import CODERS, EntropyCoder, coder_by_id
from espalier.entropy.cursor import Cursor, varint
from espalier.entropy.stream import Stream, decode_symbols, smallest
from espalier.errors import CorruptFile
from espalier.kernels import plane_streams
from espalier.kernels.bitpack import frozen
from espalier.kernels.counting import count, histograms
from espalier.kernels.frequencies import log2_table
from espalier.kernels.planes import CODED, SAME, STORED, join, split

Array = NDArray[Any]

PLANES = 1
"""Layout of values."""

_SHORT = 1 << 12
"""Bytes of a plane below which coding it must save one of them, else a 128th."""

_HUFFMAN, _RANS, _CONTEXT = (CODERS.get(name).id for name in ("huffman", "rans", "context"))

ROTATED = frozenset({"float16", "bfloat16", "float32", "float64", "complex64", "complex128"})
"""Dtypes whose words have their sign moved to the other end."""


def word_dtype(dtype: str, storage: np.dtype[Any]) -> np.dtype[Any]:
    """The unsigned integer of one component: half of a complex number, all of anything else."""
    size = storage.itemsize // 2 if dtype.startswith("complex") else storage.itemsize
    return np.dtype(f"<u{size}")


def _most(n: int) -> int:
    """Bytes that a plane of ``n`` may take if it is coded."""
    return n - (1 if n < _SHORT else n // 128)


@dataclass(frozen=True, eq=False)
class _Fit:
    """A coder's table for one plane, as an object and as bytes, and the bits of all that it takes.

    ``slack``: bits by which that may be off.
    """

    coder: EntropyCoder[Any]
    table: Any
    written: bytes
    bits: int
    slack: int

    @classmethod
    def of(cls, coder: EntropyCoder[Any], counts: Array) -> _Fit:
        table = coder.fit(counts)
        written = coder.write_table(table)
        bits = coder.bits(counts, table)
        return cls(coder, table, written, bits + 8 * len(written), coder.slack(bits))


def _encode_plane(
    plane: Array, same: bool, fit: _Fit | None, most: int
) -> tuple[list[bytes | memoryview], int]:
    """The parts that a plane is written as, and the bytes of them that are parameters."""
    if same:
        return [bytes([SAME, plane[0]])], 1
    if fit is not None and fit.bits <= 8 * most:
        payload = fit.coder.encode(plane, fit.table)
        size = varint(len(fit.written) + len(payload))
        if len(size) + len(fit.written) + len(payload) <= most:
            head = bytes([CODED]) + size + fit.written
            return [head, payload], len(head)
    return [bytes([STORED]), plane.data], 1


def encode_planes(values: Array, dtype: str, coders: list[EntropyCoder[Any]]) -> Stream:
    """The smallest stream of byte planes by one of ``coders``, ``fixed`` not among them."""
    planes = split(values.view(word_dtype(dtype, values.dtype)), dtype in ROTATED)
    ids = [coder.id for coder in coders]
    if planes.shape[1] > plane_streams.MOST or not set(ids) <= {_HUFFMAN, _RANS}:
        return encode_each(planes, coders)
    body, taken, tables = plane_streams.encode(
        frozen(planes), _most(planes.shape[1]), _HUFFMAN in ids, _RANS in ids, log2_table()
    )
    number = _RANS if taken == plane_streams.RANS else _HUFFMAN
    return Stream(PLANES, number, body.tobytes(), tables)


def encode_each(planes: Array, coders: list[EntropyCoder[Any]]) -> Stream:
    """The same of ``planes``, one after another: for all coders, and any number of words."""
    n = planes.shape[1]
    if _CONTEXT in {coder.id for coder in coders}:
        most, counts = n - 1, np.stack([count(plane) for plane in planes])
        used = np.count_nonzero(counts, axis=1)
    else:
        most = _most(n)
        counts, used = histograms(planes, most)
    same = (used == 1).tolist()
    announced: list[tuple[int, int, EntropyCoder[Any], list[_Fit | None]]] = []
    for coder in coders:
        rows = zip(counts, used.tolist(), strict=True)
        fits = [_Fit.of(coder, row) if symbols > 1 else None for row, symbols in rows]
        coded = [fit for fit in fits if fit is not None]
        bits = sum(min(fit.bits, 8 * n) for fit in coded)
        announced.append((bits, sum(fit.slack for fit in coded), coder, fits))
    # Those coders are run of which one cannot tell before that another takes fewer bytes.
    limit = min(bits + slack for bits, slack, *_ in announced)
    tried: list[Stream] = []
    for bits, slack, coder, fits in announced:
        if bits - slack <= limit:
            parts = zip(planes, same, fits, strict=True)
            written = [_encode_plane(*part, most) for part in parts]
            body = b"".join([part for own, _ in written for part in own])
            tried.append(Stream(PLANES, coder.id, body, sum(tables for _, tables in written)))
    return smallest(tried)


def _read_planes(cursor: Cursor, number: int, n: int, width: int) -> tuple[list[Array], int]:
    """The ``width`` planes of ``n`` words, most significant first; a constant one is one byte."""
    planes: list[Array] = []
    tables = 0
    coder_by_id(number)  # also where no plane is coded
    for i in reversed(range(width)):
        field = f"byte plane {i}"
        start = cursor.at
        mode = cursor.u8(field)
        if mode == CODED:
            body = cursor.take(cursor.varint(f"size of {field}"), field)
            tables += cursor.at - start - len(body)
            plane, table_bytes = decode_symbols(Cursor(body), number, n, 256)
            planes.append(plane[:1] if plane.strides == (0,) else plane)
            tables += table_bytes
        elif mode in (STORED, SAME):
            size = n if mode == STORED else 1
            planes.append(np.frombuffer(cursor.take(size, field), np.uint8))
            tables += 1
        else:
            raise CorruptFile(f"{field} has mode {mode}, not 0, 1 or 2")
    cursor.end("byte planes")
    return planes, tables


def decode_planes(
    body: memoryview, number: int, n: int, dtype: str, storage: np.dtype[Any]
) -> tuple[Array, int]:
    """The ``n`` values that :func:`encode_planes` wrote, and the bytes of tables.

    Where no plane has a byte for each word, nothing in the file pays for ``n`` values: they then
    are a view of one, with stride 0.
    """
    word = word_dtype(dtype, storage)
    parts = storage.itemsize // word.itemsize
    planes, tables = _read_planes(Cursor(body), number, n * parts, word.itemsize)
    constant = n > 1 and all(plane.size == 1 for plane in planes)
    values = join(planes, parts if constant else n * parts, dtype in ROTATED).view(storage)
    return (np.broadcast_to(values, (n,)) if constant else values), tables
