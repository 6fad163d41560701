"""A ledger as the paper's tables: stages, and layers, with the paper's row beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from espalier.analysis.paper import PaperLayer, PaperNetwork

Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Column titles, and rows of text."""


@dataclass(frozen=True)
class Layer:
    """One layer of a ledger in the columns of tables 2 and 3; biases count with their layer."""

    name: str
    columns: PaperLayer


def layers_of(ledger: Mapping[str, Any]) -> tuple[list[Layer], PaperLayer]:
    """The layers of a ledger (as JSON), and the whole network.

    A layer is everything under one name up to the last dot. Its keep, bits and gaps are those of
    its pruned or shared tensor; its sizes are of all its tensors together, in percent of their
    dense size.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in ledger["tensors"]:
        groups.setdefault(row["name"].rpartition(".")[0] or row["name"], []).append(row)
    layers = []
    for name, rows in groups.items():
        main = max(rows, key=lambda row: row["elements"])
        layers.append(Layer(name, _columns(rows, [main])))
    total = _columns(
        ledger["tensors"], compressed_rows(ledger), ledger["bytes_pq"], ledger["bytes_pqh"]
    )
    return layers, total


def compressed_rows(ledger: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The rows of a ledger (as JSON) that are pruned or shared; where there are none, all rows.

    The rest is exact: biases and norms, in a pack of small tensors or on their own, and copies.
    """
    rows: list[Mapping[str, Any]] = list(ledger["tensors"])
    return [row for row in rows if row["positions_coder"] or row["codes_coder"]] or rows


def _columns(
    rows: Sequence[Mapping[str, Any]],
    main: Sequence[Mapping[str, Any]],
    bytes_pq: int | None = None,
    bytes_pqh: int | None = None,
) -> PaperLayer:
    stored = sum(row["stored"] for row in main)

    def mean(column: str) -> float:
        return sum(row[column] * row["stored"] for row in main) / stored if stored else 0.0

    original = max(1, sum(row["original_bytes"] for row in rows))
    pq = sum(row["bytes_pq"] for row in rows) if bytes_pq is None else bytes_pq
    pqh = sum(row["bytes_pqh"] for row in rows) if bytes_pqh is None else bytes_pqh
    return PaperLayer(
        keep=100 * stored / max(1, sum(row["elements"] for row in main)),
        weight_bits=mean("code_bits"),
        weight_bits_coded=mean("code_bits_coded"),
        index_bits=mean("gap_bits"),
        index_bits_coded=mean("gap_bits_coded"),
        size_pq=100 * pq / original,
        size_pqh=100 * pqh / original,
    )


LAYER_TITLES = (
    "layer",
    "keep %",
    "weight bits",
    "coded",
    "index bits",
    "coded",
    "size % P+Q",
    "size % P+Q+H",
)


def layer_table(ledger: Mapping[str, Any], paper: PaperNetwork | None = None) -> Table:
    """Tables 2 and 3 of the paper: ours, and where given the paper's value in brackets."""
    layers, total = layers_of(ledger)
    rows = [
        [layer.name, *_cells(layer.columns, paper.layers.get(layer.name) if paper else None)]
        for layer in layers
    ]
    rows.append(["total", *_cells(total, paper.total if paper else None)])
    return LAYER_TITLES, rows


def _cells(ours: PaperLayer, paper: PaperLayer | None) -> list[str]:
    digits = (1, 1, 2, 1, 2, 2, 2)
    theirs = asdict(paper).values() if paper else [None] * len(digits)
    return [
        f"{value:.{d}f}" + (f" ({other:g})" if other is not None else "")
        for value, other, d in zip(asdict(ours).values(), theirs, digits, strict=True)
    ]


def stage_table(
    sizes: Mapping[str, int], errors: Mapping[str, float], paper: PaperNetwork | None = None
) -> Table:
    """Table 1 of the paper: bytes, ratio and error after each stage.

    Parameters
    ----------
    sizes : mapping
        Bytes: ``"original"`` of the dense tensors; ``"pruned"``, ``"shared"`` (fixed width) and
        ``"coded"`` (Huffman) of the files.
    errors : mapping
        Some of ``"reference"``, ``"pruned"``, ``"compressed"``, in percent.
    """
    original = sizes["original"]
    stages = [
        ("original", original, errors.get("reference"), None),
        ("P: pruned, retrained", sizes["pruned"], errors.get("pruned"), "ratio_p"),
        ("P+Q: shared, fine-tuned", sizes["shared"], errors.get("compressed"), "ratio_pq"),
        ("P+Q+H: Huffman-coded", sizes["coded"], errors.get("compressed"), "ratio_pqh"),
    ]
    rows = []
    for name, size, error, column in stages:
        cells = [name, f"{size:,}", f"{original / size:.1f}x", _percent(error)]
        if paper:
            kb = {None: f"{paper.reference_kb:g} KB", "ratio_pqh": f"{paper.compressed_kb:g} KB"}
            theirs = {None: paper.reference_error, "ratio_pqh": paper.compressed_error}
            ratio = f"{getattr(paper, column):g}x" if column else ""
            cells += [kb.get(column, ""), ratio, _percent(theirs.get(column))]
        rows.append(cells)
    titles = ["stage", "bytes", "ratio", "test error"]
    return titles + (["paper", "ratio", "error"] if paper else []), rows


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"


def markdown(table: Table) -> str:
    """A table in Markdown."""
    titles, rows = table
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
