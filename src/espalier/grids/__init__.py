"""Which numbers a weight may take, and at which scale: fixed point, binary, ternary.

The formulas are written once, for arrays of NumPy's and for tensors: the first calibrate and
compress, the second train. One method is one file under ``methods``.
"""

from espalier.grids.grid import GRIDS, Grid, blocks_of, check_method, check_precision

__all__ = ["GRIDS", "Grid", "blocks_of", "check_method", "check_precision"]
