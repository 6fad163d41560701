"""Where the bytes of a file went, tensor by tensor; every size measured, none from a formula.

The only sizes that are not the length of something written are those of the paper's earlier stages
(``bytes_p``, ``bytes_pq``): what the same tensor would take in the layout of Han et al. 2016.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from espalier.container.layout import COPY, SHARED, Entry
from espalier.entropy.histogram import Histogram
from espalier.entropy.positions import best_width, fillers_at
from espalier.fixed_point import scale_dtype
from espalier.state import storage_dtype


@dataclass(frozen=True)
class TensorRow:
    """What one tensor takes, and why.

    Attributes
    ----------
    name, kind, shape, dtype
        ``kind``: ``"dense"``, ``"sparse"``, ``"codebook"``, ``"sparse codebook"``, ``"fixed
        point"`` or ``"sparse fixed point"``, whose scales and zero points count as its codebook;
        ``"copy"``
        for a tensor that is another one bit for bit, and has no bytes but its header; ``"packed"``
        for a small one that is coded together with others: its bytes are its share, by elements.
    elements, stored : int
        Of the dense tensor; and of those, how many are written (the kept ones).
    levels : int
        Size of the codebook, 0 without one.
    original_bytes : int
        Of the dense tensor.
    header_bytes : int
        Its entry in the directory, with its checksum.
    positions_bytes, codes_bytes, codebook_bytes, values_bytes : int
        Payload of each stream, without tables.
    tables_bytes : int
        Tables and parameters of all streams.
    positions_coder, codes_coder, codebook_coder, values_coder : str
        What wrote each stream, ``""`` where there is none: a stream falls back to ``"fixed"`` or
        ``"raw"`` where that is smaller.
    positions_bits_entropy, codes_bits_entropy : float
        n times the order-0 entropy of gaps and codes, in bits: the bound of any coder of
        independent symbols, tables not counted.
    gap_bits, fillers : int
        The fixed width of the paper's layout in which gaps and codes (or values) together are
        smallest, and the fillers at that width.
    bytes_p, bytes_pq : int
        The paper's stage P (values and fixed gaps, fillers included in both) and P+Q (fixed-width
        codes and gaps, fillers included in both, and the codebook), each with ``header_bytes``.
    positions_tables_bytes, codes_tables_bytes : int
        What ``tables_bytes`` holds for these streams, which the columns in bits count too.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    elements: int
    stored: int
    levels: int
    original_bytes: int
    header_bytes: int
    positions_bytes: int = 0
    codes_bytes: int = 0
    codebook_bytes: int = 0
    tables_bytes: int = 0
    values_bytes: int = 0
    positions_tables_bytes: int = 0
    codes_tables_bytes: int = 0
    positions_coder: str = ""
    codes_coder: str = ""
    codebook_coder: str = ""
    values_coder: str = ""
    positions_bits_entropy: float = 0.0
    codes_bits_entropy: float = 0.0
    gap_bits: int = 0
    fillers: int = 0
    bytes_p: int = 0
    bytes_pq: int = 0

    @property
    def total_bytes(self) -> int:
        """All bytes of the file that are there for this tensor."""
        return (
            self.header_bytes
            + self.positions_bytes
            + self.codes_bytes
            + self.codebook_bytes
            + self.tables_bytes
            + self.values_bytes
        )

    @property
    def bytes_pqh(self) -> int:
        """The paper's stage P+Q+H: the file as it is."""
        return self.total_bytes

    @property
    def keep(self) -> float:
        """Density: stored / elements (1 for an empty tensor)."""
        return self.stored / self.elements if self.elements else 1.0

    @property
    def code_bits(self) -> int:
        """Bits of a code at fixed width: ceil(log2(levels))."""
        return max(self.levels - 1, 0).bit_length()

    @property
    def code_bits_coded(self) -> float:
        """Bits of a code as written, table included, per kept element."""
        return self._per_stored(self.codes_bytes + self.codes_tables_bytes)

    @property
    def gap_bits_coded(self) -> float:
        """Bits of a gap as written, table included, per kept element."""
        return self._per_stored(self.positions_bytes + self.positions_tables_bytes)

    @property
    def ratio(self) -> float:
        """Compression ratio: original bytes / bytes in the file."""
        return self.original_bytes / self.total_bytes

    def _per_stored(self, size_bytes: int) -> float:
        return 8 * size_bytes / self.stored if self.stored else 0.0

    def to_dict(self) -> dict[str, Any]:
        """All fields and derived columns, JSON values."""
        derived = (
            "total_bytes",
            "keep",
            "code_bits",
            "code_bits_coded",
            "gap_bits_coded",
            "bytes_pqh",
            "ratio",
        )
        fields = dataclasses.asdict(self) | {"shape": list(self.shape)}
        return fields | {name: getattr(self, name) for name in derived}


