"""A directory as a kernel reads it: a table of integers, of which entries are made when asked for.

``espalier.container.directory`` reads every directory, this module those that are long, plain and
sound. What is in them is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from espalier.container.layout import (
    COPY,
    DTYPE_NAMES,
    FILE,
    HEADER_BYTES,
    KIND_NAMES,
    KINDS,
    MAX_ELEMENTS,
    MAX_LEVELS,
    MAX_PACK,
    ON_GRID,
    PACK,
    PACKED,
    SHARED,
    SPARSE,
    STREAMS,
    Entry,
    StreamEntry,
)
from espalier.container.names import MAX_NAME_BYTES, Names
from espalier.entropy.positions import FREE
from espalier.kernels import records as kernel
from espalier.kernels.bitpack import bytes_of, frozen

Array = NDArray[Any]

_TEXT = 16
"""Bytes of names that each byte of a directory may unfold to; beyond that, it is not plain."""


def _traits(kind: str) -> int:
    if kind == FILE or kind in ON_GRID:
        return -1
    flags = {COPY: kernel.COPY, PACK: kernel.IS_PACK, PACKED: kernel.PACKED}.get(kind, 0)
    flags |= kernel.SPARSE * (kind in SPARSE) | kernel.SHARED * (kind in SHARED)
    return len(STREAMS[kind]) | flags


KIND_TRAITS = frozen(
    np.array([_traits(KIND_NAMES[i]) if i in KIND_NAMES else -1 for i in range(16)], np.int64)
)
"""What the kernels know of each kind; -1 for those that are given up."""
_LIMITS = MAX_ELEMENTS, MAX_LEVELS, MAX_PACK, FREE


class Table:
    """The entries of a directory.

    Attributes
    ----------
    records : int64 array, shape (entries, FIELDS)
        See :mod:`espalier.kernels.records`.
    dims : int64 array
        The dimensions of all entries.
    entries : sequence of Entry
    tensors, packed : mapping
        As in :class:`espalier.container.directory.Directory`.
    at, end : int
        The bytes after the last entry and after the last chunk.
    """

    def __init__(
        self, records: Array, dims: Array, text: list[str], rests: list[bytes], at: int, end: int
    ) -> None:
        self.records, self.dims, self.at, self.end = records, dims, at, end
        self.text = text
        self._rests = rests
        self._made: list[Entry | None] = [None] * len(text)
        self.entries = _Entries(self)
        kinds = records[:, kernel.KIND].tolist()
        names = zip(text, kinds, strict=True)
        self.index = {name: i for i, (name, kind) in enumerate(names) if kind != KINDS[PACK]}
        self.tensors = _Tensors(self)
        self.packed = _Packed(self)

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each entry."""
        number, at = self.records[:, kernel.DIMS], self.records[:, kernel.DIMS_AT]
        dims = self.dims[: (at + number).max()].tolist()
        return [tuple(dims[a : a + n]) for n, a in zip(number.tolist(), at.tolist(), strict=True)]

    def names(self) -> Names:
        """What the names after those of the entries are told by."""
        return Names.after(self.text[-1].encode(), self._rests)

    def entry(self, i: int) -> Entry:
        """Entry ``i``, made once."""
        found = self._made[i]
        if found is None:
            found = self._made[i] = self._make(i)
        return found

    def _make(self, i: int) -> Entry:
        row = self.records[i].tolist()
        kind, streams = KIND_NAMES[row[kernel.KIND]], row[kernel.METHODS :]
        number = len(STREAMS[kind])
        return Entry(
            self.text[i],
            kind,
            DTYPE_NAMES[row[kernel.DTYPE]],
            self.shapes[i],
            row[kernel.STORED],
            row[kernel.LEVELS],
            tuple([StreamEntry(*streams[2 * k : 2 * k + 2]) for k in range(number)]),
            row[kernel.CRC],
            row[kernel.OFFSET],
            row[kernel.HEADER_BYTES],
            row[kernel.ORIGINAL],
        )


class _Entries(Sequence[Entry]):
    def __init__(self, table: Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table.text)

    @overload
    def __getitem__(self, i: int) -> Entry: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[Entry, ...]: ...
    def __getitem__(self, i: int | slice) -> Entry | tuple[Entry, ...]:
        if isinstance(i, slice):
            return tuple([self._table.entry(k) for k in range(*i.indices(len(self)))])
        return self._table.entry(range(len(self))[i])


class _Tensors(Mapping[str, Entry]):
    def __init__(self, table: Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table.index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.index)

    def __contains__(self, name: object) -> bool:
        return name in self._table.index

    def __getitem__(self, name: str) -> Entry:
        return self._table.entry(self._table.index[name])


class _Packed(Mapping[str, tuple[Entry, int]]):
    def __init__(self, table: Table) -> None:
        self._table = table

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        table = self._table
        pack, start = table.records[:, [kernel.PACK, kernel.START]].T.tolist()
        return {name: (pack[i], start[i]) for name, i in table.index.items() if pack[i] >= 0}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __getitem__(self, name: str) -> tuple[Entry, int]:
        pack, start = self._places[name]
        return self._table.entry(pack), start


def read_table(data: bytes, at: int, number: int) -> Table | None:
    """The ``number`` entries from byte ``at`` of a directory on; None if it is not plain or sound.

    Memory is a fixed multiple of the directory's length.
    """
    if not number:
        return None
    size = len(data)
    records = np.empty((number, kernel.FIELDS), np.int64)
    dims, rests = np.empty(size, np.int64), np.empty((number, 2), np.int64)
    text = np.empty(_TEXT * size + 1, np.uint8)
    fields = bytes_of(data), at, HEADER_BYTES, KIND_TRAITS, _LIMITS, MAX_NAME_BYTES
    at, end, known, used = kernel.read_entries(*fields, records, dims, rests, text)
    if at < 0:
        return None
    try:
        names = text[1 : used - 1].tobytes().decode("utf-8").split("\0")
    except UnicodeDecodeError:
        return None
    places = rests[:known].tolist()
    table = Table(records, dims, names, [data[a : a + n] for a, n in places], at, end)
    packs = int(np.count_nonzero(records[:, kernel.KIND] == KINDS[PACK]))
    return table if len(table.index) + packs == number else None
