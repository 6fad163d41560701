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
from espalier.kernels.counting import weigh
from espalier.kernels.planes import join, split

Array = NDArray[Any]

PLANES = 1
"""Layout of values."""

_STORED = 0
_CODED = 1
_CONSTANT = 2

_SHORT = 1 << 12
"""Bytes of a plane below which coding it must save one of them, else a 128th."""
_SAMPLED = 1 << 15
"""Bytes of a plane from which a sample tells whether it is worth counting."""
_PLACES = 64
_LEAST_AT_EACH, _MOST_AT_EACH = 1 << 7, 1 << 10

ROTATED = frozenset({"float16", "bfloat16", "float32", "float64", "complex64", "complex128"})
"""Dtypes whose words have their sign moved to the other end."""


def word_dtype(dtype: str, storage: np.dtype[Any]) -> np.dtype[Any]:
    """The unsigned integer of one component: half of a complex number, all of anything else."""
    size = storage.itemsize // 2 if dtype.startswith("complex") else storage.itemsize
    return np.dtype(f"<u{size}")


def _most(n: int, thorough: bool) -> int:
    """Bytes that a plane of ``n`` may take if it is coded."""
    return n - (1 if thorough or n < _SHORT else n // 128)


def _sampled(planes: Array) -> Array:
    """Of each plane an eighth at most of its bytes, or a little more, at 64 places."""
    step = planes.shape[1] // _PLACES
    each = min(max(step // 8, _LEAST_AT_EACH), _MOST_AT_EACH)
    places = planes[:, : step * _PLACES].reshape(len(planes), _PLACES, step)
    return np.ascontiguousarray(places[:, :, :each]).reshape(len(planes), -1)


def _histograms(planes: Array, thorough: bool) -> list[Array | None]:
    """How often each byte is in each plane; None where no coding of it by itself is short enough.

    A payload takes the entropy of the bytes, and a table a bit for each that occurs.
    """
    if thorough:
        return list(weigh(planes)[0])
    n = planes.shape[1]
    wanted = np.ones(len(planes), np.bool_)
    if n >= _SAMPLED:
        # The sample's own table would weigh several times as much as it does in the end.
        sample = _sampled(planes)
        size = sample.shape[1]
        wanted = weigh(sample)[1] < 8 * (size - size // 128)
    counts, bits = weigh(planes, wanted)
    used = np.count_nonzero(counts, axis=1)
    worth = (used == 1) | (wanted & (bits + used <= 8 * _most(n, thorough)))
    return [row if yes else None for row, yes in zip(counts, worth.tolist(), strict=True)]


@dataclass(frozen=True, eq=False)
class _Fit:
    """A coder's table for one plane, as an object and as bytes, and the bits of all that it takes.

    ``slack``: bits by which that may be off. ``lone``: whether the plane has one symbol only.
    """

    coder: EntropyCoder[Any]
    table: Any
    written: bytes
    bits: int
    slack: int
    lone: bool

    @classmethod
    def of(cls, coder: EntropyCoder[Any], counts: Array) -> _Fit:
        table = coder.fit(counts)
        written = coder.write_table(table)
        bits = coder.bits(counts, table)
        lone = bool(np.count_nonzero(counts) == 1)
        return cls(coder, table, written, bits + 8 * len(written), coder.slack(bits), lone)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What one coder announces for all planes: bits, and by how many it may be off."""

    coder: EntropyCoder[Any]
    fits: list[_Fit | None]
    bits: int
    slack: int

    @classmethod
    def of(cls, coder: EntropyCoder[Any], histograms: list[Array | None], n: int) -> _Plan:
        fits = [None if counts is None else _Fit.of(coder, counts) for counts in histograms]
        coded = [fit for fit in fits if fit is not None]
        bits = sum(min(fit.bits, 8 * n) for fit in coded)
        return cls(coder, fits, bits, sum(fit.slack for fit in coded))


def _encode_plane(
    plane: Array, fit: _Fit | None, most: int
) -> tuple[list[bytes | memoryview], int]:
    """The parts that a plane is written as, and the bytes of them that are parameters."""
    if fit is not None and fit.lone:
        return [bytes([_CONSTANT, plane[0]])], 1
    if fit is not None and fit.bits <= 8 * most:
        payload = fit.coder.encode(plane, fit.table)
        size = varint(len(fit.written) + len(payload))
        if len(size) + len(fit.written) + len(payload) <= most:
            head = bytes([_CODED]) + size + fit.written
            return [head, payload], len(head)
    return [bytes([_STORED]), plane.data], 1


def encode_planes(values: Array, dtype: str, coders: list[EntropyCoder[Any]]) -> Stream:
    """The smallest stream of byte planes by one of ``coders``, ``fixed`` not among them."""
    planes = split(values.view(word_dtype(dtype, values.dtype)), dtype in ROTATED)
    thorough = CODERS.get("context").id in {coder.id for coder in coders}
    histograms, n = _histograms(planes, thorough), planes.shape[1]
    plans = [_Plan.of(coder, histograms, n) for coder in coders]
    # Those coders are run of which one cannot tell before that another takes fewer bytes.
    limit = min(plan.bits + plan.slack for plan in plans)
    tried: list[Stream] = []
    for plan in plans:
        if plan.bits - plan.slack > limit:
            continue
        written = [
            _encode_plane(plane, fit, _most(n, thorough))
            for plane, fit in zip(planes, plan.fits, strict=True)
        ]
        body = b"".join([part for parts, _ in written for part in parts])
        tried.append(Stream(PLANES, plan.coder.id, body, sum(tables for _, tables in written)))
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
        if mode == _CODED:
            body = cursor.take(cursor.varint(f"size of {field}"), field)
            tables += cursor.at - start - len(body)
            plane, table_bytes = decode_symbols(Cursor(body), number, n, 256)
            planes.append(plane[:1] if plane.strides == (0,) else plane)
            tables += table_bytes
        elif mode in (_STORED, _CONSTANT):
            size = n if mode == _STORED else 1
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
