"""``espalier inspect``: where the bytes of an ``.esp`` file went."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from espalier.cli import console

if TYPE_CHECKING:
    from espalier.container import Ledger, TensorRow

STREAMS = ("header", "positions", "codes", "codebook", "tables", "values")


def command(
    source: Annotated[str, typer.Argument(metavar="FILE.esp", help="File to look into, or URL.")],
    as_json: console.Json = False,
) -> None:
    """Show where the bytes went, tensor by tensor, and the columns of the paper's tables.

    P: kept values with fixed-width gaps. P+Q: fixed-width codes and gaps, and the
    codebook. P+Q+H: the file as it is. Sizes in % are of the original tensors.

    [bold]Example[/]

    espalier inspect lenet.esp --json | jq .ratio
    """
    from espalier.container import Reader

    with Reader(source) as reader:
        ledger = reader.ledger()
        metadata = dict(reader.metadata)
    if as_json:
        console.print_json({"file": source, "metadata": metadata} | ledger.to_dict())
        return
    _print_paper(ledger)
    _print_bytes(ledger)
    if ledger.aliases:
        tied = ", ".join(f"{alias} = {name}" for alias, name in ledger.aliases.items())
        typer.echo(f"Tied: {tied}")
    typer.echo(
        f"{source}: {console.size(ledger.file_bytes)} bytes for "
        f"{console.size(ledger.original_bytes)} bytes of tensors, "
        f"{console.ratio(ledger.original_bytes, ledger.file_bytes)} smaller"
    )


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
