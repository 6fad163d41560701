"""Batch norms of a quantized network: folded, moved by what quantization changed, and rounded.

In evaluation a batch norm is one scale and one shift for each channel. Folding leaves the scale in
the weights before it and the shift in its bias, so that of its four vectors three are constant and
take next to nothing in a file. What the network computes stays the same, in evaluation; in training
mode the folded batch norm would divide by the deviation of its batch, and not multiply again.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import InvalidArgument
from espalier.modes import evaluating
from espalier.parametrization import release
from espalier.targets import Site, Target, unwrap

_GAINS = 128

BatchNorm = nn.modules.batchnorm._BatchNorm


def can_fold(module: nn.Module, norm: nn.Module) -> bool:
    """Whether ``norm`` scales and shifts just what ``module`` gives, by statistics of its own."""
    outputs = getattr(module, "out_channels", getattr(module, "out_features", None))
    return (
        isinstance(norm, BatchNorm)
        and norm.affine
        and norm.running_mean is not None
        and norm.num_features == outputs
    )


@torch.no_grad()
def fold_batchnorm(module: nn.Module, norm: nn.Module, weight: Tensor) -> Tensor:
    """``weight`` times the scale of ``norm``, which keeps the shift alone.

    W' = s W and b' = beta + s (b - mean), s = gamma / sqrt(variance + eps) and b the bias of
    ``module``, 0 from now on; then gamma = 1, mean = 0 and variance = 1 - eps.

    Parameters
    ----------
    module : nn.Module
        The layer before: its bias becomes 0, its weight is left to the caller.
    norm : batch norm
    weight : Tensor (outputs, ...)
        Of ``module``.
    """
    assert isinstance(norm, BatchNorm)
    scale, shift = affine_of(norm)
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter):
        shift = shift + scale * bias.double()
        bias.zero_()
    set_affine(norm, torch.ones_like(scale), shift)
    return (weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype)


def affine_of(norm: Any) -> tuple[Tensor, Tensor]:
    """What ``norm`` multiplies by and adds, in evaluation; float64."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - scale * norm.running_mean.double()


def set_affine(norm: Any, scale: Tensor, shift: Tensor) -> None:
    """Let ``norm`` multiply by ``scale`` and add ``shift`` in evaluation; statistics constant.

    What was shared or on a grid is so no more: the new values are others.
    """
    for attribute, value in (("weight", scale), ("bias", shift)):
        release(Target((attribute,), "other", (Site(norm, attribute),)))
        getattr(norm, attribute).copy_(value)
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)


@torch.no_grad()
def round_bias(bias: Tensor, curvature: Tensor, lam: float) -> None:
    """Round to multiples of the power of two that costs least: min D + lambda R, in closed form.

    Steps of size s add D = g s^2 / 24 for a value of mean curvature g, and each halving of s costs
    it a bit more: s^2 = 12 lambda / (g ln 2).
    """
    g = float(curvature.mean())
    largest = float(bias.abs().max()) if bias.numel() else 0.0
    if g <= 0 or largest == 0:
        return
    step = math.sqrt(12 * lam / (g * math.log(2)))
    step = 2.0 ** math.floor(math.log2(min(step, largest)))
    bias.copy_((bias.double() / step).round() * step)


@dataclass(frozen=True)
class _Shown:
    """Mean and standard deviation of each channel of a module's output; float64."""

    mean: Tensor
    deviation: Tensor

    @staticmethod
    def of(module: nn.Module, output: Tensor) -> _Shown:
        """Channels come last behind a linear layer, and second elsewhere."""
        channels = output.dim() - 1 if isinstance(module, nn.Linear) else 1
        others = [d for d in range(output.dim()) if d != channels]
        deviation, mean = torch.std_mean(output.double(), others, correction=0)
        return _Shown(mean, deviation)

    def gain(self, module: nn.Module, wanted: _Shown) -> Tensor:
        """What brings this deviation to that ``wanted``, within a factor of 2; 1 but for norms."""
        if not isinstance(module, BatchNorm):
            return torch.ones_like(self.mean)
        gain = wanted.deviation / self.deviation.clamp_min(1e-12)
        return torch.where(self.deviation > 1e-6, gain, 1.0).clamp(0.5, 2.0)


