"""``espalier inspect``: where the bytes of an ``.esp`` file went."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from espalier.cli import console

if TYPE_CHECKING:
    from espalier.container import Ledger, Reader, TensorRow

STREAMS = ("header", "positions", "codes", "codebook", "tables", "values")


def command(
    source: Annotated[str, typer.Argument(metavar="FILE.esp", help="File to look into, or URL.")],
    baselines: Annotated[
        bool,
        typer.Option(
            "--baselines",
            help="Also what gzip -9, and zstd -19 where zstandard is installed, make of each "
            "tensor's bytes.",
        ),
    ] = False,
    as_json: console.Json = False,
) -> None:
    """Show where the bytes went, tensor by tensor, and the columns of the paper's tables.

    P: kept values with fixed-width gaps. P+Q: fixed-width codes and gaps, and the
    codebook. P+Q+H: the file as it is. Sizes in % are of the original tensors.

    [bold]Example[/]

    espalier inspect lenet.esp --json | jq .ratio

    espalier inspect lenet.esp --baselines
    """
    from espalier.container import Reader

    with Reader(source) as reader:
        ledger = reader.ledger()
        metadata = dict(reader.metadata)
        others = _baselines(reader) if baselines else {}
    if as_json:
        report = {"file": source, "metadata": metadata} | ledger.to_dict()
        if baselines:
            report["baselines"] = others
        console.print_json(report)
        return
    _print_paper(ledger)
    _print_bytes(ledger)
    if baselines:
        _print_baselines(ledger, others)
    if ledger.aliases:
        tied = ", ".join(f"{alias} = {name}" for alias, name in ledger.aliases.items())
        typer.echo(f"Tied: {tied}")
    typer.echo(
        f"{source}: {console.size(ledger.file_bytes)} bytes for "
        f"{console.size(ledger.original_bytes)} bytes of tensors, "
        f"{console.ratio(ledger.original_bytes, ledger.file_bytes)} smaller"
    )


def _baselines(reader: Reader) -> dict[str, dict[str, int]]:
    """By method, what it makes of the bytes of each dense tensor, tied ones and copies once."""
    from espalier.container.layout import COPY

    methods = _methods()
    found: dict[str, dict[str, int]] = {name: {} for name in methods}
    names = [name for name in reader.names() if name not in reader.aliases]
    for name in names:
        copy = reader.entry(name).kind == COPY
        data = b"" if copy else reader.dense(name).tobytes()
        for method, compress in methods.items():
            found[method][name] = 0 if copy else len(compress(data))
    return found


def _methods() -> dict[str, Callable[[bytes], bytes]]:
    methods: dict[str, Callable[[bytes], bytes]] = {
        "gzip -9": lambda data: gzip.compress(data, 9, mtime=0)
    }
    try:
        import zstandard
    except ImportError:
        console.note("zstandard is not installed: no column for zstd -19")
    else:
        methods["zstd -19"] = zstandard.ZstdCompressor(level=19).compress
    return methods


def _print_baselines(ledger: Ledger, others: dict[str, dict[str, int]]) -> None:
    columns = ["tensor", "original", "Espalier"]
    for method in others:
        columns += [method, "of it"]
    rows = []
    for row in ledger.rows:
        cells = [row.name, console.size(row.original_bytes), console.size(row.total_bytes)]
        for sizes in others.values():
            cells += [console.size(sizes[row.name]), _times(sizes[row.name], row.total_bytes)]
        rows.append(cells)
    ours = ledger.total("total_bytes")
    total = ["total", console.size(ledger.original_bytes), console.size(ours)]
    for sizes in others.values():
        total += [console.size(sum(sizes.values())), _times(sum(sizes.values()), ours)]
    console.print_table("Beside other compressors", columns, rows, total)


def _times(theirs: int, ours: int) -> str:
    return f"{theirs / ours:.2f}x" if theirs else ""


def _print_paper(ledger: Ledger) -> None:
    """The columns of tables 2 to 5 of Han et al. 2016."""
    columns = ["tensor", "shape", "keep %", "weight bits", "coded", "index bits", "coded"]
    columns += ["size % P", "P+Q", "P+Q+H"]
    rows = [_paper_row(row) for row in ledger.rows]
    total = ["total", f"{ledger.elements:,}", _percent(ledger.stored, ledger.elements)]
    total += [""] * 4
    sizes = (ledger.bytes_p, ledger.bytes_pq, ledger.bytes_pqh)
    total += [_percent(size, ledger.original_bytes) for size in sizes]
    console.print_table("Size at each stage", columns, rows, total)


def _paper_row(row: TensorRow) -> list[str]:
    width = 8 * row.original_bytes // row.elements if row.elements else 0
    shared, sparse = row.levels > 0, "sparse" in row.kind
    return [
        row.name,
        "x".join(map(str, row.shape)) or "scalar",
        _percent(row.stored, row.elements),
        str(row.code_bits if shared else width),
        f"{row.code_bits_coded:.2f}" if shared else _coded(row.values_bytes, row.stored),
        str(row.gap_bits) if sparse else "",
        f"{row.gap_bits_coded:.2f}" if sparse else "",
        _percent(row.bytes_p, row.original_bytes),
        _percent(row.bytes_pq, row.original_bytes),
        _percent(row.bytes_pqh, row.original_bytes),
    ]


def _print_bytes(ledger: Ledger) -> None:
    columns = ["tensor", "kind", "original", *STREAMS, "total", "ratio"]
    rows = [
        [
            row.name,
            row.kind,
            console.size(row.original_bytes),
            *(console.size(getattr(row, f"{stream}_bytes")) for stream in STREAMS),
            console.size(row.total_bytes),
            console.ratio(row.original_bytes, row.total_bytes),
        ]
        for row in ledger.rows
    ]
    blank: list[Any] = [""] * len(STREAMS)
    for file in ledger.files:
        sizes = [console.size(file.original_bytes), *blank, console.size(file.total_bytes)]
        ratio = console.ratio(file.original_bytes, file.total_bytes)
        rows.append([file.name, "file", *sizes, ratio])
    rows.append(["file header, directory", "", "", *blank, console.size(ledger.overhead), ""])
    total = ["total", "", console.size(ledger.original_bytes)]
    total += [console.size(ledger.total(f"{stream}_bytes")) for stream in STREAMS]
    total += [console.size(ledger.file_bytes)]
    total += [console.ratio(ledger.original_bytes, ledger.file_bytes)]
    console.print_table("Bytes", columns, rows, total)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}" if whole else ""


def _coded(size_bytes: int, elements: int) -> str:
    return f"{8 * size_bytes / elements:.2f}" if elements else ""
