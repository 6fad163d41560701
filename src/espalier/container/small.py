"""Many small tensors at once: those that a kernel decodes in one call, for ``Reader.arrays``.

It does what :mod:`espalier.container.chunks` does one tensor at a time, for what is common; all
else, and what is not sound, is left to it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.container.checksum import crc32
from espalier.container.layout import DTYPE_IDS, DTYPE_NAMES, KINDS, PACK
from espalier.container.table import KIND_TRAITS, Table
from espalier.entropy.coder import CODERS
from espalier.entropy.multiples import MULTIPLES
from espalier.entropy.neighbours import PAID_FOR, SIZES
from espalier.entropy.planes import PLANES, ROTATED
from espalier.entropy.stream import RAW
from espalier.entropy.values import CONSTANT, PLAIN
from espalier.kernels import records as fields
from espalier.kernels import small_magnitudes
from espalier.kernels import small_tensors as kernel
from espalier.kernels.bitpack import bytes_of, frozen
from espalier.state import storage_dtype

Array = NDArray[Any]

MOST = 1 << 20
"""Bytes of a tensor beyond which it is decoded by itself."""
ROOM = 1 << 22
"""Bytes of chunks, and about those of tensors, that are decoded at once."""
FROM = 16
"""Chunks from which the kernel is worth its loading, and once its compiling."""

_STORAGE = {i: storage_dtype(name) for i, name in DTYPE_NAMES.items()}
_WIDTHS = np.zeros(max(DTYPE_NAMES) + 1, np.int64)
for _name, _i in DTYPE_IDS.items():
    # A bool must be looked at, and the planes of a complex number are those of its parts.
    if _name != "bool" and not _name.startswith("complex"):
        _WIDTHS[_i] = _STORAGE[_i].itemsize
_TURNED = np.isin(np.arange(_WIDTHS.size), [DTYPE_IDS[name] for name in ROTATED])
_IS_FLOAT32 = np.arange(_WIDTHS.size) == DTYPE_IDS["float32"]


def _methods(ways: dict[tuple[int, int], int]) -> Array:
    table = np.zeros(256, np.int64)
    for (layout, coder), way in ways.items():
        table[layout << 4 | coder] = way
    return frozen(table)


_RANS, _HUFFMAN, _CONTEXT = (CODERS.get(name).id for name in ("rans", "huffman", "context"))
_METHODS = (
    _methods(
        {
            (PLAIN, RAW): kernel.PLAIN,
            (CONSTANT, RAW): kernel.CONSTANT,
            (MULTIPLES, RAW): kernel.MULTIPLES,
            (PLANES, _RANS): kernel.PLANES + kernel.RANS,
            (PLANES, _HUFFMAN): kernel.PLANES + kernel.HUFFMAN,
            (PLANES, _CONTEXT): kernel.PLANES + kernel.CONTEXT,
        }
    ),
    _methods(
        {
            (0, _RANS): kernel.RANS,
            (0, _HUFFMAN): kernel.HUFFMAN,
            (0, _CONTEXT): kernel.CONTEXT,
            (SIZES, _CONTEXT): kernel.SIZES,
        }
    ),
)
_PACK = KINDS[PACK]
_DTYPES = frozen(_WIDTHS), frozen(_IS_FLOAT32), frozen(_TURNED)
_FIXED = frozen(np.arange(256, dtype=np.uint8)), frozen(np.zeros(0, np.int64))


def small_arrays(
    table: Table, stretch: Callable[[int, int], bytes | memoryview]
) -> dict[str, Array]:
    """The dense arrays of small tensors by name, in no order; not of all of them.

    ``stretch`` gives the bytes of the file from one place to another, or fewer.
    """
    found: dict[str, Array] = {}
    if sys.byteorder != "little":
        return found
    places = np.full(len(table.text), -1, np.int64)
    start = 0
    while start < len(table.text):
        stop, size, chunks = kernel.plan(
            table.records, start, KIND_TRAITS, _METHODS, _WIDTHS, MOST, ROOM, places
        )
        if chunks >= FROM:
            begin = int(table.records[start, fields.OFFSET])
            last = table.records[stop - 1]
            data = stretch(begin, int(last[fields.OFFSET] + last[fields.LENGTH]))
            out = np.empty(size, np.uint8)
            _decode(table, start, stop, data, begin, places, out, found)
        start = stop
    return found


def _decode(
    table: Table,
    start: int,
    stop: int,
    data: bytes | memoryview,
    begin: int,
    places: Array,
    out: Array,
    found: dict[str, Array],
) -> None:
    """Entries ``start`` to ``stop``, whose chunks are in ``data``, into ``out``."""
    buffer = bytes_of(data)
    what = buffer, begin, table.records, start, stop, KIND_TRAITS, _METHODS
    if kernel.decode(*what, _DTYPES, places, out):
        small_magnitudes.decode(*what, _DTYPES[1], table.dims, PAID_FOR, _FIXED, places, out)
    rows = table.records[start:stop]
    at = places[start:stop].tolist()
    checks = [rows[:, field].tolist() for field in (fields.OFFSET, fields.LENGTH, fields.CRC)]
    for i, (offset, length, crc) in enumerate(zip(*checks, strict=True)):
        if length and at[i] >= 0:
            chunk = buffer[offset - begin : offset - begin + length]
            if crc32(chunk) != crc:
                at[i] = -1
    wanted = fields.KIND, fields.DTYPE, fields.PACK, fields.START
    columns = [rows[:, field].tolist() for field in wanted]
    shapes, names = table.shapes[start:stop], table.text[start:stop]
    for i, (kind, dtype, pack, first) in enumerate(zip(*columns, strict=True)):
        place, storage = at[i], _STORAGE[dtype]
        if start <= pack < stop and at[pack - start] >= 0:
            place = at[pack - start] + first * storage.itemsize
        if place >= 0 and kind != _PACK:
            found[names[i]] = np.ndarray(shapes[i], storage, out, place)
