"""Figures: one Vega-Lite specification each, made with Altair; no colour in it, a theme gives them.

A figure function takes plain rows and gives a :class:`Figure`, which draws itself in a page
(:meth:`Figure.themed`), as SVG and as PNG, without a network. They need the extra ``report``.
"""

from espalier.analysis.figures.bytes import layer_bytes, waterfall
from espalier.analysis.figures.figure import Figure, figure_name
from espalier.analysis.figures.layers import symbol_lengths, weight_histogram
from espalier.analysis.figures.lines import Axis, curves, points, training_curves
from espalier.analysis.figures.shares import shares
from espalier.analysis.figures.theme import DARK, LIGHT, THEMES, Theme

__all__ = [
    "DARK",
    "LIGHT",
    "THEMES",
    "Axis",
    "Figure",
    "Theme",
    "curves",
    "figure_name",
    "layer_bytes",
    "points",
    "shares",
    "symbol_lengths",
    "training_curves",
    "waterfall",
    "weight_histogram",
]
