"""The streams of a tensor's chunk, decoded, and measured."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from espalier.container.layout import STREAMS, Entry
from espalier.container.ledger import Measured
from espalier.entropy.codes import decode_codes, decode_shared
from espalier.entropy.histogram import Histogram
from espalier.entropy.neighbours import Around, around_numbers
from espalier.entropy.positions import decode_positions, gap_histogram
from espalier.entropy.stream import coder_name
from espalier.entropy.values import decode_values
from espalier.errors import CorruptFile, FormatError, InvalidArgument
from espalier.fixed_point import FixedPoint, SparseFixedPoint, scale_dtype
from espalier.state import (
    Array,
    Codebook,
    CompressedTensor,
    Dense,
    Sparse,
    SparseCodebook,
    storage_dtype,
)

_VARIANTS: dict[str, type[CompressedTensor]] = {
    "dense": Dense,
    "sparse": Sparse,
    "codebook": Codebook,
    "sparse codebook": SparseCodebook,
    "fixed point": FixedPoint,
    "sparse fixed point": SparseFixedPoint,
}
_ORDER = {
    kind: tuple(sorted(enumerate(streams), key=lambda stream: stream[1] == "codes"))
    for kind, streams in STREAMS.items()
}
"""The streams of each kind by their places, codes last: they may need positions and codebook."""


def decode_parts(
    entry: Entry, chunk: bytes | memoryview, looked_up: bool = False
) -> tuple[dict[str, Array], dict[str, int]]:
    """The streams of a chunk whose checksum is right, decoded, and the bytes of their tables.

    They share no memory with the chunk. ``looked_up``: shared weights in place of their codes.
    """
    view, at = memoryview(chunk), 0
    bodies: list[memoryview] = []
    for _, length in entry.streams:
        bodies.append(view[at : at + length])
        at += length
    parts: dict[str, Array] = {}
    tables: dict[str, int] = {}
    for i, name in _ORDER[entry.kind]:
        try:
            found = _stream(entry, name, entry.streams[i].method, bodies[i], parts, looked_up)
        except FormatError as error:
            raise type(error)(f"{name}: {error}") from None
        parts[name], tables[name] = found
    return parts, tables


def decode_tensor(
    entry: Entry, chunk: bytes | memoryview
) -> tuple[CompressedTensor, dict[str, int]]:
    """The tensor of :func:`decode_parts`, and the bytes of tables of each stream."""
    parts, tables = decode_parts(entry, chunk)
    fields: dict[str, Any] = {}
    if entry.numbers is not None:
        fields = entry.numbers._asdict() | {"levels": entry.levels}
    try:
        return _VARIANTS[entry.kind](entry.shape, entry.dtype, **parts, **fields), tables
    except InvalidArgument as error:
        raise CorruptFile(str(error)) from None


def decode_dense(entry: Entry, chunk: bytes | memoryview) -> Array:
    """``decode_tensor(entry, chunk)[0].dense()``, without what is made in between."""
    if entry.kind == "codebook":
        return decode_parts(entry, chunk, looked_up=True)[0]["codes"].reshape(entry.shape)
    tensor, _ = decode_tensor(entry, chunk)
    if isinstance(tensor, Dense) and tensor.values.flags.writeable:
        return tensor.values.reshape(tensor.shape)
    return tensor.dense()


def _stream(
    entry: Entry,
    name: str,
    method: int,
    body: memoryview,
    parts: dict[str, Any],
    looked_up: bool,
) -> tuple[Array, int]:
    """One stream, decoded, and the bytes of its tables; ``parts``: those before it.

    The tables of codes that are looked up are not measured.
    """
    if name == "positions":
        return decode_positions(method, body, entry.stored, entry.elements, entry.shape)
    if name == "codes":
        around = partial(_around, entry, parts)
        if looked_up:
            return decode_shared(method, body, entry.stored, parts["codebook"], around), 0
        return decode_codes(method, body, entry.stored, entry.levels, around())
    if entry.numbers is not None:
        dtype = "int16" if name == "zeros" else scale_dtype(entry.dtype)
        return decode_values(method, body, entry.blocks, dtype, storage_dtype(dtype))
    n = entry.levels if name == "codebook" else entry.stored
    return decode_values(method, body, n, entry.dtype, storage_dtype(entry.dtype))


def _around(entry: Entry, parts: dict[str, Any]) -> Around:
    positions = parts.get("positions")
    if entry.numbers is None:
        return Around(entry.shape, positions, parts["codebook"], entry.dtype)
    numbers = entry.numbers.first, entry.numbers.stride, entry.levels
    return around_numbers(entry.shape, positions, numbers, parts["zeros"])


def measure(
    entry: Entry, tensor: CompressedTensor, tables: Mapping[str, int]
) -> dict[str, Measured]:
    measured: dict[str, Measured] = {}
    for name, stream in zip(STREAMS[entry.kind], entry.streams, strict=True):
        histogram = None
        if name == "positions":
            histogram = gap_histogram(getattr(tensor, name))
        elif name == "codes":
            histogram = Histogram.of(getattr(tensor, name))
        coder, table = coder_name(stream.method), tables[name]
        measured[name] = Measured(stream.length - table, table, coder, histogram)
    return measured
