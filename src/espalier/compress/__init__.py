"""Compress a bare checkpoint, without data or a model: magnitude pruning and weight sharing.

Everything here works on one NumPy array at a time, so a checkpoint need not fit in memory. The
defaults are safe: no pruning, and at most 256 shared values for each weight, which networks bear
without retraining.
"""

from espalier.compress.checkpoint import Outcome, Summary, compress_checkpoint, compress_tensor
from espalier.compress.plan import AUTO, Step, kind_of, plan
from espalier.compress.weights import (
    AUTO_ERROR,
    EXACT,
    Error,
    magnitude_positions,
    measure,
    share,
)
from espalier.fixed_point import FLOATS, from_numbers, to_numbers

__all__ = [
    "AUTO",
    "AUTO_ERROR",
    "EXACT",
    "FLOATS",
    "Error",
    "Outcome",
    "Step",
    "Summary",
    "compress_checkpoint",
    "compress_tensor",
    "from_numbers",
    "kind_of",
    "magnitude_positions",
    "measure",
    "plan",
    "share",
    "to_numbers",
]
