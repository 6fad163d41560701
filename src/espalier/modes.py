"""Training and evaluation mode for a while; every module's own is back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import nn


@contextmanager
def in_mode(*models: nn.Module, training: bool) -> Iterator[None]:
    """All modules of ``models`` in training mode, or in evaluation mode.

    Not ``model.train(was)`` at the end: a batch norm that the user froze would learn again.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    >>> with evaluating(model):
    ...     model.training, model[1].training
    (False, False)
    >>> model.training, model[1].training
    (True, False)
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def evaluating(*models: nn.Module) -> AbstractContextManager[None]:
    """:func:`in_mode` with evaluation mode."""
    return in_mode(*models, training=False)
