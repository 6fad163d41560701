"""Where the bytes went: from the original to the file, and layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from espalier.analysis.figures.figure import (
    Figure,
    Rows,
    altair,
    band_axis,
    chart_on,
    specification,
    to_figure,
)
from espalier.errors import InvalidArgument

STREAMS = ("positions", "codes", "values", "codebook", "tables", "header")
"""What a tensor's bytes are, in the order in which they are stacked."""


def waterfall(
    steps: Sequence[tuple[str, int]], *, title: str = "From the original to the file"
) -> Figure:
    """Bytes after each step, on a logarithmic axis: a bar's length is the factor that it saves.

    Parameters
    ----------
    steps : sequence of (str, int)
        The first is the original; each further one is what is left after a step: ``("pruned",
        61717)``. A last bar shows the file.
    title : str
    """
    if len(steps) < 2 or any(size <= 0 for _, size in steps):
        raise InvalidArgument("a waterfall takes at least two steps, of more than 0 bytes each")
    alt = altair()
    rows = _steps(steps)
    sizes = [size for _, size in steps]
    floor, ceiling = _decade(min(sizes)), 25 * max(sizes)
    for row in rows:
        row["from"] = max(row["from"], floor)
    decades = [10**i for i in range(len(str(floor)) - 1, len(str(ceiling)))]
    scale = alt.Scale(type="log", domain=[floor, ceiling], nice=False)
    axis = alt.Axis(format="~s", grid=True, values=decades, title="bytes, logarithmic")
    order = [row["step"] for row in rows]
    base = chart_on("rows").encode(
        y=alt.Y("step:N", sort=order, title=None, axis=band_axis()),
        tooltip=[
            alt.Tooltip("step:N"),
            alt.Tooltip("bytes:Q", format=","),
            alt.Tooltip("change:N", title="factor"),
        ],
    )
    colours = alt.Color("kind:N", scale=alt.Scale(domain=["whole", "saved", "added"]), legend=None)
    bars = base.mark_bar(height={"band": 0.62}, cornerRadius=2).encode(
        x=alt.X("from:Q", scale=scale, axis=axis), x2="to:Q", color=colours
    )
    labels = base.mark_text(align="left", dx=7, style="label").encode(
        x=alt.X("right:Q", scale=scale), text="label:N"
    )
    said = "Waterfall of bytes. " + "; ".join(f"{name}: {size:,} bytes" for name, size in steps)
    chart = alt.layer(bars, labels).properties(height=40 * len(rows))
    return to_figure("waterfall", title, said + ".", specification(chart), rows=rows)


def _decade(size: int) -> int:
    """Where the axis begins: a power of ten, far enough below that the last bar is seen."""
    below = 10 ** (len(str(size)) - 1)
    return max(1, below if size >= 2 * below else below // 10)


def _steps(steps: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    """A row for each bar: where it begins and ends, and its words."""
    (first, original), *rest = steps
    rows: list[dict[str, Any]] = [
        _bar(first, "whole", 0, original, original, f"{original:,} B", "")
    ]
    before = original
    for name, size in rest:
        factor = before / size
        change = f"÷ {factor:.3g}" if factor >= 1 else f"× {1 / factor:.3g}"
        kind = "saved" if size <= before else "added"
        rows.append(_bar(name, kind, size, before, size, f"{change}", change))
        before = size
    total = f"{before:,} B, {original / before:.3g}x smaller"
    rows.append(_bar("the file", "whole", 0, before, before, total, f"÷ {original / before:.3g}"))
    return rows


def _bar(
    step: str, kind: str, start: int, end: int, size: int, label: str, change: str
) -> dict[str, Any]:
    return {
        "step": step,
        "kind": kind,
        "from": start,
        "to": end,
        "right": max(start, end),
        "bytes": size,
        "label": label,
        "change": change,
    }


def layer_bytes(
    rows: Rows, *, most: int = 16, title: str = "Bytes in the file, by layer"
) -> Figure:
    """What the bytes of each layer are: positions, codes, codebook, tables, values, header.

    Parameters
    ----------
    rows : sequence of mappings
        ``layer``, and a number of bytes under each of :data:`STREAMS`.
    most : int
        Layers drawn: the largest, in their order; the others are one bar.
    title : str
    """
    alt = altair()
    kept = _largest(rows, most)
    long: list[dict[str, Any]] = [
        {"layer": row["layer"], "stream": stream, "bytes": row[stream]}
        for row in kept
        for stream in STREAMS
        if row[stream]
    ]
    used = [stream for stream in STREAMS if any(row["stream"] == stream for row in long)]
    for row in long:
        row["order"] = used.index(row["stream"])
    chart = (
        chart_on("rows")
        .mark_bar(height={"band": 0.7})
        .encode(
            y=alt.Y(
                "layer:N",
                sort=[row["layer"] for row in kept],
                title=None,
                axis=band_axis(),
            ),
            x=alt.X("bytes:Q", title="bytes", axis=alt.Axis(format="~s", grid=True, tickCount=5)),
            color=alt.Color("stream:N", scale=alt.Scale(domain=used), title=None),
            order=alt.Order("order:Q"),
            tooltip=["layer:N", "stream:N", alt.Tooltip("bytes:Q", format=",")],
        )
        .properties(height=26 * len(kept))
    )
    largest = max(kept, key=_sum) if kept else None
    said = "Stacked bars of the bytes of each layer."
    if largest is not None:
        said += f" Most are in {largest['layer']}: {_sum(largest):,} bytes."
    return to_figure("layer-bytes", title, said, specification(chart), rows=long)


def _sum(row: Mapping[str, int]) -> int:
    return sum(row[stream] for stream in STREAMS)


def _largest(rows: Rows, most: int) -> list[dict[str, Any]]:
    if len(rows) <= most:
        return [dict(row) for row in rows]
    by_size = sorted(rows, key=_sum, reverse=True)
    chosen = {id(row) for row in by_size[: most - 1]}
    kept = [dict(row) for row in rows if id(row) in chosen]
    rest = [row for row in rows if id(row) not in chosen]
    others: dict[str, Any] = {"layer": f"{len(rest)} others"}
    return [*kept, others | {stream: sum(row[stream] for row in rest) for stream in STREAMS}]
