"""How the loss curves in each layer: second moments of its inputs and of its outputs' gradients.

The Fisher information of a layer's weights is taken as the Kronecker product of H = E[a a^T], a the
inputs that meet one row of weights, and G = positions x E[d d^T], d the gradient of the loss in the
outputs (Martens and Grosse 2015, arXiv 1503.05671; for convolutions Grosse and Martens 2016, arXiv
1602.01407). Where a batch norm directly follows a layer, its outputs are seen too, for the layer
that has it folded in (:mod:`espalier.quantization.norms`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from espalier.errors import InvalidArgument
from espalier.modes import evaluating
from espalier.parametrization import finalize
from espalier.quantization.norms import BatchNorm, can_fold, fold_batchnorm
from espalier.targets import find_targets, unwrap

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]

FULL_OUTPUTS = 1024
"""Of a layer with more outputs only the diagonal of G is kept."""
POSITIONS = 256
"""Of a convolution, for each sample, whose inputs are looked at."""
_SAME = 1e-3


@dataclass(eq=False)
class OutputCurvature:
    """Sums of the gradients' products over all positions, and of their sums over a sample's."""

    products: Tensor
    of_bias: Tensor

    @staticmethod
    def zeros(outputs: int, like: Tensor) -> OutputCurvature:
        """Nothing seen yet."""
        shape = (outputs, outputs) if outputs <= FULL_OUTPUTS else (outputs,)
        wide = like.new_zeros(shape, dtype=torch.float64)
        return OutputCurvature(wide, like.new_zeros(outputs, dtype=torch.float64))

    def add(self, module: nn.Module, gradient: Tensor) -> None:
        """Add the gradients in a batch of outputs."""
        rows = _outputs(module, gradient.detach())
        if self.products.dim() == 2:
            self.products += (rows.T @ rows).double()
        else:
            self.products += rows.double().square().sum(0)
        each = rows.view(len(gradient), -1, rows.shape[1]).sum(1)
        self.of_bias += each.double().square().sum(0)


@dataclass(eq=False)
class LayerCurvature:
    """Sums over what was seen of one layer; the properties are means, in float64.

    ``norm``: name of the batch norm that takes its outputs, if any; ``normed``: the curvature in
    that norm's outputs.
    """

    moments_sum: Tensor
    inputs_sum: Tensor
    outputs: OutputCurvature
    rows: int = 0
    samples: int = 0
    norm: str = ""
    normed: OutputCurvature | None = None

    @property
    def moments(self) -> Tensor:
        """H, (inputs, inputs)."""
        return self.moments_sum / max(self.rows, 1)

    @property
    def mean_input(self) -> Tensor:
        """E[a], (inputs,)."""
        return self.inputs_sum / max(self.rows, 1)

    @property
    def covariance(self) -> Tensor:
        """E[a a^T] - E[a] E[a]^T, (inputs, inputs)."""
        return self.moments - torch.outer(self.mean_input, self.mean_input)

    @property
    def curvature(self) -> Tensor:
        """Diagonal of G, (outputs,)."""
        full = self.outputs.products
        return (full.diagonal() if full.dim() == 2 else full) / max(self.samples, 1)


def supported(module: nn.Module) -> bool:
    """Whether the inputs that meet a row of the module's weights can be laid out as rows."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


def _rows(module: nn.Module, x: Tensor) -> Tensor:
    """(n, inputs): what meets a row of weights, for all samples, groups and positions.

    Where a sample has more than :data:`POSITIONS`, only every other row and column of them, or
    every third, and so on: neighbours see nearly the same.
    """
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    assert isinstance(module, nn.Conv1d | nn.Conv2d)
    size, padding, dilation, stride = _geometry(module)
    dims = len(size)
    if dims == 1:
        x, size, padding = x.unsqueeze(-2), (1, *size), (0, *padding)
        dilation, stride = (1, *dilation), (1, *stride)
    positions = math.prod(
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, p, d, k, s in zip(x.shape[-2:], padding, dilation, size, stride, strict=True)
    )
    apart = max(1, math.ceil((positions / POSITIONS) ** (1 / dims)))
    stride = tuple(apart * s for s in stride)
    columns = functional.unfold(x, size, dilation, padding, stride)
    grouped = columns.unflatten(1, (module.groups, -1))
    return grouped.permute(0, 1, 3, 2).flatten(0, 2)


def _geometry(module: nn.Conv1d | nn.Conv2d) -> tuple[tuple[int, ...], ...]:
    """Kernel size, padding, dilation and stride of a convolution."""
    assert not isinstance(module.padding, str)
    return module.kernel_size, module.padding, module.dilation, module.stride


def _outputs(module: nn.Module, gradient: Tensor) -> Tensor:
    """(n, outputs) of a gradient with respect to the module's output, sample by sample."""
    if isinstance(module, nn.Linear):
        return gradient.reshape(-1, gradient.shape[-1])
    return gradient.movedim(1, -1).reshape(-1, gradient.shape[1])


