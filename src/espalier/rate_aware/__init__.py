"""Training with the size of the file in the loss."""

from espalier.rate_aware.api import RateAware, RateReport
from espalier.rate_aware.grid import GridTensor
from espalier.rate_aware.refine import Refined

__all__ = ["GridTensor", "RateAware", "RateReport", "Refined"]
