"""Training with the size of the file in the loss."""

from espalier.rate_aware.api import GridTensor, RateAware, RateReport

__all__ = ["GridTensor", "RateAware", "RateReport"]
