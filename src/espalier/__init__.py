"""Espalier: make trained neural networks small enough to ship."""

__version__ = "0.1.0"
