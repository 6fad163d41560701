"""Reading an ``.esp`` file: the directory at once, each tensor when it is asked for."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO, NamedTuple, Self, TypeVar

import numpy as np

from espalier.container import layout
from espalier.container.checksum import crc32
from espalier.container.chunks import decode_dense, decode_parts, decode_tensor, measure
from espalier.container.directory import Directory, decode_directory
from espalier.container.layout import Entry
from espalier.container.ledger import FileRow, Ledger, Measured, TensorRow, packed_row, row_of
from espalier.container.remote import is_url, open_url
from espalier.container.small import small_arrays
from espalier.entropy.stream import coder_name
from espalier.errors import (
    CorruptFile,
    FormatError,
    InvalidArgument,
    TruncatedFile,
    UnsupportedVersion,
)
from espalier.state import (
    Array,
    CompressedModel,
    CompressedTensor,
    Dense,
)

T = TypeVar("T")

_TAIL = 1 << 14
"""Bytes read from the end at first: the directories of most files are shorter."""


class Reader:
    """Read a file tensor by tensor; opening it reads the directory only.

    Several threads may read from it.

    Parameters
    ----------
    source : path-like, URL or binary file object
        A file object must be seekable; it is left open. A URL (``https://...``, or another protocol
        of fsspec's) needs the extra ``remote``; of the file only what is asked for is fetched.

    Raises
    ------
    CorruptFile, TruncatedFile, UnsupportedVersion
        With the file, the tensor and the field in the message.
    OSError
        The file cannot be opened or read.

    Examples
    --------
    >>> import io
    >>> import numpy as np
    >>> from espalier.container import write
    >>> from espalier.state import Codebook, CompressedModel
    >>> tensor = Codebook((2, 2), "float32", np.array([0, 1, 1, 0], "u1"), np.array([-1, 1], "<f4"))
    >>> file = io.BytesIO()
    >>> ledger = write(CompressedModel({"w": tensor}), file)
    >>> with Reader(file) as r:
    ...     r.names(), r.tensor("w").dense().tolist()
    (['w'], [[-1.0, 1.0], [1.0, -1.0]])
    """

    def __init__(self, source: str | os.PathLike[str] | BinaryIO) -> None:
        self._lock = threading.Lock()  # of the file's position
        self._scratch = threading.local()
        self._packs: dict[str, _Pack] = {}  # the one of each dtype that was read last
        self._owned = isinstance(source, str | os.PathLike)
        self._file: BinaryIO
        if isinstance(source, str) and is_url(source):
            self.path, self._file = source, open_url(source)
        elif isinstance(source, str | os.PathLike):
            self.path = os.fspath(source)
            self._file = Path(source).open("rb")  # noqa: SIM115 - closed by close()
        else:
            self.path = str(getattr(source, "name", "the file"))
            self._file = source
        try:
            self._directory = self._open()
        except BaseException:
            self.close()
            raise
        self._entries = self._directory.tensors

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, if it was opened here."""
        if self._owned:
            self._file.close()

    # ------------------------------------------------------------ the directory

    def _open(self) -> Directory:
        try:
            directory = self._read_directory()
        except FormatError as error:
            raise type(error)(f"{self.path}: {error}") from None
        return directory

    def _read_directory(self) -> Directory:
        size = self.file_bytes = self._file.seek(0, os.SEEK_END)
        head = self._read(0, min(size, layout.HEADER_BYTES))
        _check_header(head)
        if size < layout.HEADER_BYTES + layout.FOOTER_BYTES:
            raise TruncatedFile(f"{size} bytes are too few for header and footer")
        tail_at = max(layout.HEADER_BYTES, size - _TAIL)
        tail = self._read(tail_at, size - tail_at)
        footer = tail[-layout.FOOTER_BYTES :]
        if footer[8:] != layout.END_MAGIC:
            raise TruncatedFile(
                f"byte {size} is not the end of an .esp file: it was cut short, or added to"
            )
        length = int.from_bytes(footer[:4], "little")
        start = size - layout.FOOTER_BYTES - length
        if start < layout.HEADER_BYTES:
            raise CorruptFile(f"footer: a directory of {length} bytes does not fit in {size}")
        if start >= tail_at:
            data = tail[start - tail_at : len(tail) - layout.FOOTER_BYTES]
        else:
            data = self._read(start, length)
        if layout.footer(data) != footer:
            raise CorruptFile("directory: the checksum does not match")
        directory = decode_directory(data)
        if directory.end != start:
            raise CorruptFile(
                f"directory: chunks end at byte {directory.end}, and it begins at {start}"
            )
        return directory

    def _read(self, offset: int, length: int) -> bytes:
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(length)
        if len(data) != length:
            raise TruncatedFile(f"{length} bytes at {offset} are declared, {len(data)} were read")
        return data

    def names(self) -> list[str]:
        """The names of all tensors, those of tied ones last."""
        return [*self._entries, *self.aliases]

    @property
    def aliases(self) -> Mapping[str, str]:
        """Further names of tied tensors, each mapped to the name it is stored under."""
        return MappingProxyType(self._directory.aliases)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What travels with the weights."""
        return MappingProxyType(self._directory.metadata)

    @property
    def files(self) -> Mapping[str, int]:
        """The files that travel with the tensors, and the bytes of each."""
        files = self._directory.files
        return MappingProxyType({n: sum(p.elements for p in ps) for n, ps in files.items()})

    def file(self, name: str) -> Iterator[bytes]:
        """A file that travels with the tensors, a piece at a time, each checked.

        Examples
        --------
        >>> import io
        >>> from espalier.container import Writer
        >>> stream = io.BytesIO()
        >>> with Writer(stream) as writer:
        ...     row = writer.file("config.json", [b"{}", b"\\n"])
        >>> b"".join(Reader(stream).file("config.json"))
        b'{}\\n'
        """
        if name not in self._directory.files:
            raise InvalidArgument(f"{self.path} has no file {name!r}")
        for piece in self._directory.files[name]:
            yield self._piece(piece)

    def entry(self, name: str) -> Entry:
        """What the directory says of a tensor (shape, dtype, kind), without reading it."""
        try:
            return self._entries[self._directory.aliases.get(name, name)]
        except KeyError:
            raise InvalidArgument(f"{self.path} has no tensor {name!r}") from None

    # ------------------------------------------------------------ tensors

    def tensor(self, name: str) -> CompressedTensor:
        """One tensor; only its own chunk, or its pack, is read, and the checksum verified."""
        return self._decode(self.entry(name))[0]

    def dense(self, name: str) -> Array:
        """``tensor(name).dense()``, without a copy of what was just decoded."""
        return self._dense(self.entry(name))

    def arrays(self) -> dict[str, Array]:
        """Every tensor, dense, in one pass: what :meth:`dense` gives of each name.

        Tied names share one array, and no others do; small ones are parts of one buffer, which is
        kept as long as any of them.

        Examples
        --------
        >>> with Reader("model.esp") as reader:                              # doctest: +SKIP
        ...     state = reader.arrays()
        """
        found: dict[str, Array] = {}
        if self._directory.table is not None:
            found = small_arrays(self._directory.table, self._stretch)
        ordered: dict[str, Array] = {}
        for name in self._entries:
            array = found.get(name)
            ordered[name] = self._array(self._entries[name], ordered) if array is None else array
        return ordered | {alias: ordered[name] for alias, name in self.aliases.items()}

    def _array(self, entry: Entry, before: Mapping[str, Array]) -> Array:
        if entry.kind == layout.COPY:
            return before[self._directory.entries[entry.original].name].copy()
        return self._dense(entry)

    def _stretch(self, start: int, stop: int) -> memoryview | bytes:
        """The bytes of the file from ``start`` to ``stop``, or fewer."""
        if type(self._file) is io.BytesIO:
            return memoryview(self._file.getvalue())[start:stop]
        with self._lock:
            self._file.seek(start)
            return self._file.read(stop - start)

    def slice(self, name: str, index: Any) -> Array:
        """``dense()[index]`` of one tensor: only the rows that are asked for become dense.

        The tensor's own bytes are read whole, since its checksum is over all of them.

        Parameters
        ----------
        name : str
        index : int, slice, Ellipsis, or a tuple of them

        Examples
        --------
        >>> with Reader("model.esp") as reader:                              # doctest: +SKIP
        ...     reader.slice("embedding.weight", slice(100, 200)).shape
        (100, 768)
        """
        return self.tensor(name).slice(index)

    def _chunk(self, entry: Entry) -> memoryview:
        """The bytes of a chunk, checked; they stay until this thread asks for the next one.

        Those of a file in memory are taken where they are, any others into one buffer, always:
        memory fresh from the system must be cleared first, which takes as long as to decode it.
        """
        if type(self._file) is io.BytesIO:
            chunk = memoryview(self._file.getvalue())[entry.offset : entry.offset + entry.length]
            read = len(chunk)
        else:
            chunk, read = self._buffered(entry)
        if read != entry.length:
            raise TruncatedFile(f"{entry.length} bytes are declared, {read} were read")
        if crc32(chunk) != entry.crc:
            raise CorruptFile("the checksum does not match")
        return chunk

    def _buffered(self, entry: Entry) -> tuple[memoryview, int]:
        """A chunk in this thread's buffer, and how many bytes of it could be read."""
        buffer = getattr(self._scratch, "buffer", b"")
        if len(buffer) < entry.length:
            buffer = self._scratch.buffer = np.empty(entry.length, np.uint8)
        chunk = memoryview(buffer)[: entry.length]
        readinto = getattr(self._file, "readinto", None)
        if readinto is None:  # a file object with the least there is
            chunk[:] = self._read(entry.offset, entry.length)
            return chunk, entry.length
        with self._lock:
            self._file.seek(entry.offset)
            read = 0
            while read < entry.length and (n := readinto(chunk[read:])):
                read += n
        return chunk, read

    def _decode(self, entry: Entry) -> tuple[CompressedTensor, dict[str, int]]:
        if entry.kind == layout.COPY:
            return self._decode(self._directory.entries[entry.original])
        if entry.kind == layout.PACKED:
            return Dense(entry.shape, entry.dtype, self._packed(entry)), {}
        return self._read_by(decode_tensor, entry, "tensor", entry.name)

    def _dense(self, entry: Entry) -> Array:
        if entry.kind == layout.COPY:
            return self._dense(self._directory.entries[entry.original])
        if entry.kind == layout.PACKED:
            return self._packed(entry).reshape(entry.shape)
        return self._read_by(decode_dense, entry, "tensor", entry.name)

    def _read_by(
        self, decode: Callable[[Entry, memoryview], T], entry: Entry, what: str, name: str
    ) -> T:
        try:
            return decode(entry, self._chunk(entry))
        except FormatError as error:
            raise type(error)(f"{self.path}: {what} {name!r}: {error}") from None

    def _packed(self, entry: Entry) -> Array:
        """The elements of a tensor that is packed: a new array."""
        pack, start = self._directory.packed[entry.name]
        return self._pack(entry.name, pack).values[start : start + entry.stored].copy()

    def _pack(self, name: str, entry: Entry) -> _Pack:
        """The pack that holds the tensor ``name``, kept until another of the dtype is read."""
        pack = self._packs.get(entry.dtype)
        if pack is None or pack.entry is not entry:
            parts, tables = self._read_by(decode_parts, entry, "pack of tensor", name)
            pack = self._packs[entry.dtype] = _Pack(entry, parts["values"], tables["values"])
        return pack

    def _piece(self, entry: Entry) -> bytes:
        parts, _ = self._read_by(decode_parts, entry, "file", entry.name)
        return parts["values"].tobytes()

    def row(self, name: str) -> TensorRow:
        """The row of one tensor in the ledger; decodes it."""
        entry = self.entry(name)
        if entry.kind == layout.COPY:
            return row_of(entry, entry.header_bytes, {})
        if entry.kind == layout.PACKED:
            return self._packed_row(entry)
        return row_of(entry, entry.header_bytes, measure(entry, *self._decode(entry)))

    def _packed_row(self, entry: Entry) -> TensorRow:
        pack, start = self._directory.packed[entry.name]
        (stream,) = pack.streams
        tables = self._pack(entry.name, pack).tables
        measured = Measured(stream.length - tables, tables, coder_name(stream.method))
        return packed_row(entry, entry.header_bytes, start, pack, pack.header_bytes, measured)

    def ledger(self) -> Ledger:
        """Where the bytes went. Decodes every tensor, one after the other."""
        rows = tuple(self.row(name) for name in self._entries)
        files = tuple(_file_row(name, ps) for name, ps in self._directory.files.items())
        return Ledger(rows, self.file_bytes, dict(self.aliases), files)

    def verify(self) -> None:
        """Check every checksum, decode every tensor and file; raises what :meth:`tensor` does."""
        for entry in self._directory.entries:
            if entry.kind == layout.FILE:
                self._piece(entry)
            elif entry.kind not in (layout.COPY, layout.PACK):  # a pack is read for its tensors
                self._decode(entry)

    def model(self) -> CompressedModel:
        """All tensors."""
        tensors = {name: self.tensor(name) for name in self._entries}
        return CompressedModel(tensors, dict(self.aliases), dict(self.metadata))


class _Pack(NamedTuple):
    """A pack as it was read: its values, and the bytes of tables."""

    entry: Entry
    values: Array
    tables: int


def _file_row(name: str, pieces: tuple[Entry, ...]) -> FileRow:
    size = sum(piece.elements for piece in pieces)
    return FileRow(name, size, sum(piece.header_bytes + piece.length for piece in pieces))


def _check_header(head: bytes) -> None:
    magic = head[: len(layout.MAGIC)]
    if not head:
        raise TruncatedFile("the file is empty")
    if not layout.MAGIC.startswith(magic):
        raise CorruptFile(f"not an .esp file: it begins with {magic!r}, not {layout.MAGIC!r}")
    if len(head) < layout.HEADER_BYTES:
        raise TruncatedFile(f"{len(head)} bytes are too few for a header")
    if head[-1] != layout.VERSION:
        raise UnsupportedVersion(
            f"the file has version {head[-1]}, and this reader knows {layout.VERSION}"
        )


def read(path: str | os.PathLike[str] | BinaryIO) -> CompressedModel:
    """Read a whole file, and check every checksum. See :class:`Reader` for what it raises."""
    with Reader(path) as reader:
        return reader.model()
