"""One layer: its weights with the centroids on them, and the symbols that stand for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from espalier.analysis.figures.figure import Figure, Rows, altair, figure_name, to_figure

_STRIP = 46
"""Pixels above the histogram, for the centroids."""
_HEIGHT = 280


def weight_histogram(
    layer: str,
    bins: Rows,
    *,
    before: Sequence[float] = (),
    after: Sequence[float] = (),
    title: str = "",
) -> Figure:
    """The kept weights of a layer, and above them the centroids before and after fine-tuning.

    Parameters
    ----------
    layer : str
    bins : sequence of mappings
        ``low``, ``high`` (edges) and ``weights`` (how many).
    before, after : sequence of float
        Centroids in the same order. Where both are given, a line joins each to itself.
    title : str
    """
    alt = altair()
    drawn = [row for row in bins if row["weights"]]
    x = alt.X(
        "low:Q", title="weight", scale=alt.Scale(zero=False, nice=False), axis=alt.Axis(tickCount=7)
    )
    bars = (
        alt.Chart(alt.Data(values=drawn))
        .mark_bar(style="quiet", binSpacing=0.5)
        .encode(
            x=x.bin("binned"),
            x2="high:Q",
            y=alt.Y(
                "weights:Q",
                title="weights",
                scale=alt.Scale(range=[_HEIGHT, _STRIP]),
                axis=alt.Axis(format="~s", tickCount=5),
            ),
            tooltip=[
                alt.Tooltip("low:Q", title="from", format=".4g"),
                alt.Tooltip("high:Q", title="to", format=".4g"),
                alt.Tooltip("weights:Q", format=","),
            ],
        )
    )
    layers = [bars, *_centroids(before, after)]
    said = f"Histogram of the kept weights of {layer}"
    if after:
        said += f", with {len(after)} centroids"
        said += " before and after fine-tuning" if before else " as they are in the file"
    chart = alt.layer(*layers).properties(height=_HEIGHT)
    name = figure_name("weights", layer)
    return to_figure(name, title or f"Weights of {layer}", said + ".", chart)


def _centroids(before: Sequence[float], after: Sequence[float]) -> list[Any]:
    alt = altair()
    marks = []
    if before and len(before) == len(after):
        moved = [{"before": b, "after": a} for b, a in zip(before, after, strict=True)]
        marks.append(
            alt.Chart(alt.Data(values=moved))
            .mark_rule(style="moved")
            .encode(x="before:Q", x2="after:Q", y=alt.value(10), y2=alt.value(30))
        )
    words = alt.Chart(alt.Data(values=[{}]))
    for when, values, at in (("before", before, 10), ("after", after, 30)):
        if not values:
            continue
        rows = [{"centroid": value, "when": when} for value in values]
        marks.append(
            alt.Chart(alt.Data(values=rows))
            .mark_point(style=when, size=50, opacity=1)
            .encode(
                x="centroid:Q",
                y=alt.value(at),
                tooltip=[alt.Tooltip("centroid:Q", format=".5g"), alt.Tooltip("when:N")],
            )
        )
        text = words.mark_text(style="note", align="right", dx=-8, text=when)
        marks.append(text.encode(x=alt.value(0), y=alt.value(at)))
    return marks


def symbol_lengths(
    layer: str, what: str, rows: Rows, *, entropy: float | None = None, title: str = ""
) -> Figure:
    """How often each symbol occurs, and how many bits its code word takes (figure 5 of the paper).

    Parameters
    ----------
    layer : str
    what : str
        ``"codes"`` or ``"gaps"``.
    rows : sequence of mappings
        ``symbol`` (from, and with ``last`` to), ``count`` and ``bits`` (of its Huffman code word).
    entropy : float, optional
        Bits per symbol that no coder of single symbols goes below; said in the description.
    title : str
    """
    alt = altair()
    step = [
        dict(row) | {"from": row["symbol"] - 0.5, "to": row.get("last", row["symbol"]) + 0.5}
        for row in rows
    ]
    x = alt.X(
        "from:Q",
        title={"codes": "code (index into the codebook)", "gaps": "gap (zeros skipped)"}[what],
        scale=alt.Scale(nice=False),
        axis=alt.Axis(tickMinStep=1, format="d"),
    )
    tooltip = [
        alt.Tooltip("symbol:Q", title=what[:-1], format="d"),
        alt.Tooltip("count:Q", format=","),
        alt.Tooltip("bits:Q", title="code length, bits", format=".3g"),
    ]
    base = alt.Chart(alt.Data(values=step)).encode(x=x, x2="to:Q", tooltip=tooltip)
    bars = base.mark_bar(style="quiet", binSpacing=0).encode(
        x=x.bin("binned"), y=alt.Y("count:Q", axis=alt.Axis(format="~s", tickCount=5))
    )
    lengths = base.mark_rule(style="second").encode(
        y=alt.Y(
            "bits:Q",
            title="code length, bits",
            scale=alt.Scale(zero=True),
            axis=alt.Axis(grid=False, tickMinStep=1, format="d", style="second-axis"),
        )
    )
    chart = alt.layer(bars, lengths).resolve_scale(y="independent").properties(height=_HEIGHT)
    total = sum(row["count"] for row in rows)
    spent = sum(row["count"] * row["bits"] for row in rows) / total if total else 0.0
    said = f"Distribution of the {what} of {layer}: {total:,} in {len(rows)} bars; "
    said += f"Huffman code words take {spent:.2f} bits on average"
    said += f", the entropy is {entropy:.2f} bits." if entropy is not None else "."
    return to_figure(
        figure_name(what, layer), title or f"{what.capitalize()} of {layer}", said, chart
    )
