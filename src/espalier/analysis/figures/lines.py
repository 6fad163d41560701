"""Curves and points: one line for each layer, method or run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from espalier.analysis.figures.figure import (
    Figure,
    Rows,
    altair,
    chart_on,
    specification,
    to_figure,
)
from espalier.analysis.figures.theme import DASHES
from espalier.errors import InvalidArgument

FEW = 8
"""Series that colours and dashes tell apart; more are coloured by their order."""
MANY = 30
"""Points of a line from which on they are drawn small."""


@dataclass(frozen=True)
class Axis:
    """One axis of a figure.

    Parameters
    ----------
    field : str
        The key of its values in the rows.
    title : str, optional
        With the unit: ``"error, %"``. The field itself by default.
    log : bool
        Logarithmic; rows whose value is not above 0 are then left out.
    zero : bool
        Whether the axis begins at 0; never on a logarithmic one.
    reverse : bool
    format : str
        As in ``d3-format``: ``"%"``, ``",d"``, ``".2f"``.
    values : sequence of float
        Where the ticks stand, if not where the library puts them.
    padding : int
        Pixels between the outermost marks and the ends of the axis.
    """

    field: str
    title: str = ""
    log: bool = False
    zero: bool = False
    reverse: bool = False
    format: str = ""
    values: Sequence[float] = ()
    padding: int = 0

    @property
    def label(self) -> str:
        """Its title, or its field."""
        return self.title or self.field

    def channel(self, kind: Any) -> Any:
        """The encoding of this axis: ``kind`` is Altair's ``X`` or ``Y``."""
        alt = altair()
        scale: dict[str, Any] = {"reverse": self.reverse, "nice": not (self.log or self.padding)}
        scale |= {"padding": self.padding} if self.padding else {}
        scale |= {"type": "log"} if self.log else {"zero": self.zero}
        axis: dict[str, Any] = {"tickCount": 6}
        axis |= {"format": self.format} if self.format else {}
        axis |= {"values": list(self.values)} if self.values else {}
        return kind(
            f"{_escape(self.field)}:Q",
            title=self.label,
            scale=alt.Scale(**scale),
            axis=alt.Axis(**axis),
        )

    def tooltip(self) -> Any:
        """What a pointer over a mark is told."""
        alt = altair()
        extra = {"format": self.format} if self.format else {}
        return alt.Tooltip(f"{_escape(self.field)}:Q", title=self.label, **extra)


def curves(
    rows: Rows,
    x: Axis,
    y: Axis,
    *,
    series: str = "layer",
    title: str,
    name: str = "curves",
    description: str = "",
    rules: Mapping[str, float] | None = None,
) -> Figure:
    """One line for each value of ``series``: accuracy against density by layer, say.

    Parameters
    ----------
    rows : sequence of mappings
        With the fields of both axes and ``series``. Rows whose x or y is None, NaN or infinite are
        left out, so that a sweep that is not finished can be drawn.
    x, y : Axis
    series : str
        Its values in the order in which they first come up are the order of the legend.
    title, name, description : str
        ``description``: what a screen reader says; by default what is drawn and its range.
    rules : mapping of str to float, optional
        Horizontal lines with a label: ``{"as trained": 0.59}``.

    Returns
    -------
    Figure

    Raises
    ------
    InvalidArgument
        There is no row left to draw.
    """
    kept = _drawable(rows, x, y, title)
    x, y = _log_ticks(x, kept), _log_ticks(y, kept)
    names = list(dict.fromkeys(str(row[series]) for row in kept))
    text = description or (
        f"Line chart of {y.label} against {x.label}, one line for each {series}: "
        f"{_listed(names)}. {_range(kept, y)}"
    )
    dense = len(kept) > MANY * len(names)
    chart = altair().layer(*_lines(names, x, y, series, dense), *(_rules(y) if rules else ()))
    lines = [{"rule": word, y.field: at} for word, at in (rules or {}).items()]
    data = {"rows": kept, "rules": lines} if rules else {"rows": kept}
    return to_figure(name, title, text, specification(chart), **data)


def _lines(names: Sequence[str], x: Axis, y: Axis, series: str, dense: bool = False) -> list[Any]:
    """Lines and their points; a click in the legend brings one out."""
    alt = altair()
    colour, dash = _series(series, names)
    pick = alt.selection_point(fields=[series], bind="legend")
    base = chart_on("rows").encode(
        x=x.channel(alt.X),
        y=y.channel(alt.Y),
        color=colour,
        opacity=alt.condition(pick, alt.value(1), alt.value(0.12)),
        tooltip=[alt.Tooltip(f"{_escape(series)}:N", title=series), x.tooltip(), y.tooltip()],
    )
    line = base.mark_line().encode(strokeDash=dash) if dash else base.mark_line()
    return [line, base.mark_point(size=12 if dense else 45).add_params(pick)]


