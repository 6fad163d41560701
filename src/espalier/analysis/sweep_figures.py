"""The figures of a sweep: for each axis, one curve for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from espalier.analysis.figures import Axis, Figure, curves, figure_name
from espalier.analysis.figures.figure import need
from espalier.analysis.sensitivity import Sweep
from espalier.container import atomic_write

_LOG_RATIO = 8  # an axis whose values span more than this is drawn logarithmic


def sweep_figures(sweep: Sweep) -> list[Figure]:
    """One figure for each axis: the metric, or without one the SQNR, of every layer.

    Examples
    --------
    >>> import torch, espalier
    >>> sweep = espalier.sensitivity(torch.nn.Linear(8, 8), grid={"bits": (1, 2)}, jobs=1)
    >>> [figure.name for figure in sweep_figures(sweep)]
    ['sensitivity-bits']
    """
    return [_figure(sweep, axis) for axis in sweep.axes]


def _figure(sweep: Sweep, axis: str) -> Figure:
    judged = sweep.baseline is not None
    field = sweep.metric if judged else "SQNR"
    rows = [
        {"layer": layer.short, axis: point.value, field: point.metric if judged else point.sqnr_db}
        for layer in sweep.layers
        for point in sweep.curve(layer.name, axis)
    ]
    values = sweep.grid(axis)
    log = values[0] > 0 and values[-1] / values[0] > _LOG_RATIO
    return curves(
        rows,
        Axis(axis, log=log, values=values if len(values) <= 12 else ()),
        Axis(field, "SQNR, dB" if not judged else ""),
        title=f"{field} by {axis}, one layer at a time",
        name=figure_name("sensitivity", axis),
        rules={"as it is": sweep.baseline} if sweep.baseline is not None else None,
    )


def save_figures(
    figures: Sequence[Figure], folder: str | Path, formats: Sequence[str] = ("png", "svg", "html")
) -> list[Path]:
    """Each as PNG, as SVG, and as a page of its own that needs no network."""
    paths = []
    for figure in figures:
        paths += figure.save(folder, [f for f in formats if f != "html"], force=True)
        if "html" in formats:
            page = Path(folder) / f"{figure.name}.html"
            html: str = need("vl_convert").vegalite_to_html(figure.themed(), bundle=True)
            with atomic_write(page, force=True) as file:
                file.write(html.encode())
            paths.append(page)
    return paths
