"""Writing an ``.esp`` file, tensor by tensor."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np

from espalier.container import layout
from espalier.container.atomic import atomic_write
from espalier.container.checksum import crc32
from espalier.container.directory import encode_directory
from espalier.container.encoded import Encoded, encode, measured_of
from espalier.container.layout import Entry, StreamEntry
from espalier.container.ledger import FileRow, Ledger, Measured, TensorRow, packed_row, row_of
from espalier.container.names import Names, check_name
from espalier.entropy.choice import AUTO, coders_for
from espalier.entropy.coder import EntropyCoder
from espalier.entropy.values import encode_file, encode_values
from espalier.errors import InvalidArgument
from espalier.state import CompressedModel, CompressedTensor, storage_dtype


class _Member(NamedTuple):
    """A small tensor that waits for its pack to be written.

    ``head``: bytes of its entry. ``start``: the first of its elements in the pack.
    """

    entry: Entry
    head: int
    start: int
    values: bytes


class Writer:
    """Write a file tensor by tensor; little is held but the directory.

    Small dense tensors of a dtype are held back and coded together, up to 2**16 elements at a time.
    A tensor of which every bit, dtype and shape are those of an earlier one is written as a copy of
    that: a name and a number. It stays a tensor of its own, unlike an alias.

    Parameters
    ----------
    target : path-like or binary file object
        A path is written with :func:`atomic_write`. A file object need not be seekable; it is
        flushed and left open.
    coder : str or EntropyCoder
        ``"auto"``: for each stream the smallest, by measured size, of what ``effort`` tries.
        ``"huffman"`` or ``"fixed"``: the paper's P+Q+H and P+Q. Each stream falls back to fixed
        width where that is smaller; its row in the ledger says so.
    effort : str
        With ``"auto"``: ``"fast"`` tries Huffman, ``"default"`` rANS too, ``"max"`` also adaptive
        coding by neighbours, which is some hundred times slower both ways.
    force : bool
        Overwrite an existing file.

    Attributes
    ----------
    metadata : dict
        JSON values, written when the block ends.

    Raises
    ------
    InvalidArgument
        The file exists, a name is used twice or too long, metadata is not JSON.

    Examples
    --------
    >>> import io
    >>> import numpy as np
    >>> from espalier.container import Reader
    >>> from espalier.state import Dense
    >>> file = io.BytesIO()
    >>> with Writer(file) as w:
    ...     w.add("bias", Dense((3,), "float32", np.array([1, 2, 3], "<f4")))
    ...     w.metadata = {"made by": "an example"}
    >>> w.ledger.file_bytes == len(file.getvalue())
    True
    >>> Reader(file).tensor("bias").dense().tolist()
    [1.0, 2.0, 3.0]
    """

    def __init__(
        self,
        target: str | os.PathLike[str] | BinaryIO,
        coder: str | EntropyCoder[Any] = AUTO,
        force: bool = False,
        *,
        effort: str = "default",
    ) -> None:
        self.metadata: Mapping[str, Any] = {}
        self._coders = coders_for(coder, effort)
        self._target = target
        self._force = force
        self._file: BinaryIO | None = None
        self._stack = contextlib.ExitStack()
        self._entries: list[bytes] = []
        self._names = Names()
        self._indices: dict[str, int] = {}
        self._known: dict[tuple[Entry, int], int] = {}
        self._packs: dict[str, list[_Member]] = {}
        self._rows: dict[str, TensorRow | Callable[[], TensorRow] | None] = {}
        self._files: dict[str, FileRow] = {}
        self._aliases: dict[str, str] = {}
        self._offset = 0
        self._features: set[str] = set()
        self._done = False

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            if isinstance(self._target, str | os.PathLike):
                writing = atomic_write(self._target, force=self._force)
                self._file = stack.enter_context(writing)
            else:
                self._file = self._target
            self._write(layout.header())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            if error is not None:
                # Handed in, so that the temporary file is removed.
                self._stack.__exit__(kind, error, trace)
                return
            self._finish()

    def _write(self, data: bytes) -> None:
        self._opened().write(data)
        self._offset += len(data)

    def _opened(self) -> BinaryIO:
        if self._file is None or self._done:
            raise InvalidArgument("a Writer writes inside its with block only")
        return self._file

    def _check_name(self, name: str) -> None:
        self._opened()
        if name in self._rows or name in self._aliases:
            raise InvalidArgument(f"two tensors are called {name!r}")
        check_name(name)

    def add(self, name: str, tensor: CompressedTensor) -> None:
        """Write a tensor."""
        self._check_name(name)
        try:
            encoded = self.encode(tensor)
        except InvalidArgument as error:
            raise InvalidArgument(f"tensor {name!r}: {error}") from None
        self._put(name, encoded)

    def encode(self, tensor: CompressedTensor) -> Encoded:
        """The streams of a tensor, for :meth:`put`. Nothing is written: any thread may call it."""
        return encode(tensor, self._coders)

    def put(self, name: str, encoded: Encoded) -> None:
        """Write a tensor that :meth:`encode` made."""
        self._check_name(name)
        self._put(name, encoded)

    def _put(self, name: str, encoded: Encoded) -> None:
        named = Entry(name, *encoded.entry[1:])
        self._indices[name] = len(self._entries)
        known = encoded.entry, encoded.digest
        index = self._known.setdefault(known, len(self._entries))
        if index < len(self._entries):
            changes: dict[str, Any] = {"kind": layout.COPY, "streams": (), "original": index}
            self._row(named._replace(crc=0, **changes), {})
        elif encoded.values is not None:
            self._pack(named, encoded.values)
        else:
            for stream in encoded.streams:
                self._write(stream.body)
            self._row(named, encoded.measured)

    def _row(self, entry: Entry, measured: dict[str, Measured]) -> None:
        """Put an entry into the directory, and its row into the ledger."""
        row = partial(row_of, entry, self._enter(entry), measured)
        # Histograms are large: what a row needs of them is taken at once.
        large = any(stream.histogram is not None for stream in measured.values())
        self._rows[entry.name] = row() if large else row

    def _enter(self, entry: Entry) -> int:
        """Put an entry into the directory: the bytes that it takes."""
        written = layout.encode_entry(entry, self._names)
        if entry.kind in layout.ON_GRID:
            self._features.add(layout.GRID)
        self._entries.append(written)
        return len(written)

    def _pack(self, entry: Entry, values: bytes) -> None:
        """Put a small tensor into the pack of its dtype, and write that if it may be full."""
        self._rows[entry.name] = None
        members = self._packs.setdefault(entry.dtype, [])
        start = members[-1].start + members[-1].entry.stored if members else 0
        members.append(_Member(entry, self._enter(entry), start, values))
        if start + entry.stored + layout.SMALL > layout.MAX_PACK:
            self._write_pack(entry.dtype)

    def _write_pack(self, dtype: str) -> None:
        members = self._packs.pop(dtype)
        held = b"".join([member.values for member in members])
        values = np.frombuffer(held, storage_dtype(dtype))
        stream = encode_values(values, dtype, self._coders)
        method = StreamEntry(stream.method, len(stream.body))
        crc, n = crc32(stream.body), values.size
        pack = Entry("", layout.PACK, dtype, (n,), n, 0, (method,), crc)
        self._write(stream.body)
        whole = pack, self._enter(pack), measured_of(stream)
        for entry, own, start, _ in members:
            self._rows[entry.name] = partial(packed_row, entry, own, start, *whole)

    def file(self, name: str, data: Iterable[bytes]) -> FileRow:
        """Write a file that is no tensor, a piece at a time; returns its row of the ledger.

        Parameters
        ----------
        name : str
            Its path. Files have names of their own: a tensor may be called the same.
        data : iterable of bytes
            Of any lengths.
        """
        if name in self._files:
            raise InvalidArgument(f"two files are called {name!r}")
        check_name(name, "file")
        size = total = 0
        for piece in _pieces(data):
            stream = encode_file(piece, self._coders)
            method = StreamEntry(stream.method, len(stream.body))
            entry = Entry(
                name=name,
                kind=layout.FILE,
                dtype="uint8",
                shape=(len(piece),),
                stored=len(piece),
                levels=0,
                streams=(method,),
                crc=crc32(stream.body),
            )
            self._write(stream.body)
            size += len(piece)
            total += self._enter(entry) + len(stream.body)
        row = self._files[name] = FileRow(name, size, total)
        return row

    def alias(self, name: str, of: str) -> None:
        """Let ``name`` be a further name of the tensor ``of``, which has been added."""
        self._check_name(name)
        if of not in self._rows:
            raise InvalidArgument(f"alias {name!r} names {of!r}, which is not there")
        self._aliases[name] = of

    @property
    def ledger(self) -> Ledger:
        """Where the bytes went; whole once the block has ended."""
        rows: list[TensorRow] = []
        for name, row in self._rows.items():
            if row is not None:
                made = self._rows[name] = row() if callable(row) else row
                rows.append(made)
        return Ledger(tuple(rows), self._offset, dict(self._aliases), tuple(self._files.values()))

    def _finish(self) -> None:
        for dtype in list(self._packs):
            self._write_pack(dtype)
        aliases = {alias: self._indices[name] for alias, name in self._aliases.items()}
        directory = encode_directory(
            self._entries, self._names, aliases, self.metadata, sorted(self._features)
        )
        if len(directory) >= 1 << 32:
            raise InvalidArgument(
                f"the directory is {len(directory)} bytes; 2**32 - 1 is the limit"
            )
        self._write(directory)
        self._write(layout.footer(directory))
        if self._file is not None:
            self._file.flush()
        self._done = True


def _pieces(data: Iterable[bytes]) -> Iterable[bytes]:
    """``data`` in pieces of ``layout.PIECE`` bytes and a shorter last one, if only of 0 bytes."""
    left = b""
    some = False
    for part in data:
        left += part
        while len(left) > layout.PIECE:
            yield left[: layout.PIECE]
            left, some = left[layout.PIECE :], True
    if left or not some:
        yield left


def write(
    model: CompressedModel,
    path: str | os.PathLike[str] | BinaryIO,
    *,
    coder: str | EntropyCoder[Any] = AUTO,
    effort: str = "default",
    force: bool = False,
) -> Ledger:
    """Write a whole model; returns the ledger. See :class:`Writer` for the parameters."""
    with Writer(path, coder, force, effort=effort) as writer:
        writer.metadata = dict(model.metadata)
        for name, tensor in model.tensors.items():
            writer.add(name, tensor)
        for name, of in model.aliases.items():
            writer.alias(name, of)
    return writer.ledger
