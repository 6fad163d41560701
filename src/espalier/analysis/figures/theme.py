"""How every figure and the report look: colours, sizes, fonts, in light and in dark.

Specifications of figures hold no colour. They name roles (``style="after"``) and categories, and a
theme gives each its colour, so that one figure is drawn in both.

The categories tell apart under protanopia, deuteranopia and tritanopia (they are those of Okabe and
Ito 2008, darkened or lightened until each stands out from the background by at least 3 to 1, as
WCAG 2.2, 1.4.11, asks); lines also differ by their dashes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
TEXT = 13
"""Size of axis labels, in pixels; nothing in a figure is smaller."""

DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3), (4, 2))


@dataclass(frozen=True)
class Theme:
    """Colours by role.

    Attributes
    ----------
    background, surface : str
        Behind a figure; of panels and code.
    ink, muted, rule : str
        Text; secondary text; grid and borders.
    quiet : str
        Of histograms, over which something else is drawn.
    categories : tuple of str
        In the order in which series take them.
    ramp : (float, float)
        The part of viridis, from 0 (dark) to 1 (light), for many series in an order.
    """

    name: str
    background: str
    surface: str
    ink: str
    muted: str
    rule: str
    quiet: str
    categories: tuple[str, ...]
    ramp: tuple[float, float]

    def config(self) -> dict[str, Any]:
        """The Vega-Lite ``config`` of this theme."""
        blue, orange = self.categories[:2]
        axis = {
            "labelFontSize": TEXT,
            "titleFontSize": TEXT,
            "titleFontWeight": "normal",
            "labelColor": self.muted,
            "titleColor": self.ink,
            "gridColor": self.rule,
            "domainColor": self.rule,
            "tickColor": self.rule,
            "titlePadding": 8,
            "labelLimit": 140,
            "labelOverlap": True,
        }
        return {
            "background": self.background,
            "font": FONT,
            "view": {"stroke": None, "continuousHeight": 280},
            "axis": axis,
            "axisX": {"grid": False},
            "legend": {
                "labelFontSize": TEXT,
                "titleFontSize": TEXT,
                "titleFontWeight": "normal",
                "labelColor": self.ink,
                "titleColor": self.muted,
                "orient": "top",
                "columns": 4,
                "labelLimit": 180,
                "symbolStrokeWidth": 2,
            },
            "title": {
                "anchor": "start",
                "color": self.ink,
                "fontSize": 15,
                "fontWeight": 600,
                "offset": 12,
            },
            "range": {
                "category": list(self.categories),
                "ordinal": {"scheme": "viridis", "extent": list(self.ramp)},
            },
            "bar": {"color": blue},
            "line": {"color": blue, "strokeWidth": 2},
            "point": {"color": blue, "filled": True, "size": 45},
            "style": {
                "quiet": {"color": self.quiet},
                "connector": {"color": self.muted, "strokeWidth": 1, "strokeDash": [3, 3]},
                "label": {"color": self.ink, "fontSize": TEXT},
                "note": {"color": self.muted, "fontSize": TEXT},
                "before": {"color": self.muted},
                "after": {"color": orange},
                "moved": {"color": self.muted, "strokeWidth": 1},
                "second": {"color": orange, "strokeWidth": 2.5},
                "second-axis": {"titleColor": orange, "labelColor": orange},
            },
        }


LIGHT = Theme(
    name="light",
    background="#ffffff",
    surface="#f5f6f4",
    ink="#1b211d",
    muted="#5a645d",
    rule="#dde2de",
    quiet="#a9b7c4",
    categories=(
        "#0b6fae",
        "#c75100",
        "#00835c",
        "#b14d8a",
        "#8d6500",
        "#3a8bc2",
        "#6a4fb3",
        "#5a5a5a",
    ),
    ramp=(0.0, 0.82),
)
DARK = Theme(
    name="dark",
    background="#141816",
    surface="#1d2320",
    ink="#e8ece9",
    muted="#a3ada7",
    rule="#343c37",
    quiet="#4c5c69",
    categories=(
        "#5cb3ec",
        "#f08a3c",
        "#2fc295",
        "#e08fc1",
        "#e0b341",
        "#9ad0f5",
        "#b39ddb",
        "#b5b5b5",
    ),
    ramp=(0.3, 1.0),
)
THEMES: Mapping[str, Theme] = MappingProxyType({"light": LIGHT, "dark": DARK})
