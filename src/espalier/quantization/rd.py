"""``espalier.quantize_rd``: every layer on a uniform grid, one Lagrange multiplier over all."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from espalier.errors import InvalidArgument
from espalier.options import Lookup, check_lambda
from espalier.parametrization import codes_dtype, mask_of, set_codes
from espalier.quantization.curvature import LayerCurvature, supported
from espalier.quantization.grid import Layer, Rounded
from espalier.targets import Skipped, Target, refuse_nonfinite, select, unwrap

Curvatures = Mapping[str, LayerCurvature]
Lambda = float | Mapping[str, float | None]


@dataclass(frozen=True)
class GridLayer:
    """One weight on its grid.

    ``levels``: distinct values. ``bits``: order-0 entropy of its symbols, in all. ``distortion``:
    estimated rise of the loss in nats (with curvature), or of the relative squared error (without).
    """

    name: str
    elements: int
    step: float
    levels: int
    bits: float
    distortion: float


@dataclass(frozen=True)
class GridReport:
    """Every layer that was quantized, and every layer that was not, with the reason."""

    layers: tuple[GridLayer, ...]
    skipped: tuple[Skipped, ...]

    @property
    def bits_per_weight(self) -> float:
        """Entropy over all quantized weights together."""
        elements = sum(layer.elements for layer in self.layers)
        return sum(layer.bits for layer in self.layers) / elements if elements else 0.0


@torch.no_grad()
def quantize_rd(
    model: nn.Module,
    lam: Lambda,
    *,
    curvature: Curvatures | None = None,
    correct_bias: bool = True,
) -> GridReport:
    """Quantize without retraining: min over all symbols and steps of D + lambda R.

    Each weight becomes ``step * q`` with integer q, chosen with its code length in the objective
    and with its error made up for by the weights not rounded yet
    (:mod:`espalier.quantization.grid`). One lambda over all layers spreads the bits where they
    matter, and zeros come out of it. The result is a codebook on the model, as
    :func:`espalier.share` leaves one: it can be trained on, and saved.

    Parameters
    ----------
    model : nn.Module
        Changed in place: linear and 1-D and 2-D convolution weights. Pruned weights stay zero.
    lam : float or mapping
        What a bit may cost, in the unit of D. One value, or values by ``"*"``, kind and name
        pattern.
    curvature : mapping, optional
        From :func:`espalier.collect_curvature`: D is then the rise of the loss, in nats a sample,
        and useful values of lambda lie around 1e-8 for a network of 1e5 to 1e6 weights. Without it
        D is the squared error of each layer over its mean square, and they lie around 0.01.
    correct_bias : bool
        With curvature, for layers with a bias: add what the mean input loses, (W - W') E[a] (Nagel
        et al. 2019, arXiv 1906.04721, section 4.2).

    Returns
    -------
    GridReport

    Raises
    ------
    InvalidArgument
        A lambda that is not positive, a pattern that matches nothing, NaN in a weight (by name), a
        layer that the curvature does not know; the model is then as it was.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Linear(64, 64)
    >>> report = espalier.quantize_rd(model, 0.01)
    >>> report.bits_per_weight < 5
    True

    Notes
    -----
    Sources: Choi et al. 2017 (arXiv 1612.01543), Frantar et al. 2022 (arXiv 2210.17323), Conzelmann
    and Bamler 2025 (arXiv 2505.18758).
    """
    chosen, skipped = select(model, Lookup(lam, "lambda", check_lambda))
    work = []
    for target, value in chosen:
        reason = _obstacle(target)
        if reason:
            skipped.append(Skipped(target.name, reason))
            continue
        refuse_nonfinite(target, target.value)
        work.append((target, _layer(target, curvature), value))
    if not work:
        raise InvalidArgument(
            "lambda: no linear or convolution weight of the model can be quantized"
        )
    rounded = [(target, layer.best(value)) for target, layer, value in work]
    layers = tuple(_put(t, r, curvature if correct_bias else None) for t, r in rounded)
    return GridReport(layers, tuple(skipped))


def _obstacle(target: Target) -> str:
    site = target.sites[0]
    if len(target.sites) > 1:
        return "it is tied: its layers see different inputs"
    if not supported(site.module) or site.attribute != "weight":
        return "rate-distortion rounding knows linear layers and 1-D and 2-D convolutions"
    return ""


def _layer(target: Target, curvature: Curvatures | None) -> Layer:
    weight, mask = target.value.detach().double().flatten(1).cpu().numpy(), mask_of(target)
    kept = None if mask is None else mask.flatten(1).cpu().numpy()
    if curvature is None:
        scale = 2 / max(float(np.mean(weight**2)), 1e-30)
        return Layer(weight, None, np.full(len(weight), scale), kept)
    seen = curvature.get(target.name)
    if seen is None or seen.moments_sum.shape[0] != weight.shape[1]:
        raise InvalidArgument(f"{target.name}: the curvature was not collected on this model")
    return Layer(weight, seen.moments.cpu().numpy(), seen.curvature.cpu().numpy(), kept)


def _put(target: Target, rounded: Rounded, curvature: Curvatures | None) -> GridLayer:
    weight, mask = target.value.detach(), mask_of(target)
    levels, codes = np.unique(rounded.symbols, return_inverse=True)
    codebook = torch.from_numpy(levels * rounded.step).to(weight)
    found = torch.from_numpy(codes.astype(np.int32) + 1).to(weight.device).view(weight.shape)
    if mask is not None:
        found = torch.where(mask, found, torch.zeros_like(found))
    set_codes(target, found.to(codes_dtype(levels.size)), codebook, latent=False)
    if curvature is not None:
        _correct_bias(target, weight, curvature[target.name])
    counts = np.bincount(codes.reshape(-1))
    entropy = float(-(counts * np.log2(counts / counts.sum())).sum())
    return GridLayer(
        target.name, weight.numel(), rounded.step, levels.size, entropy, rounded.distortion
    )


def _correct_bias(target: Target, before: Tensor, seen: LayerCurvature) -> None:
    module = target.sites[0].module
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter):
        lost = (before - target.value).double().flatten(1) @ seen.mean_input.to(before.device)
        bias.add_(lost.to(bias.dtype))


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
    modes = {module: module.training for module in model.modules()}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    model.eval()
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
        for module, mode in modes.items():
            module.training = mode


def search_lambda(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    limit: float,
    *,
    curvature: Curvatures | None = None,
    start: float | None = None,
    evaluations: int = 10,
    after: Callable[[nn.Module], object] | None = None,
    correct_bias: bool = True,
) -> float:
    """The largest lambda, within a factor of 2^(1/4), whose model has ``evaluate(model) <= limit``.

    Parameters
    ----------
    model : nn.Module
        Copied, not changed.
    evaluate : callable
        Loss or error of a model, on images held out of the training set; lower is better.
    limit : float
    curvature : mapping, optional
        As for :func:`quantize_rd`.
    start : float, optional
        Where the search begins; 1e-8 with curvature, 0.01 without.
    evaluations : int
        At most so many models are made and evaluated.
    after : callable, optional
        What is done to each model before it is evaluated, :func:`reestimate_batchnorm` for example.
    correct_bias : bool
        As for :func:`quantize_rd`.

    Raises
    ------
    InvalidArgument
        ``evaluate`` gives NaN; or no lambda that was tried stays within the limit.
    """

    def within(lam: float) -> bool:
        candidate = copy.deepcopy(model)
        quantize_rd(candidate, lam, curvature=curvature, correct_bias=correct_bias)
        if after is not None:
            after(candidate)
        value = float(evaluate(candidate))
        if math.isnan(value):
            raise InvalidArgument(f"evaluate gave NaN at lambda {lam:g}")
        return value <= limit

    good = bad = None
    lam = start or (1e-8 if curvature is not None else 0.01)
    for _ in range(evaluations):
        if within(lam):
            good = lam
        else:
            bad = lam
        if good is not None and bad is not None:
            if bad / good <= 2**0.25:
                break
            lam = math.sqrt(good * bad)
        else:
            lam *= 4 if bad is None else 0.25
    if good is None:
        raise InvalidArgument(f"no lambda down to {lam * 4:g} keeps evaluate within {limit:g}")
    return good
