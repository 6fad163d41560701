"""Writing an ``.esp`` file, tensor by tensor."""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, BinaryIO, Self

from espalier.container import layout
from espalier.container.atomic import atomic_write
from espalier.container.layout import Entry, StreamEntry
from espalier.container.ledger import FileRow, Ledger, Measured, TensorRow, row_of
from espalier.entropy.choice import AUTO, Coders, coders_for
from espalier.entropy.coder import EntropyCoder
from espalier.entropy.codes import encode_codes
from espalier.entropy.neighbours import Around
from espalier.entropy.positions import encode_positions
from espalier.entropy.stream import Stream
from espalier.entropy.values import encode_file, encode_values
from espalier.errors import InvalidArgument
from espalier.state import (
    Codebook,
    CompressedModel,
    CompressedTensor,
    Dense,
    Sparse,
    SparseCodebook,
)


def _measure(stream: Stream, histogram: Any = None) -> Measured:
    payload = len(stream.body) - stream.table_bytes
    return Measured(payload, stream.table_bytes, stream.name, histogram)


def encode_tensor(
    tensor: CompressedTensor, coders: Coders
) -> tuple[str, int, dict[str, Stream], dict[str, Measured]]:
    """The kind, the number of levels and the streams of a tensor, and their measures."""
    streams: dict[str, Stream] = {}
    measured: dict[str, Measured] = {}

    def put(name: str, stream: Stream, histogram: Any = None) -> None:
        streams[name] = stream
        measured[name] = _measure(stream, histogram)

    if isinstance(tensor, Codebook | SparseCodebook):
        levels = int(tensor.codebook.size)
        if levels > layout.MAX_LEVELS:
            raise InvalidArgument(f"a codebook of {levels} levels; 65536 is the limit")
        positions = tensor.positions if isinstance(tensor, SparseCodebook) else None
        around = Around(tensor.shape, positions, tensor.codebook, tensor.dtype)
        put("codes", *encode_codes(tensor.codes, levels, coders, around))
        put("codebook", encode_values(tensor.codebook, tensor.dtype, coders, True))
        kind = "codebook"
    elif isinstance(tensor, Dense | Sparse):
        levels = 0
        put("values", encode_values(tensor.values, tensor.dtype, coders))
        kind = "dense"
    else:
        raise InvalidArgument(f"the file has no kind for a {type(tensor).__name__}")
    if isinstance(tensor, Sparse | SparseCodebook):
        beside = sum(len(stream.body) for stream in streams.values())
        positions, shape = tensor.positions, tensor.shape
        put("positions", *encode_positions(positions, tensor.size, coders, beside, shape))
        kind = "sparse codebook" if kind == "codebook" else "sparse"
    return kind, levels, streams, measured


@dataclass(frozen=True, eq=False)
class Encoded:
    """A tensor as it will be written: its entry, still without a name, and its streams.

    ``digest`` is the SHA-256 of the chunk: by it tensors are known that are there already.
    """

    entry: Entry
    streams: tuple[Stream, ...]
    measured: dict[str, Measured]
    digest: bytes


class Writer:
    """Write a file tensor by tensor; nothing is held but the directory.

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
    >>> file = io.BytesIO()
    >>> with Writer(file) as w:
    ...     row = w.add("bias", Dense((3,), "float32", np.array([1, 2, 3], "<f4")))
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
        self._names = layout.Names()
        self._indices: dict[str, int] = {}
        self._known: dict[tuple[Entry, bytes], int] = {}
        self._rows: dict[str, TensorRow] = {}
        self._files: dict[str, FileRow] = {}
        self._aliases: dict[str, str] = {}
        self._offset = 0
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

    def add(self, name: str, tensor: CompressedTensor) -> TensorRow:
        """Write a tensor; returns its row of the ledger."""
        self._check_name(name)
        layout.check_name(name)
        try:
            encoded = self.encode(tensor)
        except InvalidArgument as error:
            raise InvalidArgument(f"tensor {name!r}: {error}") from None
        return self.put(name, encoded)

    def encode(self, tensor: CompressedTensor) -> Encoded:
        """The streams of a tensor, for :meth:`put`. Nothing is written: any thread may call it."""
        if len(tensor.shape) > layout.MAX_DIMS or tensor.size > layout.MAX_ELEMENTS:
            raise InvalidArgument(
                f"shape {tensor.shape} is over the limits of {layout.MAX_DIMS} dimensions and "
                "2**48 elements"
            )
        kind, levels, streams, measured = encode_tensor(tensor, self._coders)
        crc, digest = 0, hashlib.sha256()
        ordered = tuple(streams[stream] for stream in layout.STREAMS[kind])
        for stream in ordered:
            crc = zlib.crc32(stream.body, crc)
            digest.update(stream.body)
        entry = Entry(
            name="",
            kind=kind,
            dtype=tensor.dtype,
            shape=tuple(int(d) for d in tensor.shape),
            stored=tensor.stored,
            levels=levels,
            streams=tuple(StreamEntry(s.method, len(s.body)) for s in ordered),
            crc=crc,
        )
        return Encoded(entry, ordered, measured, digest.digest())

    def put(self, name: str, encoded: Encoded) -> TensorRow:
        """Write a tensor that :meth:`encode` made; returns its row of the ledger."""
        self._check_name(name)
        layout.check_name(name)
        known = encoded.entry, encoded.digest
        index = self._known.setdefault(known, len(self._entries))
        if index < len(self._entries):
            changes: dict[str, Any] = {"kind": layout.COPY, "streams": (), "original": index}
            entry, measured = replace(encoded.entry, name=name, crc=0, **changes), {}
        else:
            entry, measured = replace(encoded.entry, name=name), encoded.measured
            for stream in encoded.streams:
                self._write(stream.body)
        written = layout.encode_entry(entry, self._names)
        self._indices[name] = len(self._entries)
        self._entries.append(written)
        row = self._rows[name] = row_of(entry, len(written), measured)
        return row

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
        layout.check_name(name, "file")
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
                crc=zlib.crc32(stream.body),
            )
            self._write(stream.body)
            written = layout.encode_entry(entry, self._names)
            self._entries.append(written)
            size += len(piece)
            total += len(written) + len(stream.body)
        row = self._files[name] = FileRow(name, size, total)
        return row

    def alias(self, name: str, of: str) -> None:
        """Let ``name`` be a further name of the tensor ``of``, which has been added."""
        self._check_name(name)
        if of not in self._rows:
            raise InvalidArgument(f"alias {name!r} names {of!r}, which is not there")
        layout.check_name(name, "alias")
        self._aliases[name] = of

    @property
    def ledger(self) -> Ledger:
        """Where the bytes went; whole once the block has ended."""
        rows, files = tuple(self._rows.values()), tuple(self._files.values())
        return Ledger(rows, self._offset, dict(self._aliases), files)

    def _finish(self) -> None:
        aliases = {alias: self._indices[name] for alias, name in self._aliases.items()}
        directory = layout.encode_directory(self._entries, self._names, aliases, self.metadata)
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
