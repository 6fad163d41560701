"""Fixed-point tensors: integers, and a scale and a zero point for each block of the tensor.

    element = (number - zero) * scale,  number = first + stride * code

A *block* is what shares a scale: the whole tensor, one output channel, or a group of inputs of one
channel; its dimensions divide those of the tensor. Binary and ternary weights are the same with two
and three numbers: -1 and 1 (first -1, stride 2), and -1, 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from espalier.errors import InvalidArgument
from espalier.floats import widened
from espalier.kernels.gather import gather
from espalier.state import (
    Array,
    CompressedTensor,
    check_codes,
    check_positions,
    positions_within,
    storage_dtype,
)

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""The dtypes that a fixed-point tensor can have."""
MAX_NUMBER = 1 << 16
"""No number is farther from 0; as zero points are 16 bits, differences are exact in float32."""

Block = tuple[int, ...]


def scale_dtype(dtype: str) -> str:
    """The dtype of the scales, and of the arithmetic, of a tensor of ``dtype``."""
    return "float64" if dtype == "float64" else "float32"


def to_numbers(array: Array, dtype: str) -> Array:
    """The values of a float tensor given in its storage dtype: float32, or float64 for float64."""
    values = widened(array, dtype)
    return values if dtype == "float64" else values.astype(np.float32, copy=False)


