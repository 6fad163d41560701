"""What one layer holds: its weights as a histogram, and the symbols that stand for them.

Everything here is plain numbers, small enough to be kept with a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from espalier.entropy.coder import CODERS
from espalier.entropy.histogram import Histogram
from espalier.entropy.positions import best_width, gap_histogram
from espalier.fixed_point import FixedPoint, SparseFixedPoint
from espalier.floats import widened
from espalier.state import (
    Array,
    Codebook,
    CompressedModel,
    CompressedTensor,
    Dense,
    Sparse,
    SparseCodebook,
)

BINS = 80
BARS = 64
"""Bars of a distribution of gaps, and a quarter of those of codes; more are taken together."""
_SAMPLE = 1 << 22
_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


@dataclass(frozen=True)
class WeightHistogram:
    """The kept weights of a layer in bins of equal width.

    ``low``, ``high``: the outermost edges. ``counts``: weights in each bin, rising. ``centroids``:
    the values that they share, in the order of their codes; empty where none are shared.
    """

    name: str
    low: float
    high: float
    counts: tuple[int, ...]
    centroids: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self) | {"counts": list(self.counts), "centroids": list(self.centroids)}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> WeightHistogram:
        """The inverse of :meth:`to_json`; KeyError, TypeError or ValueError for anything else."""
        return cls(
            name=str(plain["name"]),
            low=float(plain["low"]),
            high=float(plain["high"]),
            counts=tuple(int(n) for n in plain["counts"]),
            centroids=tuple(float(c) for c in plain["centroids"]),
        )

    def bins(self) -> list[dict[str, float]]:
        """Rows for :func:`espalier.analysis.figures.weight_histogram`."""
        edges = np.linspace(self.low, self.high, len(self.counts) + 1)
        return [
            {"low": _short(low), "high": _short(high), "weights": n}
            for low, high, n in zip(edges[:-1], edges[1:], self.counts, strict=True)
        ]


@dataclass(frozen=True)
class Symbols:
    """How often each code or gap of a layer occurs, and how long its Huffman code word is.

    Attributes
    ----------
    rows : tuple of dict
        ``symbol`` (``last`` too where several are one bar), ``count``, ``bits``.
    fixed_bits : int
        Of a symbol at fixed width.
    huffman_bits, entropy_bits : float
        Mean bits of a symbol, tables not counted.
    """

    rows: tuple[dict[str, float], ...]
    fixed_bits: int
    huffman_bits: float
    entropy_bits: float


def is_weight(tensor: CompressedTensor) -> bool:
    """Whether a tensor is a layer's weight in floating point: two dimensions or more."""
    return len(tensor.shape) >= 2 and tensor.dtype in _FLOATS and tensor.size > 0


def weight_histograms(model: CompressedModel) -> list[WeightHistogram]:
    """The histograms of all weights of a model, those of tied ones once."""
    return [
        weight_histogram(name, tensor)
        for name, tensor in model.tensors.items()
        if is_weight(tensor) and tensor.stored
    ]


