"""A sparse matrix in memory as it is in the file: positions and codes, no more than they need."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from espalier.errors import InvalidArgument
from espalier.kernels import product_tasks as tasks
from espalier.kernels.product_tasks import FIELDS, TILES, product_body
from espalier.runtime.threads import run
from espalier.state import Array

REALS = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}
"""What the kernels compute in."""

_Block: TypeAlias = "ctypes.Array[ctypes.c_int64]"
_TENSORS = (tasks.X, tasks.Y, tasks.BIAS, tasks.STARTS)
_TASKS_PER_THREAD = 8
_WORK_OF_A_THREAD = 1 << 14
"""Products below which a second thread would wait longer than it works."""


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """The nonzeros of a matrix as words of column and code, with the codebook beside them.

    Layout and algebra: :mod:`espalier.kernels.sparse_product`.

    Attributes
    ----------
    shape : (int, int)
        Rows and columns.
    words : uint16 or uint32 array, shape (nonzeros,)
    pointers : int32 array, shape (blocks * rows + 1,)
    table : float32 or float64 array
        The codebook; without codes, the value of each nonzero.
    bits : int or None
        Of a code; None without codes.
    width : int
        Columns in a block.

    Examples
    --------
    >>> matrix = PackedMatrix.of(torch.tensor([[0.0, 2.0, 0.0], [2.0, 0.0, -1.0]]))
    >>> matrix.table.tolist(), matrix.bits, matrix.nonzeros
    ([-1.0, 2.0], 1, 3)
    >>> matrix.dense().tolist()
    [[0.0, 2.0, 0.0], [2.0, 0.0, -1.0]]
    """

    shape: tuple[int, int]
    words: Array
    pointers: Array
    table: Array
    bits: int | None
    width: int

    @classmethod
    def of(cls, weight: Tensor, blocks: int = 1) -> PackedMatrix:
        """Pack the nonzeros of ``weight``, a matrix on the CPU, in float32 or float64.

        There are ``blocks`` blocks of columns or more, if there are as many columns.

        Raises
        ------
        InvalidArgument
            Another dtype, or 2**31 nonzeros and more.
        """
        if weight.dim() != 2 or weight.dtype not in REALS:
            raise InvalidArgument(
                f"a matrix in float32 or float64 can be packed, not {weight.dim()} dimensions in "
                f"{weight.dtype}"
            )
        dense = weight.detach().cpu().contiguous().numpy()
        rows, columns = np.nonzero(dense)
        if rows.size >= 1 << 31:
            raise InvalidArgument(f"{rows.size} nonzeros are too many for pointers of 32 bits")
        values = dense[rows, columns]
        table, codes = np.unique(values, return_inverse=True)
        bits = max(0, int(table.size) - 1).bit_length()
        coded = _Layout.of(dense.shape, values.size, bits, blocks)
        exact = _Layout.of(dense.shape, values.size, 0, blocks)
        if coded.nbytes + table.nbytes > exact.nbytes + values.nbytes:
            return cls._packed(dense.shape, exact, rows, columns, values, None)
        return cls._packed(dense.shape, coded, rows, columns, table, codes)

    @classmethod
    def _packed(
        cls,
        shape: tuple[int, int],
        layout: _Layout,
        rows: Array,
        columns: Array,
        table: Array,
        codes: Array | None,
    ) -> PackedMatrix:
        block, within = np.divmod(columns, layout.width)
        segment = block * shape[0] + rows
        order = np.argsort(segment, kind="stable") if layout.blocks > 1 else slice(None)
        words = within << layout.bits
        if codes is None:
            table = table[order]
        else:
            words |= codes.reshape(-1)
        counts = np.bincount(segment, minlength=layout.blocks * shape[0])
        return cls(
            (int(shape[0]), int(shape[1])),
            words[order].astype(layout.word),
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
            np.ascontiguousarray(table),
            None if codes is None else layout.bits,
            layout.width,
        )

    @property
    def nonzeros(self) -> int:
        return int(self.words.size)

    @property
    def nbytes(self) -> int:
        """Bytes in memory: words, pointers and table."""
        return int(self.words.nbytes + self.pointers.nbytes + self.table.nbytes)

    def dense(self) -> Tensor:
        """The matrix itself."""
        dense = np.zeros(self.shape, self.table.dtype)
        held = self.bits or 0
        segments = np.repeat(np.arange(self.pointers.size - 1), np.diff(self.pointers))
        words = self.words.astype(np.int64)
        rows = max(1, self.shape[0])
        values = self.table if self.bits is None else self.table[words & ((1 << held) - 1)]
        dense[segments % rows, segments // rows * self.width + (words >> held)] = values
        return torch.from_numpy(dense)

    def times_vector(self, x: Tensor, bias: Tensor, threads: int) -> Tensor:
        """``W x + bias`` for a contiguous vector of the columns."""
        y = torch.empty(self.shape[0], dtype=x.dtype)
        self._run(tasks.VECTOR, 1, 0, (x, y, bias, None), threads)
        return y

    def skipping(self, x: Tensor, y: Tensor, bias: Tensor, threads: int) -> None:
        """``y = x W + bias`` for a contiguous vector of the rows, over its nonzeros alone."""
        block = self._filled((x, y, bias, None))
        block[tasks.TASKS] = (self.pointers.size - 1) // max(1, self.shape[0])
        self._share(tasks.SKIPPING, block, min(threads, self._useful_threads(1)))

    def times_tiles(
        self, x: Tensor, starts: Tensor, positions: int, bias: Tensor, threads: int
    ) -> Tensor:
        """``y[r, p] = bias[r] + sum_j W[r, j] x[starts[j] + p]`` for p below ``positions``.

        Parameters
        ----------
        x : Tensor, contiguous
            Long enough that every start has :func:`padded` ``(positions)`` values behind it.
        starts : int32 Tensor, one for each column

        Returns
        -------
        Tensor, shape (rows, padded(positions))
            What lies beyond ``positions`` means nothing.
        """
        y = torch.empty(self.shape[0], padded(positions), dtype=x.dtype)
        begin = 0
        for wide in TILES:
            tiles = (y.shape[1] - begin) // wide
            if tiles:
                self._run(wide, tiles, begin, (x, y, bias, starts), threads)
            begin += tiles * wide
        return y

    def _run(
        self,
        wide: int,
        tiles: int,
        begin: int,
        tensors: tuple[Tensor, Tensor, Tensor, Tensor | None],
        threads: int,
    ) -> None:
        """Put the block of a body together, and let threads work on it."""
        rows = self.shape[0]
        if not rows:
            return
        threads = min(threads, self._useful_threads(wide * tiles))
        pieces = -(-_TASKS_PER_THREAD * threads // tiles) if threads > 1 else 1
        chunk = -(-rows // min(pieces, rows))
        chunks = -(-rows // chunk)
        block = self._filled(tensors)
        block[tasks.CHUNK], block[tasks.CHUNKS] = chunk, chunks
        block[tasks.TASKS] = chunks * tiles
        block[tasks.POSITION], block[tasks.STRIDE] = begin, tensors[1].shape[-1]
        self._share(wide, block, threads)

    def _useful_threads(self, positions: int) -> int:
        return 1 + int(self.words.size) * positions // _WORK_OF_A_THREAD

    def _filled(self, tensors: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> _Block:
        block = type(self._block).from_buffer_copy(self._block)
        for field, tensor in zip(_TENSORS, tensors, strict=True):
            if tensor is not None:
                block[field], block[field + 1] = tensor.data_ptr(), tensor.numel()
        return block

    def _share(self, wide: int, block: _Block, threads: int) -> None:
        body = product_body(self.table.dtype, self.words.dtype, self.bits is not None, wide)
        run(body.address, ctypes.addressof(block), threads)

    @cached_property
    def _block(self) -> _Block:
        """What is the same in the block of every product."""
        block = (ctypes.c_int64 * FIELDS)()
        block[tasks.BITS], block[tasks.WIDTH] = self.bits or 0, self.width
        arrays = (
            (tasks.WORDS, self.words),
            (tasks.POINTERS, self.pointers),
            (tasks.TABLE, self.table),
        )
        for field, array in arrays:
            block[field], block[field + 1] = array.ctypes.data, array.size
        return block

    def __reduce__(self) -> tuple[Any, ...]:
        # Not the block: its addresses are those of this process.
        return PackedMatrix, (
            self.shape,
            self.words,
            self.pointers,
            self.table,
            self.bits,
            self.width,
        )


def padded(positions: int) -> int:
    """``positions`` rounded up to whole tiles.

    Examples
    --------
    >>> [padded(n) for n in (1, 8, 9, 32, 40, 41)]
    [8, 8, 32, 32, 40, 64]
    """
    *_, middle, small = TILES
    whole, rest = divmod(positions, middle)
    tail = small if rest <= small else middle  # two small tiles take longer than a middle one
    return whole * middle + (tail if rest else 0)


@dataclass(frozen=True)
class _Layout:
    """How wide the words are, and what they and their pointers take."""

    word: np.dtype[Any]
    bits: int
    width: int
    blocks: int
    nbytes: int

    @classmethod
    def of(cls, shape: tuple[int, int], nonzeros: int, bits: int, least: int) -> _Layout:
        """The words that take the least memory, with ``bits`` for a code."""
        made = []
        for word in (np.dtype(np.uint16), np.dtype(np.uint32)):
            column_bits = 8 * word.itemsize - bits
            if column_bits > 0:
                width = min(1 << column_bits, max(1, -(-shape[1] // least)))
                blocks = max(1, -(-shape[1] // width))
                size = nonzeros * word.itemsize + 4 * (blocks * shape[0] + 1)
                made.append(cls(word, bits, width, blocks, size))
        return min(made, key=lambda layout: layout.nbytes)