def collect_curvature(
    model: nn.Module, batches: Batches, loss: Loss | None = None, *, seed: int = 0
) -> dict[str, LayerCurvature]:
    """H and G of every linear and convolution layer, from a few batches of the user's data.

    Parameters
    ----------
    model : nn.Module
        Taken in evaluation mode, and left in the mode that it was in; nothing in it changes.
    batches : iterable of (inputs, targets)
        Some hundred samples are enough for small networks.
    loss : callable, optional
        ``loss(outputs, targets)``, the mean over a batch: then G is from the empirical Fisher
        information. Without it outputs are logits, and targets are drawn from what the model itself
        predicts: the Fisher information proper, which needs no labels.
    seed : int
        For the targets that are drawn.

    Returns
    -------
    dict
        By the name of the weight, in the order in which the layers are called.
    """
    model = unwrap(model)
    found: dict[str, LayerCurvature] = {}
    generator = torch.Generator().manual_seed(seed)
    seen, first = 0, None
    with evaluating(model):
        with _watching(model, found):
            for x, y in batches:
                first = x if first is None else first
                outputs = model(x)
                value = _drawn(outputs, generator) if loss is None else loss(outputs, y) * len(x)
                torch.autograd.grad(
                    value, [p for p in model.parameters() if p.requires_grad], allow_unused=True
                )
                seen += len(x)
                for layer in found.values():
                    layer.samples = seen
        if first is not None:
            _check_norms(model, found, first)
    if not seen:
        raise InvalidArgument("no batches were given to estimate the curvature from")
    return found


def _drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Sum of the cross-entropies with targets drawn from the predictions."""
    flat = logits.flatten(0, -2)
    drawn = torch.multinomial(flat.detach().float().softmax(-1).cpu(), 1, generator=generator)
    return functional.cross_entropy(flat, drawn.flatten().to(flat.device), reduction="sum")


@torch.no_grad()
def _check_norms(model: nn.Module, found: dict[str, LayerCurvature], x: Tensor) -> None:
    """Forget the batch norms if folding them changes the network: one sees more than its layer."""
    if not any(layer.norm for layer in found.values()):
        return
    folded = finalize(copy.deepcopy(model))
    for target in find_targets(folded):
        layer = found.get(target.name)
        if layer is not None and layer.norm:
            norm = folded.get_submodule(layer.norm)
            assert isinstance(norm, BatchNorm)
            target.latent.set_(fold_batchnorm(target.sites[0].module, norm, target.latent))  # type: ignore[call-overload]
    wanted, got = model(x), folded(x)
    if float((wanted - got).norm()) > _SAME * float(wanted.norm()):
        for layer in found.values():
            layer.norm, layer.normed = "", None


@dataclass
class _Watch:
    """What is known of the forward pass that runs."""

    found: dict[str, LayerCurvature]
    names: dict[int, str]
    norms: dict[int, str]
    last: dict[int, tuple[Tensor, str, nn.Module]] = field(default_factory=dict)

    def layer(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """After a linear layer or a convolution."""
        name = self.names[id(module)]
        rows = _rows(module, inputs[0].detach())
        n, width = rows.shape
        if name not in self.found:
            zeros = rows.new_zeros(width, dtype=torch.float64)
            outputs = output.shape[-1 if isinstance(module, nn.Linear) else 1]
            self.found[name] = LayerCurvature(
                torch.outer(zeros, zeros), zeros.clone(), OutputCurvature.zeros(outputs, rows)
            )
        layer = self.found[name]
        layer.moments_sum += (rows.T @ rows).double()
        layer.inputs_sum += rows.sum(0).double()
        layer.rows += n
        self.last[id(output)] = output, name, module
        if output.requires_grad:
            output.register_hook(lambda gradient: layer.outputs.add(module, gradient))

    def norm(self, norm: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """After a batch norm: does it take just what a layer gave?"""
        seen, name, module = self.last.get(id(inputs[0]), (None, "", norm))
        if seen is None or seen is not inputs[0] or not can_fold(module, norm):
            return
        layer = self.found[name]
        if layer.normed is None:
            layer.norm = self.norms[id(norm)]
            layer.normed = OutputCurvature.zeros(len(layer.curvature), inputs[0])
        normed = layer.normed
        if output.requires_grad:
            output.register_hook(lambda gradient: normed.add(module, gradient))


@contextmanager
def _watching(model: nn.Module, found: dict[str, LayerCurvature]) -> Iterator[None]:
    """Add what each supported layer sees, forward and backward, to ``found``."""
    names = {
        id(site.module): target.name
        for target in find_targets(model)
        for site in target.sites
        if site.attribute == "weight" and not target.obstacle and supported(site.module)
    }
    norms = {id(m): name for name, m in model.named_modules() if isinstance(m, BatchNorm)}
    watch = _Watch(found, names, norms)
    handles = []
    for module in model.modules():
        if id(module) in names:
            handles.append(module.register_forward_hook(watch.layer))
        elif id(module) in norms:
            handles.append(module.register_forward_hook(watch.norm))
    handles.append(model.register_forward_hook(lambda *_: watch.last.clear()))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