def weight_histogram(name: str, tensor: CompressedTensor) -> WeightHistogram:
    """The histogram of the weights that are kept.

    Parameters
    ----------
    name : str
    tensor : CompressedTensor
        In floating point, with at least one kept element. Of more than four million exact values
        every k-th is looked at.

    Examples
    --------
    >>> tensor = Codebook((2, 2), "float32", np.array([0, 1, 1, 0], "u1"), np.array([-1, 1], "<f4"))
    >>> found = weight_histogram("w", tensor)
    >>> found.low, found.high, sum(found.counts), found.centroids
    (-1.0, 1.0, 4, (-1.0, 1.0))
    """
    centroids: Array = np.zeros(0)
    counts: Array | None = None
    match tensor:
        case Codebook() | SparseCodebook():
            centroids = to_float(tensor.codebook, tensor.dtype)
            values, counts = centroids, Histogram.of(tensor.codes).dense(centroids.size)
        case Dense() | Sparse():
            step = -(-tensor.values.size // _SAMPLE)
            values = to_float(tensor.values[::step], tensor.dtype)
        case FixedPoint():
            values = to_float(tensor.dense().reshape(-1)[_kept(tensor)], tensor.dtype)
        case _:
            raise TypeError(type(tensor).__name__)
    finite = np.isfinite(values)
    values = values[finite]
    counts = counts[finite] if counts is not None else None
    if not values.size:
        return WeightHistogram(name, 0.0, 0.0, (0,))
    low, high = float(values.min()), float(values.max())
    binned, _ = np.histogram(values, bins=BINS, range=(low, high), weights=counts)
    shared = tuple(_short(c) for c in centroids)
    return WeightHistogram(name, low, high, tuple(int(n) for n in binned), shared)


def _kept(tensor: FixedPoint) -> Array | slice:
    return tensor.positions if isinstance(tensor, SparseFixedPoint) else slice(None)


def to_float(values: Array, dtype: str) -> Array:
    """Values in their storage dtype as float64: bfloat16 lies in 16 bits of an integer."""
    return widened(values, dtype).astype(np.float64)


def code_symbols(tensor: CompressedTensor) -> Symbols | None:
    """The codes of a shared layer; None where none are written."""
    levels = _levels(tensor)
    if not levels or not tensor.stored:
        return None
    counts = Histogram.of(tensor.codes).dense(levels)  # type: ignore[attr-defined]
    return _symbols(counts, max(levels - 1, 0).bit_length(), 4 * BARS)


def _levels(tensor: CompressedTensor) -> int:
    """How many codes there are; 0 where none are written."""
    if isinstance(tensor, FixedPoint):
        return tensor.levels
    return tensor.codebook.size if isinstance(tensor, Codebook | SparseCodebook) else 0


def gap_symbols(tensor: CompressedTensor) -> Symbols | None:
    """The gaps between kept weights as the paper writes them; None where nothing is pruned.

    A gap is written in b bits; where it is 2^b - 1 or more, a filler (the symbol 2^b - 1) skips so
    many zeros first (Han et al. 2016, section 2, figure 2). b is the width at which gaps and codes
    together are smallest, as in the ledger.
    """
    if not isinstance(tensor, Sparse | SparseCodebook | SparseFixedPoint) or not tensor.stored:
        return None
    beside = 8 * tensor.nbytes // tensor.size
    if levels := _levels(tensor):
        beside = max(levels - 1, 0).bit_length()
    gaps = gap_histogram(tensor.positions)
    width = best_width(gaps, beside)
    filler = (1 << width) - 1
    counts = np.bincount(gaps.values % filler, gaps.counts, filler + 1).astype(np.int64)
    counts[filler] = int((gaps.values // filler) @ gaps.counts)
    return _symbols(counts, width, BARS)


def _symbols(counts: Array, fixed_bits: int, most: int) -> Symbols:
    used = int(np.flatnonzero(counts)[-1]) + 1
    counts = counts[:used]
    coder = CODERS.get("huffman")()
    lengths = coder.fit(counts).lengths[:used].astype(np.int64)
    total = int(counts.sum())
    bits = float(counts @ lengths) / total
    entropy = Histogram(np.arange(used)[counts > 0], counts[counts > 0]).entropy_bits / total
    return Symbols(tuple(_bars(counts, lengths, most)), fixed_bits, bits, entropy)


def _bars(counts: Array, lengths: Array, most: int) -> list[dict[str, float]]:
    """A row for each symbol; where there are many, for each run of neighbours."""
    step = -(-counts.size // BARS) if counts.size > most else 1
    rows: list[dict[str, float]] = []
    for start in range(0, counts.size, step):
        part, bits = counts[start : start + step], lengths[start : start + step]
        n = int(part.sum())
        if n:
            row = {"symbol": start, "count": n, "bits": round(float(part @ bits) / n, 3)}
            rows.append(row if step == 1 else row | {"last": start + part.size - 1})
    return rows


def _short(value: float) -> float:
    """As many digits as a picture can show: they make up most of a report."""
    return float(f"{value:.5g}")


def layer_streams(ledger: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Bytes of each layer by what they are, for :func:`espalier.analysis.figures.layer_bytes`."""
    layers: dict[str, dict[str, Any]] = {}
    streams: Sequence[str] = ("positions", "codes", "values", "codebook", "tables", "header")
    for row in ledger["tensors"]:
        name = row["name"].rpartition(".")[0] or row["name"]
        layer = layers.setdefault(name, {"layer": name} | dict.fromkeys(streams, 0))
        for stream in streams:
            layer[stream] += row[f"{stream}_bytes"]
    return list(layers.values())
