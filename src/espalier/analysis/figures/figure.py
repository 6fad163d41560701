"""A figure: one specification, drawn in a page, as PNG and as SVG."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

from espalier.analysis.figures.theme import THEMES, Theme
from espalier.container import atomic_write
from espalier.errors import InvalidArgument, MissingDependency

Rows = Sequence[Mapping[str, Any]]
"""Data of a figure: one mapping of field to value for each mark."""

WIDTH = 640
FORMATS = ("png", "svg")


def altair() -> Any:
    """Altair, when a figure is wanted: importing it takes a second."""
    return need("altair")


def band_axis() -> Any:
    """The axis of the names of horizontal bars: names alone, each of them."""
    return altair().Axis(domain=False, ticks=False, labelOverlap=False, labelPadding=8)


def need(module: str) -> Any:
    """A module of the extra ``report``; :class:`MissingDependency` says how to get it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependency(
            f"figures need {error.name}, which is not installed: pip install 'espalier[report]'"
        ) from None


@dataclass(frozen=True)
class Figure:
    """One figure: a Vega-Lite specification without colours, and its words.

    Attributes
    ----------
    name : str
        Of its files: letters, digits and dashes.
    title : str
    description : str
        What a screen reader says in its place.
    spec : mapping
        Vega-Lite, as JSON values; :data:`THEMES` give the colours.

    Examples
    --------
    >>> from espalier.analysis.figures import Axis, curves
    >>> rows = [{"layer": "fc1", "density": d, "error": e} for d, e in ((0.1, 3.0), (1.0, 1.5))]
    >>> figure = curves(rows, Axis("density", log=True), Axis("error", "error, %"), title="Error")
    >>> figure.svg()[:4]
    '<svg'
    """

    name: str
    title: str
    description: str
    spec: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise InvalidArgument(f"a figure cannot be called {self.name!r}: it names a file")

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The data that it draws, that of all its marks together."""
        return [dict(row) for values in self.spec["datasets"].values() for row in values]

    def themed(self, theme: str | Theme = "light", width: int = WIDTH) -> dict[str, Any]:
        """The specification with the colours of a theme, its title, and a width in pixels."""
        chosen = _theme(theme)
        own = self.spec.get("config", {})
        return dict(self.spec) | {
            "title": self.title,
            "description": self.description,
            "width": width,
            "background": chosen.background,
            "padding": 16,
            "config": chosen.config() | own,
        }

    def svg(self, theme: str | Theme = "light", width: int = WIDTH) -> str:
        """The figure as SVG, ``width`` pixels between its axes."""
        svg: str = need("vl_convert").vegalite_to_svg(self.themed(theme, width))
        head, _, rest = svg.partition(">")
        said = f"<title>{escape(self.title)}</title><desc>{escape(self.description)}</desc>"
        return f'{head} role="img">{said}{rest}'

    def png(self, theme: str | Theme = "light", width: int = WIDTH, scale: float = 2.0) -> bytes:
        """The figure as PNG, with ``scale`` pixels of the file for each of the figure."""
        png: bytes = need("vl_convert").vegalite_to_png(self.themed(theme, width), scale=scale)
        return png

    def save(
        self,
        folder: str | Path,
        formats: Iterable[str] = FORMATS,
        theme: str | Theme = "light",
        *,
        force: bool = False,
    ) -> list[Path]:
        """Write ``folder/name.png`` and ``folder/name.svg``; the paths.

        Raises
        ------
        InvalidArgument
            A format that is neither; a file that exists, unless ``force``.
        """
        paths = [Path(folder) / f"{self.name}.{suffix}" for suffix in formats]
        for path in paths:
            self.write(path, theme, force=force)
        return paths

    def write(self, path: str | Path, theme: str | Theme = "light", *, force: bool = False) -> None:
        """Write one file, ``.png`` or ``.svg``; raises what :meth:`save` raises."""
        path = Path(path)
        if path.suffix not in (".png", ".svg"):
            raise InvalidArgument(f"{path}: figures are written as .png or .svg")
        path.parent.mkdir(parents=True, exist_ok=True)
        data = self.png(theme) if path.suffix == ".png" else self.svg(theme).encode()
        with atomic_write(path, force=force) as file:
            file.write(data)


def _theme(theme: str | Theme) -> Theme:
    if isinstance(theme, Theme):
        return theme
    if theme not in THEMES:
        raise InvalidArgument(f"theme {theme!r} is not one of {', '.join(THEMES)}")
    return THEMES[theme]


def figure_name(*parts: str) -> str:
    """A file name from words, as in ``figure_name("weights", "layer1.0.conv1")``."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(parts)).strip("-.") or "figure"


def chart_on(dataset: str) -> Any:
    """An Altair chart on the data that :func:`to_figure` is given under a name."""
    alt = altair()
    return alt.Chart(alt.NamedData(dataset))


def specification(chart: Any) -> dict[str, Any]:
    """An Altair chart as JSON values, without data and colours."""
    # Altair checks while a chart is built; checking the whole again takes longer than drawing it.
    spec: dict[str, Any] = chart.to_dict(validate=False)
    return {key: value for key, value in spec.items() if key not in ("$schema", "config")}


def to_figure(
    name: str, title: str, description: str, spec: Mapping[str, Any], **datasets: Rows
) -> Figure:
    """The figure of a specification on its data."""
    data = {key: [dict(row) for row in rows] for key, rows in datasets.items()}
    return Figure(name, title, description, dict(spec) | {"datasets": data})
