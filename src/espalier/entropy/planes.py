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
from espalier.entropy.histogram import entropy_of
from espalier.entropy.stream import Stream, decode_symbols, margin, smallest
from espalier.errors import CorruptFile
from espalier.kernels.counting import count
from espalier.kernels.planes import join, split

Array = NDArray[Any]

PLANES = 1
"""Layout of values."""

_STORED = 0
_CODED = 1
_CONSTANT = 2

_LONG = 1 << 12
"""Bytes of a plane from which coding it must save a 128th."""
_SAMPLES = 64
_SAMPLE_BYTES = 1 << 10

ROTATED = frozenset({"float16", "bfloat16", "float32", "float64", "complex64", "complex128"})
"""Dtypes whose words have their sign moved to the other end."""


def word_dtype(dtype: str, storage: np.dtype[Any]) -> np.dtype[Any]:
    """The unsigned integer of one component: half of a complex number, all of anything else."""
    size = storage.itemsize // 2 if dtype.startswith("complex") else storage.itemsize
    return np.dtype(f"<u{size}")


def _least_gain(plane: Array, thorough: bool) -> int:
    """Bytes that coding a plane must save."""
    return 1 if thorough or plane.size < _LONG else plane.size // 128


def _sampled(plane: Array) -> Array:
    """A long plane at 64 places, a kibibyte at each; a short one whole."""
    step = plane.size // _SAMPLES
    if step < 8 * _SAMPLE_BYTES:
        return plane
    rows = plane[: step * _SAMPLES].reshape(_SAMPLES, step)
    return np.ascontiguousarray(rows[:, :_SAMPLE_BYTES]).reshape(-1)


@dataclass(frozen=True, eq=False)
class _Fit:
    """A coder's table for one plane, as an object and as bytes, and the bits of all that it takes.

    ``lone``: whether the plane has one symbol only.
    """

    coder: EntropyCoder[Any]
    table: Any
    written: bytes
    bits: int
    lone: bool

    @classmethod
    def of(cls, coder: EntropyCoder[Any], counts: Array) -> _Fit:
        table = coder.fit(counts)
        written = coder.write_table(table)
        bits = coder.bits(counts, table) + 8 * len(written)
        return cls(coder, table, written, bits, bool(np.count_nonzero(counts) == 1))


def _counts_if_worth(plane: Array, coder: EntropyCoder[Any], thorough: bool) -> Array | None:
    """The histogram of a plane; None where a sample of it says that coding it does not pay."""
    sample = _sampled(plane)
    if sample.size < plane.size and not thorough:
        # The sample's own table would weigh 64 times as much as it does in the end.
        counts = count(sample)
        if coder.bits(counts, coder.fit(counts)) >= 8 * (sample.size - sample.size // 128):
            return None
    return count(plane)


def _is_noise(counts: Array, most: int) -> bool:
    """Whether no table and payload of symbols by themselves can take ``most`` bytes or fewer.

    The payload takes their entropy, and the table a bit for each symbol that occurs.
    """
    used = counts[counts > 0]
    return used.size > 1 and entropy_of(used) + used.size > 8 * most


def _encode_plane(
    plane: Array, fit: _Fit | None, thorough: bool
) -> tuple[list[bytes | memoryview], int]:
    """The parts that a plane is written as, and the bytes of them that are parameters."""
    if fit is not None and fit.lone:
        return [bytes([_CONSTANT, plane[0]])], 1
    most = plane.size - _least_gain(plane, thorough)
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
    counts = [_counts_if_worth(plane, coders[0], thorough) for plane in planes]
    least = planes[0].size - _least_gain(planes[0], thorough)
    fitted = [c if thorough or c is None or not _is_noise(c, least) else None for c in counts]
    fits = [[None if c is None else _Fit.of(coder, c) for c in fitted] for coder in coders]
    # Those coders are run that announce the fewest bits, or so few more that it must be measured.
    announced = [
        sum(min(f.bits, 8 * planes[0].size) for f in of_coder if f is not None) for of_coder in fits
    ]
    margins = sum(c is not None for c in counts) * margin(0) + margin(min(announced))
    tried: list[Stream] = []
    for coder, of_coder, bits in zip(coders, fits, announced, strict=True):
        if bits > min(announced) + margins:
            continue
        written = [
            _encode_plane(plane, fit, thorough) for plane, fit in zip(planes, of_coder, strict=True)
        ]
        body = b"".join([part for parts, _ in written for part in parts])
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
