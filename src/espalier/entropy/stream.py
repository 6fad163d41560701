"""One stream of a tensor, and the choice between ways of writing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from espalier.entropy.choice import Coders, as_coders
from espalier.entropy.coder import EntropyCoder, coder_by_id
from espalier.entropy.cursor import Cursor
from espalier.errors import CorruptFile

Array = NDArray[Any]

RAW = 0
"""Coder id of a stream that no entropy coder wrote."""


@dataclass(frozen=True, eq=False)
class Stream:
    """A stream as it lies in a file.

    Attributes
    ----------
    layout : int
        How values became symbols, 0 to 15; what it means depends on the stream.
    coder : int
        ``id`` of the coder of the symbols, or 0 for none.
    body : bytes
        Tables, parameters and payload.
    table_bytes : int
        How many of ``body`` are tables and parameters.
    """

    layout: int
    coder: int
    body: bytes
    table_bytes: int = 0

    @property
    def method(self) -> int:
        """The byte that stands for layout and coder in the directory."""
        return self.layout << 4 | self.coder

    @property
    def name(self) -> str:
        """The coder's name, or ``"raw"``."""
        return coder_name(self.method)


def coder_name(method: int) -> str:
    """The name of the coder of a method byte, or ``"raw"``."""
    number = split_method(method)[1]
    return "raw" if number == RAW else coder_by_id(number).name


EMPTY = Stream(0, RAW, b"")
"""The stream of no symbols."""


def smallest(streams: list[Stream]) -> Stream:
    """The stream of the fewest bytes; the earliest among equals."""
    return min(streams, key=lambda stream: len(stream.body))


def encode_symbols(
    symbols: Array, counts: Array, coders: Coders, *, layout: int = 0, head: bytes = b""
) -> Stream:
    """``head``, table and payload of ``symbols``, whose histogram is ``counts``, in one stream.

    Of several coders, those are run that announce the fewest bits, or so few more that it must be
    measured (:meth:`EntropyCoder.slack`); the smallest stream is taken, and that of the earlier
    coder among equals.
    """
    announced: list[tuple[int, int, EntropyCoder[Any], Any, bytes]] = []
    for coder in as_coders(coders):
        table = coder.fit(counts)
        written, bits = coder.write_table(table), coder.bits(counts, table)
        slack = coder.slack(bits)
        announced.append((bits + 8 * len(written), slack, coder, table, written))
    limit = min(bits + slack for bits, slack, *_ in announced)
    tried = [
        Stream(
            layout,
            coder.id,
            b"".join((head, written, coder.encode(symbols, table))),
            len(head) + len(written),
        )
        for bits, slack, coder, table, written in announced
        if bits - slack <= limit
    ]
    return smallest(tried)


def decode_symbols(cursor: Cursor, number: int, n: int, alphabet: int) -> tuple[Array, int]:
    """Read table and payload to the end of ``cursor``: the symbols, and the table's bytes."""
    return coder_by_id(number).decode(cursor.rest(), n, alphabet)


def split_method(method: int) -> tuple[int, int]:
    """Layout and coder id of a method byte."""
    return method >> 4, method & 15


def read_empty(method: int, body: memoryview) -> None:
    """Check the stream of no symbols."""
    if method or len(body):
        raise CorruptFile(f"{len(body)} bytes by method {method:#04x} for no symbols at all")
