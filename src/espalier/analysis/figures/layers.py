"""One layer: its weights with the centroids on them, and the symbols that stand for them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from espalier.analysis.figures.figure import (
    Figure,
    Rows,
    altair,
    chart_on,
    figure_name,
    specification,
    to_figure,
)

_STRIP = 46
"""Pixels above the histogram, for the centroids."""
_HEIGHT = 280
SKEWED = 12
"""Times the mean that the commonest symbol occurs, above which counts have a square root axis."""


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
    data: dict[str, Rows] = {"bins": [row for row in bins if row["weights"]]}
    if after:
        data["after"] = [{"centroid": value} for value in after]
    if before:
        data["before"] = [{"centroid": value} for value in before]
    if before and len(before) == len(after):
        data["moved"] = [{"from": b, "to": a} for b, a in zip(before, after, strict=True)]
    said = f"Histogram of the kept weights of {layer}"
    if after:
        said += f", with {len(after)} centroids"
        said += " before and after fine-tuning" if before else " as they are in the file"
    name = figure_name("weights", layer)
    spec = _histogram(frozenset(data))
    return to_figure(name, title or f"Weights of {layer}", said + ".", spec, **data)


@cache
def _histogram(parts: frozenset[str]) -> dict[str, Any]:
    """The specification of a histogram with some of ``moved``, ``before`` and ``after``."""
    alt = altair()
    axis = alt.Axis(tickCount=7)
    x = alt.X("low:Q", title="weight", scale=alt.Scale(zero=False, nice=False), axis=axis)
    y = alt.Y(
        "weights:Q",
        title="weights",
        scale=alt.Scale(range=[_HEIGHT, _STRIP]),
        axis=alt.Axis(format="~s", tickCount=5),
    )
    tooltip = [
        alt.Tooltip("low:Q", title="from", format=".4g"),
        alt.Tooltip("high:Q", title="to", format=".4g"),
        alt.Tooltip("weights:Q", format=","),
    ]
    bars = chart_on("bins").mark_bar(style="quiet", binSpacing=0.5)
    layers = [bars.encode(x=x.bin("binned"), x2="high:Q", y=y, tooltip=tooltip)]
    if "moved" in parts:
        rule = chart_on("moved").mark_rule(style="moved")
        layers.append(rule.encode(x="from:Q", x2="to:Q", y=alt.value(10), y2=alt.value(30)))
    for when, at in (("before", 10), ("after", 30)):
        if when in parts:
            layers += _centroids(when, at)
    return specification(alt.layer(*layers).properties(height=_HEIGHT))


def _centroids(when: str, at: int) -> list[Any]:
    """A row of points, and the word for it on the left."""
    alt = altair()
    point = chart_on(when).mark_point(style=when, size=50, opacity=1)
    tooltip = [alt.Tooltip("centroid:Q", title=when, format=".5g")]
    word = alt.Chart(alt.Data(values=[{}])).mark_text(style="note", align="right", dx=-8, text=when)
    return [
        point.encode(x="centroid:Q", y=alt.value(at), tooltip=tooltip),
        word.encode(x=alt.value(0), y=alt.value(at)),
    ]


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
    total = sum(row["count"] for row in rows)
    spent = sum(row["count"] * row["bits"] for row in rows) / total if total else 0.0
    said = f"Distribution of the {what} of {layer}: {total:,} in {len(rows)} bars; "
    said += f"Huffman code words take {spent:.2f} bits on average"
    said += f", the entropy is {entropy:.2f} bits." if entropy is not None else "."
    name = figure_name(what, layer)
    words = title or f"{what.capitalize()} of {layer}"
    placed = [
        dict(row) | {"from": row["symbol"] - 0.5, "to": row.get("last", row["symbol"]) + 0.5}
        for row in rows
    ]
    counts = [row["count"] for row in rows]
    skewed = len(rows) > 1 and max(counts) > SKEWED * total / len(rows)
    return to_figure(name, words, said, _lengths(what, skewed), rows=placed)


@cache
def _lengths(what: str, skewed: bool) -> dict[str, Any]:
    """The specification of :func:`symbol_lengths`."""
    alt = altair()
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
    base = chart_on("rows").encode(x=x, x2="to:Q", tooltip=tooltip)
    y = alt.Y(
        "count:Q",
        title="count, square root" if skewed else "count",
        scale=alt.Scale(type="sqrt") if skewed else alt.Undefined,
        axis=alt.Axis(format="~s", tickCount=5),
    )
    bars = base.mark_bar(style="quiet", binSpacing=0).encode(x=x.bin("binned"), y=y)
    lengths = base.mark_rule(style="second").encode(
        y=alt.Y(
            "bits:Q",
            title="code length, bits",
            scale=alt.Scale(zero=True),
            axis=alt.Axis(grid=False, tickMinStep=1, format="d", style="second-axis"),
        )
    )
    chart = alt.layer(bars, lengths).resolve_scale(y="independent").properties(height=_HEIGHT)
    return specification(chart)