@dataclass(frozen=True, eq=False)
class Measured:
    """Of one stream: payload and table bytes, the coder's name, the histogram of its symbols."""

    payload_bytes: int
    table_bytes: int
    coder: str
    histogram: Histogram | None = None


def row_of(entry: Entry, head: int, streams: dict[str, Measured]) -> TensorRow:
    """The row of a tensor with ``head`` bytes of entry; ``streams`` by name, measured."""
    item = storage_dtype(entry.dtype).itemsize
    fields: dict[str, Any] = {"tables_bytes": sum(s.table_bytes for s in streams.values())}
    if entry.numbers is not None and streams:
        streams = _with_codebook(streams)
    for name, stream in streams.items():
        fields[f"{name}_bytes"] = stream.payload_bytes
        fields[f"{name}_coder"] = stream.coder
        if name in ("positions", "codes"):
            fields[f"{name}_tables_bytes"] = stream.table_bytes
            if stream.histogram is not None:
                fields[f"{name}_bits_entropy"] = stream.histogram.entropy_bits
    code_bits = max(entry.levels - 1, 0).bit_length()
    shared = entry.kind in SHARED
    gaps = streams["positions"].histogram if "positions" in streams else None
    width = fillers = 0
    if gaps is not None and entry.stored:
        width = best_width(gaps, code_bits if shared else 8 * item)
        fillers = fillers_at(gaps, width)
    written = entry.stored + fillers if entry.kind != COPY else 0
    bytes_p = head + item * written + _bytes(width * written)
    bytes_pq = bytes_p
    if shared:
        codes = _bytes(code_bits * written)
        book = item * entry.levels
        if entry.numbers is not None:
            book = entry.blocks * storage_dtype(scale_dtype(entry.dtype)).itemsize
        bytes_pq = head + codes + _bytes(width * written) + book
    return TensorRow(
        name=entry.name,
        kind=entry.kind,
        shape=entry.shape,
        dtype=entry.dtype,
        elements=entry.elements,
        stored=entry.stored,
        levels=entry.levels,
        original_bytes=entry.elements * item,
        header_bytes=head,
        gap_bits=width,
        fillers=fillers,
        bytes_p=bytes_p,
        bytes_pq=bytes_pq,
        **fields,
    )


def _with_codebook(streams: dict[str, Measured]) -> dict[str, Measured]:
    """The streams of a fixed-point tensor, with scales and zero points as one."""
    scales, zeros = streams["scales"], streams["zeros"]
    both = Measured(
        scales.payload_bytes + zeros.payload_bytes,
        scales.table_bytes + zeros.table_bytes,
        scales.coder,
    )
    return {k: v for k, v in streams.items() if k not in ("scales", "zeros")} | {"codebook": both}


