"""Error and loss of a classifier."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from espalier.modes import evaluating
from espalier.samples import Data, batches


@dataclass(frozen=True)
class Metrics:
    """What a model does on ``n`` samples. ``loss``: mean cross-entropy in nats."""

    n: int
    wrong: int
    loss: float

    @property
    def error(self) -> float:
        """Share of wrong predictions, in percent."""
        return 100.0 * self.wrong / self.n if self.n else 0.0


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, *, batch_size: int = 1000) -> Metrics:
    """Top-1 error and cross-entropy of ``model`` on ``data``, in evaluation mode.

    The model is left in the mode that it was in. Masks and codebooks are applied once, not once a
    batch.
    """
    device = next(model.parameters()).device
    n, wrong, loss = 0, 0, 0.0
    with evaluating(model), parametrize.cached():
        for x, y in batches(data, batch_size):
            outputs = model(x.to(device)).float()
            labels = y.to(device)
            n += len(labels)
            wrong += int((outputs.argmax(1) != labels).sum())
            loss += float(functional.cross_entropy(outputs, labels, reduction="sum"))
    return Metrics(n, wrong, loss / n if n else 0.0)


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set the probability of every dropout layer of ``model``.

    Han et al. 2015 (arXiv 1506.02626, section 3.2) lower it for retraining after pruning.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = probability
