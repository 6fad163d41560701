"""The products of :mod:`espalier.kernels.sparse_product` as work that any threads can share.

A *body* is a function of C, ``void body(void *block)``, that takes one task after another off a
counter until none is left: any number of threads may call it at once with the same block. The block
is an array of ``FIELDS`` int64, each at the place that a name below gives. An array is its address,
with its size behind it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import numpy as np
from numba import cfunc, njit, types

from espalier.kernels.lanes import address_of, fetch_add
from espalier.kernels.sparse_product import skipping_product, tile_product, vector_product

TILES = (128, 32, 8)
"""Numbers of positions that are taken at once, besides 1."""
VECTOR = 1
SKIPPING = 0
"""What stands in their place for one position, by rows, or by the nonzeros of the input."""

NEXT = 0
CHUNK = 1
"""Rows in a task."""
CHUNKS = 2
"""Tasks of one tile: rows / CHUNK, rounded up."""
TASKS = 3
"""CHUNKS times the number of tiles."""
BITS = 4
POSITION = 5
"""Where the first tile begins."""
STRIDE = 6
"""From a row of the result to the next."""
WIDTH = 7
"""Columns in a block."""
WORDS = 8
POINTERS = 10
TABLE = 12
BIAS = 14
STARTS = 16
X = 18
Y = 20
FIELDS = 22

_carray: Any = numba.carray  # type: ignore[attr-defined]

_inlined: Any = njit(cache=True, nogil=True, forceinline=True)


@_inlined
def _array(block: Any, field: Any, dtype: Any) -> Any:
    return _carray(address_of(block[field]), (block[field + 1],), dtype)


@_inlined
def _coded(block: Any, real: Any, word: Any) -> Any:
    words, pointers = _array(block, WORDS, word), _array(block, POINTERS, np.int32)
    return words, pointers, _array(block, TABLE, real), block[BITS], block[WIDTH]


@_inlined
def _exact(block: Any, real: Any, word: Any) -> Any:
    words, pointers = _array(block, WORDS, word), _array(block, POINTERS, np.int32)
    return words, pointers, _array(block, TABLE, real), None, block[WIDTH]


@_inlined
def _vector_tasks(block: Any, matrix: Any, real: Any, _wide: int) -> None:
    bias, x, y = _array(block, BIAS, real), _array(block, X, real), _array(block, Y, real)
    task = fetch_add(block, NEXT)
    while task < block[TASKS]:
        first = task * block[CHUNK]
        vector_product(matrix, bias, x, y, first, min(first + block[CHUNK], bias.size))
        task = fetch_add(block, NEXT)


@_inlined
def _skipping_tasks(block: Any, matrix: Any, real: Any, _wide: int) -> None:
    bias, x, y = _array(block, BIAS, real), _array(block, X, real), _array(block, Y, real)
    task = fetch_add(block, NEXT)
    while task < block[TASKS]:
        skipping_product(matrix, bias, x, y, task)
        task = fetch_add(block, NEXT)


@_inlined
def _tile_tasks(block: Any, matrix: Any, real: Any, wide: int) -> None:
    bias, x, y = _array(block, BIAS, real), _array(block, X, real), _array(block, Y, real)
    starts = _array(block, STARTS, np.int32)
    task = fetch_add(block, NEXT)
    while task < block[TASKS]:
        # A tile meets all rows before the next one comes: it stays in the cache.
        place = block[POSITION] + task // block[CHUNKS] * wide, block[STRIDE]
        first = task % block[CHUNKS] * block[CHUNK]
        last = min(first + block[CHUNK], bias.size)
        tile_product(matrix, bias, starts, x, y, place, wide, first, last)
        task = fetch_add(block, NEXT)


@cache
def product_body(real: np.dtype[Any], word: np.dtype[Any], coded: bool, wide: int) -> Any:
    """The body for these dtypes of values and words; ``wide`` of ``TILES``, VECTOR or SKIPPING.

    Compiled when it is first asked for, and kept on disk.
    """
    make = {VECTOR: _vector_body, SKIPPING: _skipping_body}.get(wide, _tile_body)
    return cfunc(types.void(types.voidptr), cache=True)(make(real.type, word.type, coded, wide))


# Their closures hold numbers and dtypes alone: with a compiled function among them, what is kept on
# disk would never be found again.


def _vector_body(real: Any, word: Any, coded: bool, wide: int) -> Any:
    def body(data: Any) -> None:
        block = _carray(data, (FIELDS,), np.int64)
        if coded:
            _vector_tasks(block, _coded(block, real, word), real, wide)
        else:
            _vector_tasks(block, _exact(block, real, word), real, wide)

    return body


def _skipping_body(real: Any, word: Any, coded: bool, wide: int) -> Any:
    def body(data: Any) -> None:
        block = _carray(data, (FIELDS,), np.int64)
        if coded:
            _skipping_tasks(block, _coded(block, real, word), real, wide)
        else:
            _skipping_tasks(block, _exact(block, real, word), real, wide)

    return body


def _tile_body(real: Any, word: Any, coded: bool, wide: int) -> Any:
    def body(data: Any) -> None:
        block = _carray(data, (FIELDS,), np.int64)
        if coded:
            _tile_tasks(block, _coded(block, real, word), real, wide)
        else:
            _tile_tasks(block, _exact(block, real, word), real, wide)

    return body
