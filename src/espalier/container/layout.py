"""The bytes of an ``.esp`` file, field by field; ``SPEC.md`` is the contract.

A file is a header, a chunk for each tensor, a directory and a footer. Everything that describes
the tensors is in the directory at the end, so that a file can be written as a stream, and read with
two reads over a network plus one for each tensor that is wanted. Chunks follow each other without
gaps in the order of the directory, which stores their lengths only: there is no offset that could
lie, overlap or leave a hole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from espalier.container.checksum import crc32
from espalier.container.names import Names
from espalier.entropy.cursor import Cursor, varint
from espalier.entropy.positions import FREE
from espalier.errors import CorruptFile, FormatError, InvalidArgument
from espalier.fixed_point import FLOATS, MAX_NUMBER, grid_shape
from espalier.state import count

MAGIC = b"\x89ESP\r\n\x1a\n"
"""As PNG does: not text, not UTF-8, and broken by every conversion of line ends."""
VERSION = 2
HEADER_BYTES = len(MAGIC) + 1
END_MAGIC = b"\x89esp"
FOOTER_BYTES = 4 + 4 + len(END_MAGIC)

GRID = "fixed-point"
"""Name of the feature of files with fixed-point tensors."""
FEATURES: frozenset[str] = frozenset({GRID})
"""Names of the required features beyond version 2 that this reader has."""

COPY = "copy"
"""Kind of a tensor that has every bit of an earlier one, and no chunk."""
FILE = "file"
"""Kind of a piece of a file that is no tensor, such as a tokenizer beside the weights."""
PACK = "pack"
"""Kind of the values of many small tensors of one dtype, one after the other."""
PACKED = "packed"
"""Kind of a tensor whose values are some of a pack's."""
KINDS = {
    "dense": 1,
    "sparse": 2,
    "codebook": 3,
    "sparse codebook": 4,
    COPY: 5,
    FILE: 6,
    PACK: 7,
    PACKED: 8,
    "fixed point": 9,
    "sparse fixed point": 10,
}
KIND_NAMES = {number: name for name, number in KINDS.items()}
SPARSE = ("sparse", "sparse codebook", "sparse fixed point")
ON_GRID = ("fixed point", "sparse fixed point")
SHARED = ("codebook", "sparse codebook", *ON_GRID)
"""Kinds with codes."""
STREAMS = {
    "dense": ("values",),
    "sparse": ("positions", "values"),
    "codebook": ("codes", "codebook"),
    "sparse codebook": ("positions", "codes", "codebook"),
    COPY: (),
    FILE: ("values",),
    PACK: ("values",),
    PACKED: (),
    "fixed point": ("codes", "scales", "zeros"),
    "sparse fixed point": ("positions", "codes", "scales", "zeros"),
}
"""The streams of each kind, in the order of the chunk."""
_STREAM_FIELDS = {
    kind: tuple((f"{stream}: method", f"{stream}: length") for stream in streams)
    for kind, streams in STREAMS.items()
}

DTYPE_IDS = {
    "float32": 1,
    "float16": 2,
    "bfloat16": 3,
    "float64": 4,
    "float8_e4m3fn": 5,
    "float8_e5m2": 6,
    "int8": 7,
    "int16": 8,
    "int32": 9,
    "int64": 10,
    "uint8": 11,
    "uint16": 12,
    "uint32": 13,
    "uint64": 14,
    "bool": 15,
    "complex64": 16,
    "complex128": 17,
}
DTYPE_NAMES = {number: name for name, number in DTYPE_IDS.items()}

MAX_DIMS = 15
MAX_ELEMENTS = 1 << 48
MAX_LEVELS = 1 << 16
PIECE = 1 << 22
"""Bytes of the pieces that files are written in."""
MAX_PIECE = 1 << 24
SMALL = 1 << 12
"""Dense tensors of fewer elements are packed."""
MAX_PACK = 1 << 16
"""Elements of a pack."""

