"""The bytes of an ``.esp`` file, field by field; ``SPEC.md`` is the contract.

A file is a header, a chunk for each tensor, a directory and a footer. Everything that describes
the tensors is in the directory at the end, so that a file can be written as a stream, and read with
two reads over a network plus one for each tensor that is wanted. Chunks follow each other without
gaps in the order of the directory, which stores their lengths only: there is no offset that could
lie, overlap or leave a hole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from espalier.container.checksum import crc32
from espalier.entropy.cursor import Cursor, varint
from espalier.errors import CorruptFile, FormatError, InvalidArgument, UnsupportedVersion
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
MAX_NAME_BYTES = 1024
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


@dataclass(frozen=True)
class Directory:
    """All entries, and what else the directory holds.

    ``tensors`` are the entries that are tensors, by name; ``files`` the pieces of each file;
    ``packed`` says of each tensor that is packed where: the entry of its pack, and the first of its
    elements there. ``end`` is the byte after the last chunk.
    """

    entries: tuple[Entry, ...]
    tensors: Mapping[str, Entry]
    files: Mapping[str, tuple[Entry, ...]]
    packed: Mapping[str, tuple[Entry, int]]
    aliases: Mapping[str, str]
    metadata: Mapping[str, Any]
    end: int


def header() -> bytes:
    """The first bytes of every file."""
    return MAGIC + bytes([VERSION])


def footer(directory: bytes) -> bytes:
    """The last bytes of a file with that directory; the checksum covers header and length too."""
    length = len(directory).to_bytes(4, "little")
    crc = crc32(length, crc32(directory, crc32(header())))
    return length + crc.to_bytes(4, "little") + END_MAGIC


# ---------------------------------------------------------------- names


class Names:
    """Names one after the other, each in terms of those before it; the same to write and to read.

    A name is what it shares with the start of the one before it, and the rest. Rests come back all
    the time (``weight``, ``bn1.running_mean``), so each distinct one is written once:

        varint  shared   bytes in common with the start of the name before
        varint  which    0: a new rest follows; i: the i-th distinct rest in the order of coming up
        varint  length   if new
        bytes            if new, UTF-8 once joined
    """

    def __init__(self) -> None:
        self._previous = b""
        self._rests: dict[bytes, int] = {}
        self._by_index: list[bytes] = []

    def encode(self, name: str, what: str = "tensor") -> bytes:
        """The next name; ``what`` it names is for messages."""
        utf8 = check_name(name, what)
        shared = 0
        while shared < min(len(utf8), len(self._previous)) and (
            utf8[shared] == self._previous[shared]
        ):
            shared += 1
        rest = utf8[shared:]
        self._previous = utf8
        if rest in self._rests:
            return varint(shared) + varint(self._rests[rest])
        self._add(rest)
        return varint(shared) + varint(0) + varint(len(rest)) + rest

    def decode(self, cursor: Cursor, what: str = "tensor") -> str:
        """Read the next name."""
        shared = cursor.varint("name: shared prefix", len(self._previous))
        which = cursor.varint("name: rest", len(self._by_index))
        if which:
            rest = self._by_index[which - 1]
        else:
            length = cursor.varint("name: length", MAX_NAME_BYTES)
            rest = bytes(cursor.take(length, "name"))
            self._add(rest)
        utf8 = self._previous[:shared] + rest
        if len(utf8) > MAX_NAME_BYTES:
            raise CorruptFile(
                f"the {what} name {utf8[:40]!r}... is {len(utf8)} bytes long, "
                f"over the limit of {MAX_NAME_BYTES}"
            )
        self._previous = utf8
        try:
            return utf8.decode("utf-8")
        except UnicodeDecodeError:
            raise CorruptFile(f"the {what} name {utf8[:40]!r} is not UTF-8") from None

    def _add(self, rest: bytes) -> None:
        self._by_index.append(rest)
        self._rests.setdefault(rest, len(self._by_index))


def check_name(name: str, what: str = "tensor") -> bytes:
    """The UTF-8 of a name; :class:`InvalidArgument` if it has none or is too long."""
    try:
        utf8 = name.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidArgument(f"the {what} name {name!r} is not Unicode text") from None
    if len(utf8) > MAX_NAME_BYTES:
        raise InvalidArgument(
            f"the {what} name {name[:40]!r}... is {len(utf8)} bytes long, "
            f"over the limit of {MAX_NAME_BYTES}"
        )
    return utf8


# ---------------------------------------------------------------- entries


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


# ---------------------------------------------------------------- the directory


def encode_metadata(metadata: Mapping[str, Any]) -> bytes:
    """Compact JSON; :class:`InvalidArgument` for what JSON cannot hold."""
    if not metadata:
        return b""
    try:
        text = json.dumps(metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"metadata must be JSON: {error}") from None


def encode_directory(
    entries: Sequence[bytes],
    names: Names,
    aliases: Mapping[str, int],
    metadata: Mapping[str, Any],
    features: Sequence[str] = (),
) -> bytes:
    """The directory of entries that are already encoded; ``names`` are theirs.

    ``aliases``: the index of the entry that each is a further name of. ``features``: what a reader
    has to know beyond version 2.
    """
    parts = [varint(len(features))]
    parts += [varint(len(feature)) + feature.encode("ascii") for feature in features]
    parts += [varint(len(entries)), *entries]
    if aliases:
        fields = [varint(len(aliases))]
        for alias, index in aliases.items():
            fields += [names.encode(alias, "alias"), varint(index)]
        payload = b"".join(fields)
        parts += [varint(ALIASES), varint(len(payload)), payload]
    payload = encode_metadata(metadata)
    if payload:
        parts += [varint(METADATA), varint(len(payload)), payload]
    return b"".join(parts)


def decode_directory(data: bytes) -> Directory:
    """Read a whole directory, whose checksum has been verified."""
    cursor = Cursor(data)
    features = _check_features(cursor)
    # An entry has at least 2 bytes of name, kind and the index of an original.
    number = cursor.varint("number of entries", len(data) // 4)
    entries: list[Entry] = []
    tensors: dict[str, Entry] = {}
    files: dict[str, list[Entry]] = {}
    names, offset = Names(), HEADER_BYTES
    for _ in range(number):
        entry = decode_entry(cursor, names, offset, entries)
        if entry.kind == FILE:
            _add_piece(files, entry, entries[-1] if entries else None)
        elif entry.kind != PACK:
            if entry.name in tensors:
                raise CorruptFile(f"two tensors are called {entry.name!r}")
            tensors[entry.name] = entry
        entries.append(entry)
        if entry.streams:
            offset += entry.length
    aliases: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    seen: set[int] = set()
    while cursor.left:
        section = cursor.varint("section")
        payload = cursor.take(cursor.varint("section length"), f"section {section}")
        if section in seen:
            raise CorruptFile(f"section {section} is there twice")
        seen.add(section)
        if section == ALIASES:
            aliases = _decode_aliases(Cursor(payload), names, entries, tensors)
        elif section == METADATA:
            metadata = _decode_metadata(payload)
    if GRID not in features and any(entry.kind in ON_GRID for entry in entries):
        raise CorruptFile(f"there are fixed-point tensors, and the file does not need {GRID!r}")
    whole = {name: tuple(pieces) for name, pieces in files.items()}
    packed = _unpacked(entries)
    return Directory(tuple(entries), tensors, whole, packed, aliases, metadata, offset)


def _unpacked(entries: Sequence[Entry]) -> dict[str, tuple[Entry, int]]:
    """Where each packed tensor is: those of a dtype, in order, fill the packs of it, in order."""
    packs: dict[str, list[Entry]] = {}
    for entry in reversed(entries):
        if entry.kind == PACK:
            packs.setdefault(entry.dtype, []).append(entry)
    places: dict[str, tuple[Entry, int]] = {}
    filled = dict.fromkeys(packs, 0)
    for entry in entries:
        if entry.kind == PACKED:
            name, _, dtype, _, stored, *_ = entry
            left = packs.get(dtype)
            if not left or not stored:
                raise CorruptFile(f"tensor {name!r}: it has no elements in a pack of {dtype}")
            start, size = filled[dtype], left[-1].stored
            places[name] = left[-1], start
            filled[dtype] = start + stored
            if start + stored > size:
                raise CorruptFile(
                    f"tensor {name!r}: elements {start} on are not in a pack of {size}"
                )
            if start + stored == size:
                left.pop()
                filled[dtype] = 0
    for dtype, left in packs.items():
        if left:
            raise CorruptFile(f"a pack of {left[-1].stored} {dtype} elements is not filled")
    return places


def _add_piece(files: dict[str, list[Entry]], piece: Entry, last: Entry | None) -> None:
    if piece.name not in files:
        files[piece.name] = [piece]
    elif last is not None and last.kind == FILE and last.name == piece.name:
        files[piece.name].append(piece)
    else:
        raise CorruptFile(f"the pieces of the file {piece.name!r} do not follow each other")


def _check_features(cursor: Cursor) -> list[str]:
    """The features that a file needs; UnsupportedVersion where one is not known."""
    needed: list[str] = []
    missing: list[str] = []
    for _ in range(cursor.varint("number of required features", 255)):
        name = bytes(cursor.take(cursor.varint("feature name", 255), "feature name"))
        text = name.decode("ascii", "backslashreplace")
        needed.append(text)
        if text not in FEATURES:
            missing.append(text)
    if missing:
        raise UnsupportedVersion(
            f"the file needs {', '.join(map(repr, missing))}, which this version of Espalier "
            "does not know; a newer one may"
        )
    return needed


def _decode_aliases(
    cursor: Cursor, names: Names, entries: Sequence[Entry], tensors: Mapping[str, Entry]
) -> dict[str, str]:
    aliases: dict[str, str] = {}
    for _ in range(cursor.varint("number of aliases", cursor.left // 3)):
        alias = names.decode(cursor, "alias")
        if alias in aliases or alias in tensors:
            raise CorruptFile(f"two tensors are called {alias!r}")
        index = cursor.varint(f"alias {alias!r}: tensor")
        if index >= len(entries):
            raise CorruptFile(f"alias {alias!r} is of entry {index}, and there are {len(entries)}")
        if entries[index].kind in (FILE, PACK):
            raise CorruptFile(
                f"alias {alias!r} is of entry {index}, which is a {entries[index].kind}"
            )
        aliases[alias] = entries[index].name
    cursor.end("aliases")
    return aliases


def _decode_metadata(payload: memoryview) -> dict[str, Any]:
    try:
        metadata = json.loads(bytes(payload).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"metadata is not JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise CorruptFile(f"metadata is a JSON {type(metadata).__name__}, not an object")
    return metadata