def points(
    rows: Rows,
    x: Axis,
    y: Axis,
    *,
    label: str,
    series: str = "",
    title: str,
    name: str = "points",
    description: str = "",
) -> Figure:
    """One labelled point for each row: error against size by run, say.

    Parameters
    ----------
    rows : sequence of mappings
    x, y : Axis
    label : str
        The field of the text beside a point.
    series : str, optional
        A field that colours the points.
    title, name, description : str
    """
    alt = altair()
    kept = _drawable(rows, x, y, title)
    tooltip = [alt.Tooltip(f"{_escape(label)}:N", title=label), x.tooltip(), y.tooltip()]
    base = chart_on("rows").encode(
        x=replace(x, padding=40).channel(alt.X),
        y=replace(y, padding=20).channel(alt.Y),
        tooltip=tooltip,
    )
    if series:
        names = list(dict.fromkeys(str(row[series]) for row in kept))
        base = base.encode(color=_series(series, names)[0])
    text = base.mark_text(align="left", dx=9, baseline="middle", style="label").encode(
        text=f"{_escape(label)}:N", color=alt.Undefined
    )
    said = description or (
        f"Scatter chart of {y.label} against {x.label}: "
        + _listed([f"{row[label]} {row[x.field]:g}, {row[y.field]:g}" for row in kept])
        + "."
    )
    chart = alt.layer(base.mark_point(size=90), text)
    return to_figure(name, title, said, specification(chart), rows=kept)


def training_curves(
    rows: Rows, *, y: Axis, stages: Rows = (), title: str, name: str = "training"
) -> Figure:
    """A measure over the epochs of a whole run, its stages marked.

    Parameters
    ----------
    rows : sequence of mappings
        With ``epoch`` (counted through all stages, from 1), ``series`` and ``y.field``.
    y : Axis
    stages : sequence of mappings
        With ``epoch``, before which the stage begins, and ``stage``, its name.
    title, name : str
    """
    alt = altair()
    x = Axis("epoch", "epoch", format="d")
    kept = _drawable(rows, x, y, title)
    names = list(dict.fromkeys(str(row["series"]) for row in kept))
    layers = _lines(names, x, _log_ticks(y, kept), "series", len(kept) > MANY * len(names))
    data: dict[str, Rows] = {"rows": kept}
    said = f"Line chart of {y.label} over the epochs: {_listed(names)}. {_range(kept, y)}"
    if stages:
        data["stages"] = [dict(row) | {"at": row["epoch"] - 0.5} for row in stages]
        base = chart_on("stages").encode(x=alt.X("at:Q", title=x.label))
        text = base.mark_text(style="note", align="left", dy=-4, baseline="bottom")
        layers = [
            base.mark_rule(style="connector"),
            text.encode(text="stage:N", y=alt.value(0)),
            *layers,
        ]
        said += f" Stages: {_listed([str(row['stage']) for row in stages])}."
    return to_figure(name, title, said, specification(alt.layer(*layers)), **data)


def _drawable(rows: Rows, x: Axis, y: Axis, title: str) -> list[dict[str, Any]]:
    kept = [dict(row) for row in rows if _fits(row.get(x.field), x) and _fits(row.get(y.field), y)]
    if not kept:
        raise InvalidArgument(f"{title}: no row has both {x.field} and {y.field} to draw")
    return kept


def _log_ticks(axis: Axis, rows: Rows) -> Axis:
    """A logarithmic axis with ticks, and so lines, at 1, 2 and 5 of each decade, or 1 alone."""
    if not axis.log or axis.values:
        return axis
    values = [row[axis.field] for row in rows]
    low, high = min(values), max(values)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if math.log10(high / low) > 4 else (1, 2, 5)
    ticks = [float(f"{step}e{decade}") for decade in decades for step in steps]
    inside = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    return replace(axis, values=inside) if len(inside) > 1 else axis


def _fits(value: Any, axis: Axis) -> bool:
    if value is None or not math.isfinite(value):
        return False
    return not axis.log or value > 0


def _series(field: str, names: Sequence[str]) -> tuple[Any, Any]:
    """Encodings of colour and, for few series, of dashes."""
    alt = altair()
    kind = f"{_escape(field)}:N"
    if len(names) == 1:
        return alt.Color(kind, legend=None, scale=alt.Scale(domain=list(names))), None
    if len(names) > FEW:
        scale = alt.Scale(domain=list(names))
        legend = alt.Legend(title=None, symbolLimit=24, symbolType="circle")
        return alt.Color(f"{_escape(field)}:O", scale=scale, legend=legend), None
    dashes = [list(DASHES[i % len(DASHES)]) for i in range(len(names))]
    legend = alt.Legend(title=None, symbolType="stroke", symbolSize=400, columnPadding=24)
    colour = alt.Color(kind, scale=alt.Scale(domain=list(names)), legend=legend)
    scale = alt.Scale(domain=list(names), range=dashes)
    return colour, alt.StrokeDash(kind, scale=scale, legend=legend)


def _rules(y: Axis) -> list[Any]:
    alt = altair()
    base = chart_on("rules").encode(y=y.channel(alt.Y))
    text = base.mark_text(style="note", align="right", baseline="bottom", dy=-3)
    return [
        base.mark_rule(style="connector"),
        text.encode(text="rule:N", x=alt.value("width")),
    ]


def _range(rows: Rows, axis: Axis) -> str:
    values = [row[axis.field] for row in rows]
    return f"{axis.label} lies between {min(values):.4g} and {max(values):.4g}."


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _escape(field: str) -> str:
    """A field as Vega-Lite reads it: dots and brackets would mean a part of a value."""
    for character in ".[]:":
        field = field.replace(character, f"\\{character}")
    return field
