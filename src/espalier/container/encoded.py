"""A tensor as it will lie in a file: its streams, its entry, and what they measure."""

from __future__ import annotations

from typing import Any, NamedTuple

from espalier.container import layout
from espalier.container.checksum import crc32
from espalier.container.layout import Entry, Numbers, StreamEntry
from espalier.container.ledger import Measured
from espalier.entropy.choice import Coders
from espalier.entropy.codes import encode_codes
from espalier.entropy.histogram import is_constant_view
from espalier.entropy.neighbours import Around, around_numbers
from espalier.entropy.planes import ROTATED
from espalier.entropy.positions import encode_positions
from espalier.entropy.stream import Stream
from espalier.entropy.values import encode_values, starts_of_runs
from espalier.errors import InvalidArgument
from espalier.fixed_point import FixedPoint, SparseFixedPoint, scale_dtype
from espalier.state import (
    Codebook,
    CompressedTensor,
    Dense,
    Sparse,
    SparseCodebook,
)


class Encoded(NamedTuple):
    """A tensor as it will be written: its entry, still without a name, and its streams.

    A tensor that goes into a pack has no streams, but ``values``, the bytes of its elements.

    By ``digest`` and the checksum in the entry tensors are known that are there already. It is
    Python's hash of the bytes: 64 bits of SipHash under a key of this process, in less than half of
    the time of SHA-256 even where a processor has instructions for that.
    """

    entry: Entry
    streams: tuple[Stream, ...]
    measured: dict[str, Measured]
    digest: int
    values: bytes | None = None


def encode(tensor: CompressedTensor, coders: Coders) -> Encoded:
    """The streams of a tensor.

    Raises
    ------
    InvalidArgument
        It has more dimensions, elements or levels than a file can tell.
    """
    shape, size, dtype = tuple(map(int, tensor.shape)), tensor.size, tensor.dtype
    if len(shape) > layout.MAX_DIMS or size > layout.MAX_ELEMENTS:
        raise InvalidArgument(
            f"shape {shape} is over the limits of {layout.MAX_DIMS} dimensions and 2**48 elements"
        )
    if isinstance(tensor, Dense) and size < layout.SMALL and _is_packed(tensor):
        held = tensor.values.tobytes()
        entry = Entry("", layout.PACKED, dtype, shape, size, 0, (), crc32(held))
        return Encoded(entry, (), {}, hash(held), held)
    kind, levels, streams, measured = encode_streams(tensor, coders)
    ordered = tuple([streams[stream] for stream in layout.STREAMS[kind]])
    crc = 0
    for stream in ordered:
        crc = crc32(stream.body, crc)
    methods = tuple([StreamEntry(s.method, len(s.body)) for s in ordered])
    fields = ("", kind, dtype, shape, tensor.stored, levels, methods, crc)
    digest = hash(tuple([stream.body for stream in ordered]))
    return Encoded(Entry(*fields, numbers=_numbers(tensor)), ordered, measured, digest)


def _is_packed(tensor: Dense) -> bool:
    """Whether a small tensor shares its tables with others: numbers of which none is like the next.

    Integers and flags are mostly runs and steps, each tensor's of its own kind.
    """
    values = tensor.values
    return (
        values.size > 0
        and tensor.dtype in ROTATED
        and not is_constant_view(values)
        and starts_of_runs(values) is None
    )


def measured_of(stream: Stream, histogram: Any = None) -> Measured:
    """What a stream takes; ``histogram``: of its symbols."""
    payload = len(stream.body) - stream.table_bytes
    return Measured(payload, stream.table_bytes, stream.name, histogram)


def encode_streams(
    tensor: CompressedTensor, coders: Coders
) -> tuple[str, int, dict[str, Stream], dict[str, Measured]]:
    """The kind, the number of levels and the streams of a tensor, and their measures."""
    streams: dict[str, Stream] = {}
    measured: dict[str, Measured] = {}

    def put(name: str, stream: Stream, histogram: Any = None) -> None:
        streams[name] = stream
        measured[name] = measured_of(stream, histogram)

    if isinstance(tensor, FixedPoint):
        kind, levels = "fixed point", tensor.levels
        positions = tensor.positions if isinstance(tensor, SparseFixedPoint) else None
        numbers = tensor.first, tensor.stride, levels
        around = around_numbers(tensor.shape, positions, numbers, tensor.zeros)
        put("codes", *encode_codes(tensor.codes, levels, coders, around))
        put("scales", encode_values(tensor.scales, scale_dtype(tensor.dtype), coders))
        put("zeros", encode_values(tensor.zeros, "int16", coders))
    elif isinstance(tensor, Codebook | SparseCodebook):
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
    if isinstance(tensor, Sparse | SparseCodebook | SparseFixedPoint):
        beside = sum(len(stream.body) for stream in streams.values())
        positions, shape = tensor.positions, tensor.shape
        put("positions", *encode_positions(positions, tensor.size, coders, beside, shape))
        kind = "sparse" if kind == "dense" else f"sparse {kind}"
    return kind, levels, streams, measured


def _numbers(tensor: CompressedTensor) -> Numbers | None:
    if not isinstance(tensor, FixedPoint):
        return None
    return Numbers(tensor.first, tensor.stride, tuple(int(n) for n in tensor.block))
