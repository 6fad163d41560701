"""How the loss curves in each layer: second moments of its inputs and of its outputs' gradients.

The Fisher information of a layer's weights is taken as the Kronecker product of H = E[a a^T], a the
inputs that meet one row of weights, and diag(g), g_o = positions x E[(d loss / d y_o)^2] (Martens
and Grosse 2015, arXiv 1503.05671; for convolutions Grosse and Martens 2016, arXiv 1602.01407).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from espalier.errors import InvalidArgument
from espalier.targets import find_targets, unwrap

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(eq=False)
class LayerCurvature:
    """Sums over what was seen of one layer; the properties are means, in float64."""

    moments_sum: Tensor
    inputs_sum: Tensor
    gradients_sum: Tensor
    rows: int = 0
    positions: int = 1
    gradients: int = 0

    @property
    def moments(self) -> Tensor:
        """H, (inputs, inputs)."""
        return self.moments_sum / max(self.rows, 1)

    @property
    def mean_input(self) -> Tensor:
        """E[a], (inputs,)."""
        return self.inputs_sum / max(self.rows, 1)

    @property
    def curvature(self) -> Tensor:
        """g, (outputs,)."""
        return self.gradients_sum / max(self.gradients, 1) * self.positions


def supported(module: nn.Module) -> bool:
    """Whether the inputs that meet a row of the module's weights can be laid out as rows."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    """(n, inputs): what meets a row of weights, for all samples, positions and groups."""
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    size, padding, dilation, stride = (
        tuple(value)
        for value in (module.kernel_size, module.padding, module.dilation, module.stride)
    )
    if isinstance(module, nn.Conv1d):
        x, size, padding = x.unsqueeze(-2), (1, *size), (0, *padding)
        dilation, stride = (1, *dilation), (1, *stride)
    columns = functional.unfold(x, size, dilation, padding, stride)  # type: ignore[arg-type]
    grouped = columns.unflatten(1, (module.groups, -1))
    return grouped.permute(0, 1, 3, 2).flatten(0, 2)


def _outputs(module: nn.Module, gradient: Tensor) -> Tensor:
    """(n, outputs) of a gradient with respect to the module's output."""
    if isinstance(module, nn.Linear):
        return gradient.reshape(-1, gradient.shape[-1])
    return gradient.movedim(1, -1).reshape(-1, gradient.shape[1])


def collect_curvature(
    model: nn.Module, batches: Batches, loss: Loss | None = None, *, seed: int = 0
) -> dict[str, LayerCurvature]:
    """H and g of every linear and convolution layer, from a few batches of the user's data.

    Parameters
    ----------
    model : nn.Module
        Taken in evaluation mode, and left in the mode that it was in; nothing in it changes.
    batches : iterable of (inputs, targets)
        Some hundred samples are enough for small networks.
    loss : callable, optional
        ``loss(outputs, targets)``, the mean over a batch: then g is from the empirical Fisher
        information. Without it outputs are logits, and targets are drawn from what the model itself
        predicts: the Fisher information proper, which needs no labels.
    seed : int
        For the targets that are drawn.

    Returns
    -------
    dict
        By the name of the weight.
    """
    model = unwrap(model)
    weights = {id(t.latent): t.name for t in find_targets(model) if not t.obstacle}
    found: dict[str, LayerCurvature] = {}
    generator = torch.Generator().manual_seed(seed)
    training, seen = model.training, 0
    model.eval()
    try:
        with _watching(model, weights, found):
            for x, y in batches:
                outputs = model(x)
                value = _drawn(outputs, generator) if loss is None else loss(outputs, y) * len(x)
                torch.autograd.grad(
                    value, [p for p in model.parameters() if p.requires_grad], allow_unused=True
                )
                seen += len(x)
    finally:
        model.train(training)
    if not seen:
        raise InvalidArgument("no batches were given to estimate the curvature from")
    return found


def _drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Sum of the cross-entropies with targets drawn from the predictions."""
    flat = logits.flatten(0, -2)
    drawn = torch.multinomial(flat.detach().float().softmax(-1).cpu(), 1, generator=generator)
    return functional.cross_entropy(flat, drawn.flatten().to(flat.device), reduction="sum")


@contextmanager
def _watching(
    model: nn.Module, weights: dict[int, str], found: dict[str, LayerCurvature]
) -> Iterator[None]:
    """Add what each supported layer sees, forward and backward, to ``found``."""
    names = {
        id(site.module): weights[id(target.latent)]
        for target in find_targets(model)
        for site in target.sites
        if site.attribute == "weight" and not target.obstacle and id(target.latent) in weights
    }
    handles = [
        module.register_forward_hook(_hook(names[id(module)], found))
        for module in model.modules()
        if id(module) in names and supported(module)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(name: str, found: dict[str, LayerCurvature]) -> Callable[..., None]:
    def forward(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        rows = _rows(module, inputs[0].detach())
        n, width = rows.shape
        if name not in found:
            zeros = rows.new_zeros(width, dtype=torch.float64)
            outputs = output.shape[-1 if isinstance(module, nn.Linear) else 1]
            found[name] = LayerCurvature(
                torch.outer(zeros, zeros), zeros.clone(), zeros.new_zeros(outputs)
            )
        layer = found[name]
        layer.moments_sum += (rows.T @ rows).double()
        layer.inputs_sum += rows.sum(0).double()
        layer.rows += n

        def backward(gradient: Tensor) -> None:
            squares = _outputs(module, gradient.detach()).double().square()
            layer.gradients_sum += squares.sum(0)
            layer.gradients += len(squares)
            layer.positions = len(squares) // len(gradient)

        if output.requires_grad:
            output.register_hook(backward)

    return forward
