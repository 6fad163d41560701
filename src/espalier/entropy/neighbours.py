"""Positions and codes in the light of their neighbours in the tensor: the smallest, the slowest.

Where a filter keeps few weights, its next weight is rarely kept; where the filter before has a
large one, there is more often a large one. Adaptive probabilities with such contexts, mixed, take
some percent off what independent symbols need (:mod:`espalier.kernels.neighbours`). They need
memory for one byte of each element, which is why a stream must be long enough to pay for them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from espalier.entropy.coder import CODERS
from espalier.entropy.keys import keys_of
from espalier.entropy.stream import Stream
from espalier.errors import CorruptFile, TruncatedFile
from espalier.kernels import bitpack, magnitudes
from espalier.kernels import neighbours as kernel
from espalier.kernels.gather import gather

Array = NDArray[Any]

KEPT = 3
"""Layout of positions."""
RANKS = 1
"""Layout of codes: the bits of their ranks, seven contexts each."""
SIZES = 2
"""Layout of codes: their distance from zero, three contexts a decision; several times as fast."""

MOST_LEVELS = 256
_FEW_LEVELS = 64
"""Up to so many levels, the layout of sizes decodes several times as fast as that of ranks."""
_CLEARED = 4
"""Codes for each level that make up for the counters of the layout of ranks, 224 to a level."""

PAID_FOR = 1 << 16, 512
"""Elements of a tensor that any stream may be for, and how many more for each of its bytes."""


class Around(NamedTuple):
    """What codes are coded with.

    Attributes
    ----------
    shape : tuple of int
        Of the tensor.
    positions : int64 array or None
        Of the kept elements; None if all are.
    codebook : array, shape (levels,)
        In the storage dtype of ``dtype``.
    dtype : str
    """

    shape: tuple[int, ...]
    positions: Array | None
    codebook: Array
    dtype: str


def around_numbers(
    shape: tuple[int, ...],
    positions: Array | None,
    numbers: tuple[int, int, int],
    zeros: Array,
) -> Around:
    """What the codes of a fixed-point tensor are coded with: differences from the first zero point.

    ``numbers``: the first, the distance of one to the next, and how many there are.
    """
    first, stride, levels = numbers
    middle = int(zeros[0]) if zeros.size else 0
    differences = np.arange(levels, dtype=np.int32) * stride + (first - middle)
    return Around(shape, positions, differences.astype("<i4"), "int32")


def rows_and_places(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Rows, columns and places of a kernel, of a tensor with elements.

    Examples
    --------
    >>> rows_and_places((64, 16, 3, 3)), rows_and_places((10, 300)), rows_and_places((7,))
    ((64, 144, 9), (10, 300, 1), (1, 7, 1))
    """
    if len(shape) < 2:
        return 1, int(np.prod(shape, dtype=np.int64)), 1
    places = int(np.prod(shape[2:], dtype=np.int64))
    return int(shape[0]), int(shape[1]) * places, places


def _paid_for(elements: int, size: int) -> bool:
    free, each = PAID_FOR
    return elements <= free + each * size


def _mask(shape: tuple[int, ...], positions: Array | None) -> tuple[Array, int]:
    rows, columns, places = rows_and_places(shape)
    mask = np.zeros(rows * columns, np.uint8)
    mask[slice(None) if positions is None else positions] = 1
    return mask.reshape(rows, columns), places


def _check(status: int, body: memoryview, what: str) -> None:
    if status == bitpack.SHORT:
        raise TruncatedFile(f"the {what} end before the last of them")
    if status != bitpack.OK:
        raise CorruptFile(f"{len(body)} bytes are not those of the {what} alone")


# ---------------------------------------------------------------- positions


def encode_kept(positions: Array, shape: tuple[int, ...]) -> Stream | None:
    """Positions by a decision for each element; None where the stream does not pay for that."""
    elements = int(np.prod(shape, dtype=np.int64))
    # Some bits for each position are needed at least, or a decision for each element.
    if not _paid_for(elements, 2 * positions.size):
        return None
    body = kernel.encode_kept(*_mask(shape, positions))
    return Stream(KEPT, CODERS.get("context").id, body) if _paid_for(elements, len(body)) else None


