"""Shared weights by the sizes of their codes, many small tensors in one call.

The sequel of :mod:`espalier.kernels.small_tensors`, for files of the densest coder: the tensors
that :func:`~espalier.kernels.small_tensors.decode` leaves for it. A kernel of its own, since most
files have none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.kernels.bitpack import OK, Int, inner, jit
from espalier.kernels.magnitudes import read_codes
from espalier.kernels.records import DIMS, DIMS_AT, DTYPE, ELEMENTS, LEVELS, METHODS, OFFSET
from espalier.kernels.small_tensors import is_by_sizes, read_multiples

Array = NDArray[Any]


@inner
def _geometry(record: Array, dims: Array) -> tuple[Int, Int]:
    """Columns of a tensor, and places of a kernel: of a vector, its elements and 1."""
    places, at = np.int64(1), record[DIMS_AT]
    if record[DIMS] < 2:
        return record[ELEMENTS], places
    for k in range(2, record[DIMS]):
        places *= dims[at + k]
    return dims[at + 1] * places, places


@inner
def _shared(
    chunk: Array,
    record: Array,
    dims: Array,
    paid: tuple[Int, Int],
    fixed: tuple[Array, Array],
    out: Array,
) -> bool:
    """One tensor, whose codebook is of rising multiples: its codes are in order."""
    cut, levels, n = record[METHODS + 1], record[LEVELS], record[ELEMENTS]
    free, each = paid
    if levels < 2 or n > free + each * cut:
        return False
    order, everywhere = fixed
    words, codes = np.empty(levels, np.uint32), np.empty(n, np.uint8)
    if not read_multiples(chunk[cut:], words):
        return False
    middle = np.int64(0)
    for k in range(levels):
        middle += np.int64(words[k] >> np.uint32(31))
    columns, places = _geometry(record, dims)
    status = read_codes(chunk[:cut], codes, order[:levels], everywhere, columns, places, middle)
    if status != OK:
        return False
    for k in range(n):
        out[k] = words[np.uint64(codes[k])]
    return True


@jit
def decode(
    file: Array,
    base: Int,
    records: Array,
    start: Int,
    stop: Int,
    kinds: Array,
    methods: tuple[Array, Array],
    is_float32: Array,
    dims: Array,
    paid: tuple[Int, Int],
    fixed: tuple[Array, Array],
    places: Array,
    out: Array,
) -> None:
    """Decode those of the entries ``start`` to ``stop`` that are left for this kernel.

    Parameters
    ----------
    file, base, records, start, stop, kinds, methods, places, out
        As for :func:`espalier.kernels.small_tensors.decode`.
    is_float32 : bool array
        Of each dtype: only such a codebook can be of multiples.
    dims : int64 array
        Dimensions of all tensors.
    paid : tuple of two int
        Elements of a tensor at most, and for each byte of its codes.
    fixed : tuple of two arrays
        The numbers 0 to 255 as uint8, and no positions (int64): of types that ``read_codes`` is
        compiled for.
    """
    for i in range(start, stop):
        record = records[i]
        if places[i] < 0 or not is_by_sizes(record, kinds, methods):
            continue
        begin = record[OFFSET] - base
        end = begin + record[METHODS + 1] + record[METHODS + 3]
        part = out[places[i] : places[i] + 4 * record[ELEMENTS]].view(np.uint32)
        whole = is_float32[record[DTYPE]] and begin >= 0 and end <= file.size
        if not (whole and _shared(file[begin:end], record, dims, paid, fixed, part)):
            places[i] = -1