def from_numbers(values: Array, dtype: str) -> Array:
    """Float values in the storage dtype of ``dtype``, rounded to nearest, ties to even."""
    if dtype != "bfloat16":
        return values.astype(storage_dtype(dtype), copy=False)
    bits = values.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def grid_shape(shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    """How many blocks there are along each dimension; InvalidArgument where they do not fit.

    Examples
    --------
    >>> grid_shape((4, 6), (1, 3))
    (4, 2)
    """
    if len(block) != len(shape) or any(b < 1 or d % b for d, b in zip(shape, block, strict=True)):
        raise InvalidArgument(f"blocks of {block} do not divide a tensor of shape {shape}")
    return tuple(d // b for d, b in zip(shape, block, strict=True))


def to_groups(array: Any, block: Block) -> Any:
    """An array or a tensor as one row for each block: shape (blocks, elements of one).

    Examples
    --------
    >>> to_groups(np.arange(8).reshape(2, 4), (2, 2)).tolist()
    [[0, 1, 4, 5], [2, 3, 6, 7]]
    """
    grid = grid_shape(tuple(array.shape), block)
    rows, size = int(np.prod(grid, dtype=np.int64)), int(np.prod(block, dtype=np.int64))
    if _in_order(array.shape, block):
        return array.reshape(rows, size)
    parts = [n for pair in zip(grid, block, strict=True) for n in pair]
    order = [*range(0, len(parts), 2), *range(1, len(parts), 2)]
    return _permuted(array.reshape(parts), order).reshape(rows, size)


def from_groups(groups: Any, shape: tuple[int, ...], block: Block) -> Any:
    """The inverse of :func:`to_groups`."""
    if _in_order(shape, block):
        return groups.reshape(shape)
    n = len(shape)
    order = [i + n * side for i in range(n) for side in (0, 1)]
    return _permuted(groups.reshape(*grid_shape(shape, block), *block), order).reshape(shape)


def _in_order(shape: tuple[int, ...], block: Block) -> bool:
    """Whether each block lies in memory in one piece."""
    cut = next((i for i, (d, b) in enumerate(zip(shape, block, strict=True)) if b != 1), len(shape))
    return tuple(block[cut + 1 :]) == tuple(shape[cut + 1 :])


def _permuted(array: Any, order: list[int]) -> Any:
    """Of an array of NumPy's or a tensor."""
    return array.transpose(order) if isinstance(array, np.ndarray) else array.permute(order)


@dataclass(frozen=True, eq=False)
class FixedPoint(CompressedTensor):
    """Element i is ``(first + stride * codes[i] - zeros[b]) * scales[b]``, in the block b.

    The product is that of float32, or of float64 for a float64 tensor, rounded to the dtype.

    Attributes
    ----------
    codes : ndarray, uint8 or uint16
        Flat, each below ``levels``.
    scales : ndarray of float32, or of float64 for a float64 tensor
        One for each block, in row-major order; finite and above 0.
    zeros : ndarray of int16
        As many.
    block : tuple of int
        As many dimensions as the shape, each of which they divide.
    first, stride, levels : int
        The numbers are first, first + stride, ..., ``levels`` of them.

    Examples
    --------
    >>> codes = np.array([0, 1, 2, 0, 1, 2], "u1")
    >>> scales, zeros = np.array([0.5, 2], "<f4"), np.zeros(2, "<i2")
    >>> FixedPoint((2, 3), "float32", codes, scales, zeros, (1, 3), -1, 1, 3).dense()
    array([[-0.5,  0. ,  0.5],
           [-2. ,  0. ,  2. ]], dtype=float32)
    """

    codes: Array
    scales: Array
    zeros: Array
    block: Block
    first: int
    stride: int
    levels: int

    @property
    def stored(self) -> int:
        return self.size

    @property
    def axis(self) -> int | None:
        """The dimension of which each index has a scale of its own; None for any other blocks."""
        own = [i for i, (d, b) in enumerate(zip(self.shape, self.block, strict=True)) if b != d]
        return own[0] if len(own) == 1 and self.block[own[0]] == 1 else None

    @property
    def bits(self) -> int:
        """Of an integer that holds any of the numbers."""
        last = self.first + self.stride * max(self.levels - 1, 0)
        return max((-self.first - 1).bit_length() if self.first < 0 else 0, last.bit_length()) + (
            self.first < 0
        )

    def integers(self) -> Array:
        """The numbers: int32, of the tensor's shape; the block's zero point where pruned."""
        return self._numbers(self.codes).reshape(self.shape)

    def _numbers(self, codes: Array) -> Array:
        return codes.astype(np.int32) * np.int32(self.stride) + np.int32(self.first)

    def flat(self, start: int, stop: int) -> Array:
        if start >= stop:
            return np.zeros(0, storage_dtype(self.dtype))
        if self.scales.size == 1:
            table = self._values(np.arange(self.levels), self.zeros[0], self.scales[0])
            return gather(table, self.codes[start:stop])
        each = max(self.size // self.shape[0], 1)
        rows = slice(start // each, -(-stop // each))
        zeros, scales = (self._spread(part, rows) for part in (self.zeros, self.scales))
        codes = self.codes[rows.start * each : rows.stop * each].reshape(zeros.shape)
        flat = self._values(codes, zeros, scales).reshape(-1)
        return flat[start - rows.start * each : stop - rows.start * each]

    def _spread(self, part: Array, rows: slice) -> Array:
        """What blocks have, for each element of these rows: a view of (rows, blocks, block, ...)"""
        grid = grid_shape(self.shape, self.block)
        part = part.reshape(grid)[np.arange(rows.start, rows.stop) // self.block[0]]
        n = len(part)
        pairs = list(zip(grid[1:], self.block[1:], strict=True))
        return np.broadcast_to(
            part.reshape(n, *(i for blocks, _ in pairs for i in (blocks, 1))),
            (n, *(i for pair in pairs for i in pair)),
        )

    def _values(self, codes: Array, zeros: Any, scales: Any) -> Array:
        differences = self._numbers(codes) - zeros
        return from_numbers(differences.astype(self.scales.dtype) * scales, self.dtype)

    def _check(self) -> None:
        if self.dtype not in FLOATS:
            raise InvalidArgument(f"a fixed-point tensor is {', '.join(FLOATS)}, not {self.dtype}")
        self._check_grid()
        check_codes(self.codes, self.levels, self.stored, "levels:")

    def _check_grid(self) -> None:
        blocks = 1
        for n in grid_shape(self.shape, self.block):
            blocks *= n
        wanted = (scale_dtype(self.dtype), "int16")
        for what, part, dtype in zip(
            ("scales", "zeros"), (self.scales, self.zeros), wanted, strict=True
        ):
            if part.ndim != 1 or part.dtype != storage_dtype(dtype) or part.size != blocks:
                raise InvalidArgument(
                    f"{what} must be {blocks} {dtype} for blocks of {self.block}, "
                    f"not {part.dtype} of shape {part.shape}"
                )
        seen = self.scales[:1] if self.scales.strides == (0,) else self.scales
        if not bool(np.all((seen > 0) & np.isfinite(seen))):
            raise InvalidArgument("every scale must be finite and above 0")
        last = self.first + self.stride * max(self.levels - 1, 0)
        if self.stride < 1 or max(-self.first, self.first, last) > MAX_NUMBER:
            raise InvalidArgument(
                f"the numbers {self.first} to {last} in steps of {self.stride} are not within "
                f"-{MAX_NUMBER} and {MAX_NUMBER}"
            )


@dataclass(frozen=True, eq=False)
class SparseFixedPoint(FixedPoint):
    """The same at the kept positions, +0 elsewhere. ``positions``: int64, strictly rising."""

    positions: Array

    @property
    def stored(self) -> int:
        return int(self.positions.size)

    def integers(self) -> Array:
        blocks = self._blocks_at(np.arange(self.size))
        numbers = self.zeros[blocks].astype(np.int32)
        numbers[self.positions] = self._numbers(self.codes)
        return numbers.reshape(self.shape)

    def flat(self, start: int, stop: int) -> Array:
        out = np.zeros(stop - start, storage_dtype(self.dtype))
        part, at = positions_within(self.positions, start, stop)
        block = self._blocks_at(self.positions[part])
        out[at] = self._values(self.codes[part], self.zeros[block], self.scales[block])
        return out

    def _blocks_at(self, positions: Array) -> Array:
        if self.scales.size <= 1:
            return np.zeros(positions.size, np.int64)
        at = np.unravel_index(positions, self.shape)
        blocks = tuple(i // b for i, b in zip(at, self.block, strict=True))
        return np.ravel_multi_index(blocks, grid_shape(self.shape, self.block))

    def _check(self) -> None:
        check_positions(self.positions, self.size)
        super()._check()


__all__ = [
    "FLOATS",
    "Block",
    "FixedPoint",
    "SparseFixedPoint",
    "from_groups",
    "from_numbers",
    "grid_shape",
    "scale_dtype",
    "to_groups",
    "to_numbers",
]