ALIASES = 1
METADATA = 2


class StreamEntry(NamedTuple):
    """Of one stream, what the directory says: its method byte and its length."""

    method: int
    length: int


class Numbers(NamedTuple):
    """Of a fixed-point tensor: the numbers that its codes stand for, and its blocks."""

    first: int
    stride: int
    block: tuple[int, ...]


class Entry(NamedTuple):
    """Of one tensor, what the directory says.

    ``streams`` are in the order of :data:`STREAMS`. ``offset`` and ``header_bytes`` are not stored:
    they follow from the entries before, and from the entry itself. ``original`` is the index, from
    0, of the entry that a copy has everything from but its name; -1 for any other kind. ``numbers``
    are a fixed-point tensor's.
    """

    name: str
    kind: str
    dtype: str
    shape: tuple[int, ...]
    stored: int
    levels: int
    streams: tuple[StreamEntry, ...]
    crc: int
    offset: int = 0
    header_bytes: int = 0
    original: int = -1
    numbers: Numbers | None = None

    @property
    def blocks(self) -> int:
        """How many scales a fixed-point tensor has."""
        return count(grid_shape(self.shape, self.numbers.block)) if self.numbers else 0

    @property
    def length(self) -> int:
        """Bytes of the chunk."""
        return sum([stream.length for stream in self.streams])

    @property
    def elements(self) -> int:
        """Elements of the dense tensor."""
        return count(self.shape)


def header() -> bytes:
    """The first bytes of every file."""
    return MAGIC + bytes([VERSION])


def footer(directory: bytes) -> bytes:
    """The last bytes of a file with that directory; the checksum covers header and length too."""
    length = len(directory).to_bytes(4, "little")
    crc = crc32(length, crc32(directory, crc32(header())))
    return length + crc.to_bytes(4, "little") + END_MAGIC


def encode_entry(entry: Entry, names: Names) -> bytes:
    """Write an entry; ``names`` are those before it."""
    parts = [names.encode(entry.name)]
    if entry.kind == COPY:
        return b"".join([*parts, bytes([KINDS[COPY]]), varint(entry.original)])
    parts.append(bytes([KINDS[entry.kind] | len(entry.shape) << 4, DTYPE_IDS[entry.dtype]]))
    parts += map(varint, entry.shape)
    if entry.kind == PACKED:
        return b"".join(parts)
    if entry.kind in SPARSE:
        parts.append(varint(entry.stored))
    if entry.kind in SHARED:
        parts.append(varint(entry.levels))
    if entry.numbers is not None:
        first, stride, block = entry.numbers
        parts += map(varint, (2 * first if first >= 0 else -2 * first - 1, stride, *block))
    for stream in entry.streams:
        parts += [bytes([stream.method]), varint(stream.length)]
    parts.append(entry.crc.to_bytes(4, "little"))
    return b"".join(parts)


def decode_entry(cursor: Cursor, names: Names, offset: int, before: Sequence[Entry]) -> Entry:
    """Read what :func:`encode_entry` wrote; the chunk begins at ``offset``.

    ``before``: the entries before this one.
    """
    start = cursor.at
    name = names.decode(cursor)
    try:
        kind_and_dims = cursor.u8("kind")
        if kind_and_dims == KINDS[COPY]:
            return _decode_copy(cursor, name, offset, start, before)
        return _decode_fields(cursor, name, kind_and_dims, offset, start)
    except FormatError as error:
        raise type(error)(f"tensor {name!r}: {error}") from None


def _decode_copy(
    cursor: Cursor, name: str, offset: int, start: int, before: Sequence[Entry]
) -> Entry:
    index = cursor.varint("original")
    if index >= len(before):
        raise CorruptFile(f"it is a copy of entry {index}, and {len(before)} are before it")
    _, kind, dtype, shape, stored, levels, *_ = of = before[index]
    if kind in (COPY, FILE, PACK):
        raise CorruptFile(f"it is a copy of entry {index}, which is a {kind}")
    size = cursor.at - start
    fields = (name, COPY, dtype, shape, stored, levels, (), 0, offset, size, index)
    return Entry(*fields, numbers=of.numbers)