def packed_row(
    entry: Entry, head: int, start: int, pack: Entry, pack_head: int, values: Measured
) -> TensorRow:
    """The row of a tensor whose elements are those of ``pack`` from ``start`` on.

    Of what the pack takes it has the share of its elements: of ``values``, measured, and of the
    pack's own entry, of ``pack_head`` bytes.
    """

    def share(total: int) -> int:
        stop = start + entry.stored
        return total * stop // pack.stored - total * start // pack.stored

    own = Measured(share(values.payload_bytes), share(values.table_bytes), values.coder)
    return row_of(entry, head + share(pack_head), {"values": own})


def _bytes(bits: int) -> int:
    return (bits + 7) // 8


@dataclass(frozen=True)
class FileRow:
    """What a file beside the tensors takes: its bytes, and those in the file, with its entries."""

    name: str
    original_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Ledger:
    """The rows of all tensors, and what belongs to none.

    Attributes
    ----------
    rows : tuple of TensorRow
    file_bytes : int
        Length of the file: the sum of all rows, of files too, and ``overhead``.
    aliases : mapping of str to str
        Names of tied tensors, which are stored once.
    files : tuple of FileRow
        What is there beside tensors.
    """

    rows: tuple[TensorRow, ...]
    file_bytes: int
    aliases: dict[str, str] = dataclasses.field(default_factory=dict)
    files: tuple[FileRow, ...] = ()

    def __repr__(self) -> str:
        sizes = f"{self.original_bytes:,} -> {self.file_bytes:,} bytes, {self.ratio:.1f}x"
        return f"Ledger({len(self.rows)} tensors, {sizes})"

    def __iter__(self) -> Iterator[TensorRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> TensorRow:
        wanted = self.aliases.get(name, name)
        for row in self.rows:
            if row.name == wanted:
                return row
        raise KeyError(name)

    def total(self, column: str) -> int:
        """Sum of a column over all rows: ``total("codes_bytes")``."""
        return sum(getattr(row, column) for row in self.rows)

    @property
    def overhead(self) -> int:
        """Bytes of header, footer, metadata and aliases."""
        return self.file_bytes - self.total("total_bytes") - self.files_bytes

    @property
    def files_bytes(self) -> int:
        """Bytes that files beside the tensors take."""
        return sum(file.total_bytes for file in self.files)

    @property
    def original_bytes(self) -> int:
        """Bytes of all tensors, dense, tied ones once."""
        return self.total("original_bytes")

    @property
    def elements(self) -> int:
        """Elements of all tensors, dense, tied ones once."""
        return self.total("elements")

    @property
    def stored(self) -> int:
        """Elements that are written."""
        return self.total("stored")

    @property
    def ratio(self) -> float:
        """Compression ratio: original bytes / file bytes."""
        return self.original_bytes / self.file_bytes

    @property
    def bytes_p(self) -> int:
        """The paper's stage P for the whole file."""
        return self.total("bytes_p") + self.files_bytes + self.overhead

    @property
    def bytes_pq(self) -> int:
        """The paper's stage P+Q for the whole file."""
        return self.total("bytes_pq") + self.files_bytes + self.overhead

    @property
    def bytes_pqh(self) -> int:
        """The paper's stage P+Q+H: the file as it is."""
        return self.file_bytes

    def to_dict(self) -> dict[str, Any]:
        """Totals and rows as JSON values."""
        names = (
            "file_bytes",
            "original_bytes",
            "ratio",
            "overhead",
            "files_bytes",
            "elements",
            "stored",
            "bytes_p",
            "bytes_pq",
            "bytes_pqh",
        )
        columns = ("header", "positions", "codes", "codebook", "tables", "values")
        totals = {name: getattr(self, name) for name in names}
        totals |= {f"{name}_bytes": self.total(f"{name}_bytes") for name in columns}
        rows = [row.to_dict() for row in self.rows]
        files = [dataclasses.asdict(file) for file in self.files]
        return totals | {"aliases": dict(self.aliases), "files": files, "tensors": rows}

    def to_json(self, indent: int | None = 2) -> str:
        """:meth:`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=indent)