@torch.no_grad()
def move_norms(model: nn.Module, batches: Iterable[Any], like: nn.Module, names: list[str]) -> None:
    """Let batch norms that were folded give the means and deviations that those of ``like`` give.

    Layers without one have a bias, and give the means.

    Layer after layer in one pass over each batch, so that each sees what those before it have
    already made good; what is taken is the mean over batches. Gains are rounded to 1/128.

    Parameters
    ----------
    model, like : nn.Module
        ``like`` is left as it was.
    batches : iterable of inputs, or of (inputs, targets)
    names : list of str
        Of batch norms, and of layers with a bias.
    """
    found: dict[str, list[tuple[_Shown, _Shown]]] = {name: [] for name in names}
    with evaluating(model, like):
        for batch in batches:
            x = batch[0] if isinstance(batch, tuple | list) else batch
            wanted = _outputs_shown(like, names, x, {})
            for name, shown in _outputs_shown(model, names, x, wanted).items():
                found[name].append((shown, wanted[name]))
    for name, pairs in found.items():
        if pairs:
            _move(unwrap(model).get_submodule(name), pairs)


def _move(module: Any, pairs: list[tuple[_Shown, _Shown]]) -> None:
    gains = torch.stack([shown.gain(module, wanted) for shown, wanted in pairs]).mean(0)
    gains = (gains * _GAINS).round() / _GAINS
    before, after = (torch.stack([pair[i].mean for pair in pairs]).mean(0) for i in (0, 1))
    module.bias.copy_((module.bias.double() - before) * gains + after)
    if isinstance(module, BatchNorm):
        module.weight.copy_(module.weight.double() * gains)


def _outputs_shown(
    model: nn.Module, names: list[str], x: Tensor, wanted: Mapping[str, _Shown]
) -> dict[str, _Shown]:
    """What modules give on ``x``, each of them going on with what is ``wanted`` of it."""
    shown: dict[str, _Shown] = {}

    def hook(name: str) -> Callable[..., Tensor]:
        def after(module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            now = shown[name] = _Shown.of(module, output)
            if name not in wanted:
                return output
            gain = now.gain(module, wanted[name])
            shift = wanted[name].mean - gain * now.mean
            channels = (-1,) if isinstance(module, nn.Linear) else (-1, *[1] * (output.dim() - 2))
            return output * gain.to(output).view(channels) + shift.to(output).view(channels)

        return after

    plain = unwrap(model)
    handles = [plain.get_submodule(name).register_forward_hook(hook(name)) for name in names]
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    return shown


@torch.no_grad()
def reestimate_batchnorm(
    model: nn.Module, batches: Iterable[Any], *, like: nn.Module | None = None
) -> int:
    """Set the running statistics of all batch norms to what a few batches show.

    What quantization shifts and shrinks in a layer's outputs, the batch norm behind it then takes
    out again.

    Parameters
    ----------
    model : nn.Module
        Changed in place; left in the mode that it was in.
    batches : iterable of inputs, or of (inputs, targets)
    like : nn.Module, optional
        The original network. Its own statistics, which may come from more data or other data than
        ``batches``, are then kept, and moved only by what quantization changed on these: mean +
        (mean' - mean_b), variance x variance' / variance_b, with ' for ``model`` and b for ``like``
        on ``batches``. Without it the statistics are those of ``batches`` alone.

    Returns
    -------
    int
        Number of batch norms.

    Raises
    ------
    InvalidArgument
        There are no batches; ``like`` has not the batch norms of ``model``.
    """
    kept = list(batches)
    shown = _shown_statistics(model, kept)
    norms = _batch_norms(model)
    if like is not None:
        own = _batch_norms(like)
        if list(own) != list(norms):
            raise InvalidArgument("like: the batch norms of the two networks differ")
        before = _shown_statistics(like, kept)
        for name, (mean, variance) in shown.items():
            mean_b, variance_b = before[name]
            ratio = (variance / variance_b.clamp_min(1e-12)).clamp(0.1, 10.0)
            shown[name] = (own[name].running_mean + mean - mean_b, own[name].running_var * ratio)
    for name, (mean, variance) in shown.items():
        norms[name].running_mean.copy_(mean)
        norms[name].running_var.copy_(variance)
    return len(norms)


def _batch_norms(model: nn.Module) -> dict[str, Any]:
    return {
        name: module
        for name, module in unwrap(model).named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    }


def _shown_statistics(model: nn.Module, batches: list[Any]) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance that each batch norm sees in ``batches``; ``model`` is left as it was."""
    norms = _batch_norms(model)
    if not norms:
        return {}
    if not batches:
        raise InvalidArgument("no batches were given to estimate batch norm statistics from")
    before = copy.deepcopy({name: norm.state_dict() for name, norm in norms.items()})
    momenta = {name: norm.momentum for name, norm in norms.items()}
    with evaluating(model):
        for norm in norms.values():
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # the plain mean over batches
        try:
            for batch in batches:
                model(batch[0] if isinstance(batch, tuple | list) else batch)
            return {
                name: (norm.running_mean.clone(), norm.running_var.clone())
                for name, norm in norms.items()
            }
        finally:
            for name, norm in norms.items():
                norm.load_state_dict(before[name])
                norm.momentum = momenta[name]