def _decode_fields(cursor: Cursor, name: str, kind_and_dims: int, offset: int, start: int) -> Entry:
    number, dims = kind_and_dims & 15, kind_and_dims >> 4
    if number not in KIND_NAMES:
        raise CorruptFile(f"kind {number} is not known; known are {KIND_NAMES}")
    kind = KIND_NAMES[number]
    if kind == COPY:
        raise CorruptFile(f"it is a copy and has {dims} dimensions of its own")
    dtype = DTYPE_NAMES.get(found := cursor.u8("dtype"))
    if dtype is None:
        raise CorruptFile(f"dtype {found} is not known; known are 1 to {len(DTYPE_NAMES)}")
    shape = tuple([cursor.varint("dimension", MAX_ELEMENTS) for _ in range(dims)])
    elements = count(shape)
    if elements > MAX_ELEMENTS:
        raise CorruptFile(f"shape {shape} has {elements} elements, over the limit of 2**48")
    if kind == PACKED:
        size = cursor.at - start
        return Entry(name, kind, dtype, shape, elements, 0, (), 0, offset, size)
    _check_kind(name, kind, dtype, shape)
    stored, levels = elements, 0
    if kind in SPARSE:
        stored = cursor.varint("kept elements", elements)
    if kind in SHARED:
        levels = cursor.varint("levels", MAX_LEVELS)
    numbers = _decode_numbers(cursor, dtype, shape, levels) if kind in ON_GRID else None
    streams = tuple(
        [StreamEntry(cursor.u8(m), cursor.varint(length)) for m, length in _STREAM_FIELDS[kind]]
    )
    crc = cursor.u32("checksum")
    size = cursor.at - start
    fields = (name, kind, dtype, shape, stored, levels, streams, crc, offset, size)
    return Entry(*fields, numbers=numbers)


def _decode_numbers(cursor: Cursor, dtype: str, shape: tuple[int, ...], levels: int) -> Numbers:
    folded = cursor.varint("first number", 2 * MAX_NUMBER)
    first = -(folded >> 1) - 1 if folded & 1 else folded >> 1
    stride = cursor.varint("stride", MAX_NUMBER)
    last = first + stride * max(levels - 1, 0)
    if not stride or last > MAX_NUMBER:
        raise CorruptFile(f"numbers from {first} to {last} in steps of {stride}")
    if dtype not in FLOATS:
        raise CorruptFile(f"fixed-point tensors are {', '.join(FLOATS)}, not {dtype}")
    block = tuple([cursor.varint("block", MAX_ELEMENTS) for _ in shape])
    try:
        grid_shape(shape, block)
    except InvalidArgument as error:
        raise CorruptFile(str(error)) from None
    return Numbers(first, stride, block)


def _check_kind(name: str, kind: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Refuse files and packs that are not as they must be."""
    if kind == FILE and (len(shape), dtype) != (1, "uint8"):
        raise CorruptFile(f"a file is 1-D uint8, not {len(shape)}-D {dtype}")
    if kind == FILE and shape[0] > MAX_PIECE:
        raise CorruptFile(f"a piece of a file has {shape[0]} bytes, over the limit of 2**24")
    if kind == PACK and (name or len(shape) != 1 or shape[0] > MAX_PACK):
        raise CorruptFile(f"a pack has no name, and is 1-D of at most 2**16 elements, not {shape}")


def check_paid(entry: Entry) -> None:
    """Refuse counts that no stream pays for; the rest is bounded by the streams themselves."""
    if entry.stored > FREE + 8 * entry.length:
        raise CorruptFile(
            f"tensor {entry.name!r}: {entry.stored} kept elements cannot lie in a chunk of "
            f"{entry.length} bytes"
        )
