"""Parts of a whole as bars: the time of operations, the bytes of anything."""

from __future__ import annotations

from espalier.analysis.figures.figure import (
    Figure,
    Rows,
    altair,
    band_axis,
    chart_on,
    specification,
    to_figure,
)


def shares(
    rows: Rows,
    *,
    label: str,
    value: str,
    group: str,
    unit: str,
    title: str,
    name: str = "shares",
    description: str = "",
) -> Figure:
    """One bar for each row, coloured by its group: time by operation, tensor or not.

    Parameters
    ----------
    rows : sequence of mappings
        In the order to draw.
    label, value, group : str
        Fields of the rows.
    unit : str
        Of the values.
    title, name, description : str
    """
    alt = altair()
    data = [dict(row) for row in rows]
    groups = list(dict.fromkeys(row[group] for row in data))
    total = sum(row[value] for row in data) or 1.0
    for row in data:
        row["share"] = row[value] / total
    base = chart_on("rows").encode(
        y=alt.Y(
            f"{label}:N",
            sort=[row[label] for row in data],
            title=None,
            axis=band_axis(),
        ),
        x=alt.X(f"{value}:Q", title=unit, axis=alt.Axis(grid=True, tickCount=6)),
        tooltip=[
            alt.Tooltip(f"{label}:N"),
            alt.Tooltip(f"{value}:Q", title=unit, format=".4g"),
            alt.Tooltip("share:Q", format=".1%"),
        ],
    )
    colour = alt.Color(f"{group}:N", scale=alt.Scale(domain=groups), title=None)
    bars = base.mark_bar(height={"band": 0.7}).encode(color=colour)
    text = base.mark_text(align="left", dx=5, style="note").encode(
        text=alt.Text("share:Q", format=".1%")
    )
    said = description or f"Bars of {unit} by {label}. " + "; ".join(
        f"{row[label]}: {row['share']:.1%}" for row in data[:8]
    )
    chart = alt.layer(bars, text).properties(height=26 * len(data))
    return to_figure(name, title, said, specification(chart), rows=data)
