"""A sparse matrix times a vector or a matrix, straight from its codes.

The nonzeros of a matrix lie in *words*: the low ``bits`` of a word are the code of its value, the
rest is its column within a block of ``width`` columns. So a word of 16 bits holds both for a weight
with 32 values, whose columns go in blocks of 2048. Words are ordered by block, then by row, then by
column; those of row r in block b lie from ``pointers[b * rows + r]`` to the next pointer. With
``bits`` None a word is a column alone, and ``table[i]`` is the value of ``words[i]``; else
``table[code]`` is.

Han et al. 2016 (EIE, arXiv 1602.01528), section 3: y_i = sum_j S[I_ij] x_j over the nonzeros. There
rows are spread over processing elements, and what is zero in x is passed over, column by column, as
:func:`skipping_product` does with the transposed matrix; the others go through the rows one by one.

The kernels trust their input: ``espalier.runtime.packed`` makes it of a weight, and
no file is read into it.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

from espalier.kernels.lanes import add_product, fill, lanes, load, store

Array = NDArray[Any]
Int = Any
Matrix = tuple[Array, Array, Array, Any, Any]
"""words, pointers, table, bits, width"""

_literally: Any = numba.literally  # type: ignore[attr-defined]
_product: Any = njit(cache=True, nogil=True, fastmath={"contract"})
_inlined: Any = njit(cache=True, nogil=True, fastmath={"contract"}, forceinline=True)


@_inlined
def _column(word: Int, base: Int, bits: Int) -> Int:
    if bits is None:
        return base + np.uint64(word)
    return base + (np.uint64(word) >> np.uint64(bits))


@_inlined
def _value(table: Array, i: Int, word: Int, bits: Int) -> Any:
    if bits is None:
        return table[i]
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    return table[np.uint64(word) & mask]


@_inlined
def _term(words: Array, i: Int, table: Array, bits: Int, base: Int, x: Array) -> Any:
    word = words[i]
    return _value(table, i, word, bits) * x[_column(word, base, bits)]


@_product
def vector_product(matrix: Matrix, bias: Array, x: Array, y: Array, first: Int, last: Int) -> None:
    """``y[r] = bias[r] + sum_j W[r, j] x[j]`` for the rows from ``first`` to ``last``.

    Four sums beside each other, since each addition waits for the one before it.
    """
    words, pointers, table, bits, width = matrix
    rows = bias.size
    one, two, three, four = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
    for b in range((pointers.size - 1) // rows):
        base = np.uint64(b * width)
        for r in range(first, last):
            i = np.uint64(pointers[b * rows + r])
            end = np.uint64(pointers[b * rows + r + 1])
            s0 = s1 = s2 = s3 = table.dtype.type(0)
            while i + four <= end:
                s0 += _term(words, i, table, bits, base, x)
                s1 += _term(words, i + one, table, bits, base, x)
                s2 += _term(words, i + two, table, bits, base, x)
                s3 += _term(words, i + three, table, bits, base, x)
                i += four
            while i < end:
                s0 += _term(words, i, table, bits, base, x)
                i += one
            y[r] = (bias[r] if b == 0 else y[r]) + ((s0 + s1) + (s2 + s3))


@_product
def skipping_product(matrix: Matrix, bias: Array, x: Array, y: Array, block: Int) -> None:
    """``y[c] = bias[c] + sum_r W[r, c] x[r]`` for the columns of one block, over nonzero ``x[r]``.

    The matrix is the transposed weight, its columns the outputs. The columns of one row are all
    different, so that four of them can be read before the first is written.
    """
    words, pointers, table, bits, width = matrix
    first = block * width
    for c in range(first, min(first + width, bias.size)):
        y[c] = bias[c]
    base = np.uint64(first)
    one, two, three, four = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
    for r in range(x.size):
        factor = x[r]
        if factor != 0:
            i = np.uint64(pointers[block * x.size + r])
            end = np.uint64(pointers[block * x.size + r + 1])
            while i + four <= end:
                w0, w1, w2, w3 = words[i], words[i + one], words[i + two], words[i + three]
                c0, c1 = _column(w0, base, bits), _column(w1, base, bits)
                c2, c3 = _column(w2, base, bits), _column(w3, base, bits)
                y0 = y[c0] + factor * _value(table, i, w0, bits)
                y1 = y[c1] + factor * _value(table, i + one, w1, bits)
                y2 = y[c2] + factor * _value(table, i + two, w2, bits)
                y3 = y[c3] + factor * _value(table, i + three, w3, bits)
                y[c0], y[c1], y[c2], y[c3] = y0, y1, y2, y3
                i += four
            while i < end:
                y[_column(words[i], base, bits)] += factor * _value(table, i, words[i], bits)
                i += one


@_product
def tile_product(
    matrix: Matrix,
    bias: Array,
    starts: Array,
    x: Array,
    y: Array,
    place: tuple[Int, Int],
    wide: Int,
    first: Int,
    last: Int,
) -> None:
    """``wide`` (a literal) positions at once, where ``place`` is (the first one, the stride).

    ``y[r * stride + p] = bias[r] + sum_j W[r, j] x[starts[j] + p]``: column j of the matrix meets
    the values that follow ``starts[j]``. For a linear layer p is a sample, and ``x`` the transposed
    input; for a convolution p is a place of the padded image, and ``starts`` holds the shifts of
    the kernel's taps, so that no patch is ever copied.
    """
    _literally(wide)
    words, pointers, table, bits, width = matrix
    position, stride = place
    rows = bias.size
    total = lanes(table, wide)
    for b in range((pointers.size - 1) // rows):
        base = np.uint64(b * width)
        for r in range(first, last):
            segment, at_y = b * rows + r, r * stride + position
            if b == 0:
                fill(total, wide, bias[r])
            else:
                load(total, wide, y, at_y)
            for i in range(np.uint64(pointers[segment]), np.uint64(pointers[segment + 1])):
                word = words[i]
                at = np.int64(starts[_column(word, base, bits)]) + position
                add_product(total, wide, _value(table, i, word, bits), x, at)
            store(total, wide, y, at_y)


def dense_reference(matrix: Matrix, shape: tuple[int, int]) -> Array:
    """The matrix that the words stand for, in plain Python."""
    words, pointers, table, bits, width = matrix
    rows, held = shape[0], 0 if bits is None else bits
    dense = np.zeros(shape, table.dtype)
    for segment in range(pointers.size - 1):
        block, row = divmod(segment, rows)
        for i in range(pointers[segment], pointers[segment + 1]):
            word = int(words[i])
            column = block * width + (word >> held)
            dense[row, column] = table[i if bits is None else word & ((1 << held) - 1)]
    return dense
