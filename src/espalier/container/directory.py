"""The directory at the end of an ``.esp`` file: all entries, aliases and metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from espalier.container.layout import (
    ALIASES,
    FEATURES,
    FILE,
    GRID,
    HEADER_BYTES,
    METADATA,
    ON_GRID,
    PACK,
    PACKED,
    SPARSE,
    Entry,
    check_paid,
    decode_entry,
)
from espalier.container.names import Names
from espalier.container.table import Table, read_table
from espalier.entropy.cursor import Cursor, varint
from espalier.errors import CorruptFile, InvalidArgument, UnsupportedVersion

FROM = 48
"""Entries from which a kernel is worth its loading."""


@dataclass(frozen=True)
class Directory:
    """All entries, and what else the directory holds.

    ``tensors`` are the entries that are tensors, by name; ``files`` the pieces of each file;
    ``packed`` says of each tensor that is packed where: the entry of its pack, and the first of its
    elements there. ``end`` is the byte after the last chunk. ``table`` has the entries as integers,
    where a kernel has read them.
    """

    entries: Sequence[Entry]
    tensors: Mapping[str, Entry]
    files: Mapping[str, tuple[Entry, ...]]
    packed: Mapping[str, tuple[Entry, int]]
    aliases: Mapping[str, str]
    metadata: Mapping[str, Any]
    end: int
    table: Table | None = None


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
    """Read a whole directory, whose checksum has been verified.

    A long one is read by a kernel, unless there is something out of the ordinary in it, or wrong.
    """
    cursor = Cursor(data)
    features = _check_features(cursor)
    # An entry has at least 2 bytes of name, kind and the index of an original.
    number = cursor.varint("number of entries", len(data) // 4)
    table = read_table(data, cursor.at, number) if number >= FROM else None
    if table is None:
        entries, tensors, files, names, offset = _decode_entries(cursor, number)
        if GRID not in features and any(entry.kind in ON_GRID for entry in entries):
            raise CorruptFile(f"there are fixed-point tensors, and the file does not need {GRID!r}")
        aliases, metadata = _decode_sections(cursor, names, entries, tensors)
        packed = _unpacked(entries)
        for entry in entries:
            if entry.kind in SPARSE:
                check_paid(entry)
        return Directory(entries, tensors, files, packed, aliases, metadata, offset)
    cursor.at = table.at
    aliases, metadata = _decode_sections(cursor, table.names(), table.entries, table.tensors)
    return Directory(
        table.entries, table.tensors, {}, table.packed, aliases, metadata, table.end, table
    )


def _decode_entries(
    cursor: Cursor, number: int
) -> tuple[Sequence[Entry], dict[str, Entry], dict[str, tuple[Entry, ...]], Names, int]:
    """Entries, those that are tensors, the pieces of files, and the byte after the last chunk."""
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
    whole = {name: tuple(pieces) for name, pieces in files.items()}
    return tuple(entries), tensors, whole, names, offset


def _decode_sections(
    cursor: Cursor, names: Names, entries: Sequence[Entry], tensors: Mapping[str, Entry]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Aliases and metadata."""
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
    return aliases, metadata


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
