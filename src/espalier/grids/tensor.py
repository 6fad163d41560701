"""From numbers and scales to the tensor that a file holds."""

from __future__ import annotations

import numpy as np

from espalier.fixed_point import (
    Block,
    FixedPoint,
    SparseFixedPoint,
    from_groups,
    from_numbers,
    scale_dtype,
    to_groups,
)
from espalier.grids.grid import Grid
from espalier.state import Array, Codebook, CompressedTensor, SparseCodebook, count, storage_dtype


def shared_tensor(
    shape: tuple[int, ...], dtype: str, positions: Array, codes: Array, codebook: Array
) -> CompressedTensor:
    """Shared weights at ``positions``, which may be all there are."""
    narrow = codes.astype(np.uint8 if codebook.size <= 256 else np.uint16)
    if positions.size == count(shape):
        return Codebook(shape, dtype, narrow, codebook)
    return SparseCodebook(shape, dtype, positions.astype(np.int64), narrow, codebook)


def grid_tensor(
    grid: Grid,
    block: Block,
    shape: tuple[int, ...],
    dtype: str,
    numbers: Array,
    scales: Array,
    zeros: Array,
    mask: Array | None,
) -> CompressedTensor:
    """A weight on a grid: fixed point, or a codebook where a block has two scales.

    Parameters
    ----------
    numbers : ndarray, whole numbers, flat
    scales, zeros : ndarray, a row for each block
        Scales in the dtype that the weight is computed in.
    mask : bool ndarray, flat, or None
        True where the weight is kept; None: all are.
    """
    positions = np.arange(numbers.size) if mask is None else np.flatnonzero(mask)
    whole = numbers.astype(np.int32)[positions]
    if grid.parts == 2:
        used, codes = np.unique(whole, return_inverse=True)
        values = grid.values(used[None].astype(scales.dtype), scales, zeros)
        codebook = from_numbers(values.reshape(-1).astype(scales.dtype), dtype)
        return shared_tensor(shape, dtype, positions, codes.reshape(-1), codebook)
    first, stride, levels = grid.numbers
    codes = ((whole - first) // stride).astype(np.uint8 if levels <= 256 else np.uint16)
    wide = storage_dtype(scale_dtype(dtype))
    flat_scales, flat_zeros = scales.reshape(-1).astype(wide), zeros.reshape(-1).astype("<i2")
    fields = (shape, dtype, codes, flat_scales, flat_zeros, block, first, stride, levels)
    return FixedPoint(*fields) if mask is None else SparseFixedPoint(*fields, positions)


def quantized_array(
    grid: Grid, block: Block, values: Array, dtype: str, mask: Array | None = None
) -> CompressedTensor:
    """An array put on a grid, calibrated on itself.

    Parameters
    ----------
    values : ndarray, float32 or float64
        The weight: finite.
    dtype : str
        Of the tensor.
    mask : bool ndarray of that shape, optional
        True where the weight is kept.

    Examples
    --------
    >>> from espalier.grids.methods.ternary import Ternary
    >>> weight = np.array([[0.9, -1.1, 0.1, 0.0]], np.float32)
    >>> quantized_array(Ternary(), (1, 4), weight, "float32").dense().tolist()
    [[1.0, -1.0, 0.0, 0.0]]
    """
    rows = to_groups(values, block)
    kept = to_groups(np.ones(values.shape, np.bool_) if mask is None else mask, block)
    scales, zeros = (part.astype(values.dtype) for part in grid.fit(rows.astype(np.float64), kept))
    numbers = from_groups(grid.round(rows, kept, scales, zeros), values.shape, block)
    flat = None if mask is None else mask.reshape(-1)
    return grid_tensor(grid, block, values.shape, dtype, numbers.reshape(-1), scales, zeros, flat)