def decode_kept(body: memoryview, n: int, shape: tuple[int, ...]) -> Array:
    """The ``n`` positions (int64) that :func:`encode_kept` wrote."""
    rows, columns, places = rows_and_places(shape)
    if not _paid_for(rows * columns, len(body)):
        raise TruncatedFile(f"{rows * columns} decisions cannot lie in {len(body)} bytes")
    mask = np.zeros((rows, columns), np.uint8)
    _check(kernel.decode_kept(body, mask, places), body, "kept elements")
    positions = np.flatnonzero(mask)
    if positions.size != n:
        raise CorruptFile(f"the stream holds {positions.size} positions, not {n}")
    return positions


# ---------------------------------------------------------------- codes


def _in_order(codebook: Array, dtype: str) -> tuple[Array, int]:
    """The codes in the order of their values, and how many of these are negative.

    By the bits of the values: any NaN has its place.
    """
    if dtype.startswith("complex"):
        return np.arange(codebook.size, dtype=np.uint8), 0
    keys = keys_of(codebook, dtype)
    signed = not (dtype == "bool" or dtype.startswith("uint"))
    negative = int((keys < 1 << (8 * keys.itemsize - 1)).sum()) if signed else 0
    return np.argsort(keys, kind="stable").astype(np.uint8), negative


def encode_ranks(codes: Array, around: Around) -> Stream | None:
    """Codes in the light of their neighbours; None where there are too few or too many levels.

    Of few levels, the layout ``RANKS`` is taken where it saves 3 % of the stream; of many, where it
    is smaller and there are enough codes.
    """
    levels = int(around.codebook.size)
    elements = int(np.prod(around.shape, dtype=np.int64))
    if not 2 <= levels <= MOST_LEVELS or not _paid_for(elements, 2 * codes.size):
        return None
    stream = _encode_as(SIZES, codes, around)
    few = levels <= _FEW_LEVELS
    if few or codes.size >= _CLEARED * levels:
        slow = _encode_as(RANKS, codes, around)
        if len(slow.body) < (0.97 if few else 1.0) * len(stream.body):
            stream = slow
    return stream if _paid_for(elements, len(stream.body)) else None


def _encode_as(layout: int, codes: Array, around: Around) -> Stream:
    levels = int(around.codebook.size)
    order, middle = _in_order(around.codebook, around.dtype)
    if layout == RANKS:
        rank = np.empty(levels, np.uint8)
        rank[order] = np.arange(levels)
        mask, places = _mask(around.shape, around.positions)
        width = (levels - 1).bit_length()
        body = kernel.encode_codes(mask, places, rank[codes], width, middle)
    else:
        _, columns, places = rows_and_places(around.shape)
        body = magnitudes.encode_codes(codes, order, around.positions, columns, places, middle)
    return Stream(layout, CODERS.get("context").id, body)


def decode_ranks(layout: int, body: memoryview, n: int, around: Around) -> Array:
    """The ``n`` codes (uint8) that :func:`encode_ranks` wrote."""
    levels = int(around.codebook.size)
    if not 2 <= levels <= MOST_LEVELS:
        raise CorruptFile(f"{levels} levels, not 2 to {MOST_LEVELS}, in layout {layout} of codes")
    rows, columns, places = rows_and_places(around.shape)
    if not _paid_for(rows * columns, len(body)):
        raise TruncatedFile(f"codes among {rows * columns} elements in {len(body)} bytes")
    order, middle = _in_order(around.codebook, around.dtype)
    codes = np.zeros(n, np.uint8)
    if layout == SIZES:
        positions = around.positions
        status = magnitudes.decode_codes(body, codes, order, positions, columns, places, middle)
        _check(status, body, "codes")
        return codes
    width = (levels - 1).bit_length()
    mask, places = _mask(around.shape, around.positions)
    _check(kernel.decode_codes(body, mask, places, codes, width, middle), body, "codes")
    if int(codes.max()) >= levels:
        raise CorruptFile(f"a code of rank {codes.max()} among {levels} levels")
    return gather(order, codes)
