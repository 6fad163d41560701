"""The diagonal of the empirical Fisher information, from the user's own samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from espalier.errors import InvalidArgument
from espalier.modes import evaluating

Loss = Callable[[Tensor, Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]


def diagonal_fisher(
    model: nn.Module,
    batches: Batches,
    loss: Loss | None = None,
    *,
    chunk: int = 32,
) -> dict[nn.Parameter, Tensor]:
    """F = mean over samples of (d loss / d w)^2, element by element.

    Parameters
    ----------
    model : nn.Module
        Taken in evaluation mode, and left in the mode that it was in. Gradients and buffers of
        the model are not touched.
    batches : iterable of (inputs, targets)
        The samples; each batch is split into its samples.
    loss : callable, optional
        ``loss(outputs, targets) -> scalar``, the mean over a batch. Cross-entropy by default.
    chunk : int
        Samples whose gradients are held in memory at a time.

    Returns
    -------
    dict
        For each parameter that requires a gradient, a tensor of its shape, in its dtype.

    Raises
    ------
    InvalidArgument
        There are no samples, or a gradient is NaN or infinite.
    """
    loss = loss or nn.functional.cross_entropy
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    values = {n: p.detach() for n, p in named.items()}
    rest = dict(model.named_buffers())
    rest |= {n: p.detach() for n, p in model.named_parameters() if not p.requires_grad}

    def one(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = functional_call(model, (parameters, rest), (x.unsqueeze(0),))
        return loss(outputs, y.unsqueeze(0))

    def squares(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        per_sample: dict[str, Any] = vmap(grad(one), in_dims=(None, 0, 0))(values, x, y)
        return {n: g.square().sum(0) for n, g in per_sample.items()}

    totals = {n: torch.zeros_like(p) for n, p in values.items()}
    n = 0
    with evaluating(model):
        for x, y in batches:
            for xs, ys in zip(x.split(chunk), y.split(chunk), strict=True):
                for name, total in squares(xs, ys).items():
                    totals[name] += total
                n += len(xs)
    if not n:
        raise InvalidArgument("no batches were given to estimate the Fisher information from")
    bad = [name for name, total in totals.items() if not torch.isfinite(total).all()]
    if bad:
        raise InvalidArgument(f"gradients of {', '.join(bad)} are NaN or infinite")
    return {named[name]: total / n for name, total in totals.items()}
