"""Entropy coding of integer symbols: the contract, and one file per coder."""

from espalier.entropy.coder import CODERS, EntropyCoder
from espalier.entropy.histogram import Histogram, entropy_bits

__all__ = ["CODERS", "EntropyCoder", "Histogram", "entropy_bits"]
