"""The published numbers of Deep Compression (Han, Mao, Dally 2016, arXiv 1510.00149)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class PaperLayer:
    """One row of tables 2 and 3.

    Percentages and bits. ``index_bits``: of a relative index. ``size_pq``, ``size_pqh``: share of
    the layer's dense float32 size after pruning and sharing, and after Huffman coding too.
    """

    keep: float
    weight_bits: float
    weight_bits_coded: float
    index_bits: float
    index_bits_coded: float
    size_pq: float
    size_pqh: float


@dataclass(frozen=True)
class PaperNetwork:
    """Table 1 and the layers of one network. Errors in percent; KB = 1000 bytes."""

    name: str
    reference_error: float
    compressed_error: float
    reference_kb: float
    compressed_kb: float
    ratio_p: float
    ratio_pq: float
    ratio_pqh: float
    layers: Mapping[str, PaperLayer]
    total: PaperLayer


LENET300 = PaperNetwork(
    "LeNet-300-100",
    reference_error=1.64,
    compressed_error=1.58,
    reference_kb=1070,
    compressed_kb=27,
    ratio_p=12,
    ratio_pq=32,
    ratio_pqh=40,
    layers=MappingProxyType(
        {
            "fc1": PaperLayer(8, 6, 4.4, 5, 3.7, 3.1, 2.32),
            "fc2": PaperLayer(9, 6, 4.4, 5, 4.3, 3.8, 3.04),
            "fc3": PaperLayer(26, 6, 4.3, 5, 3.2, 15.7, 12.70),
        }
    ),
    total=PaperLayer(8, 6, 5.1, 5, 3.7, 3.1, 2.49),
)

LENET5 = PaperNetwork(
    "LeNet-5",
    reference_error=0.80,
    compressed_error=0.74,
    reference_kb=1720,
    compressed_kb=44,
    ratio_p=12,
    ratio_pq=33,
    ratio_pqh=39,
    layers=MappingProxyType(
        {
            "conv1": PaperLayer(66, 8, 7.2, 5, 1.5, 78.5, 67.45),
            "conv2": PaperLayer(12, 8, 7.2, 5, 3.9, 6.0, 5.28),
            "fc1": PaperLayer(8, 5, 4.5, 5, 4.5, 2.7, 2.45),
            "fc2": PaperLayer(19, 5, 5.2, 5, 3.7, 6.9, 6.13),
        }
    ),
    total=PaperLayer(8, 5.3, 4.1, 5, 4.4, 3.05, 2.55),
)

PAPER: Mapping[str, PaperNetwork] = MappingProxyType({"lenet300": LENET300, "lenet5": LENET5})
"""By the name of the built-in recipe."""
