"""``espalier.quantize_rd``: every layer on a grid or levels of its own, one multiplier over all."""

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
from espalier.quantization.curvature import LayerCurvature, OutputCurvature, supported
from espalier.quantization.ecsq import entropy_constrained
from espalier.quantization.grid import Array, Layer
from espalier.quantization.norms import (
    BatchNorm,
    fold_batchnorm,
    move_norms,
    reestimate_batchnorm,
    round_bias,
)
from espalier.targets import Skipped, Target, refuse_nonfinite, select, unwrap

Curvatures = Mapping[str, LayerCurvature]
Lambda = float | Mapping[str, float | None]

QUANTIZERS = ("uniform", "ecsq")


@dataclass(frozen=True)
class GridLayer:
    """One weight on its grid, or on levels of its own: ``step`` is None then.

    ``levels``: distinct values. ``bits``: order-0 entropy of its symbols, in all. ``distortion``:
    estimated rise of the loss in nats (with curvature), or of the relative squared error (without).
    """

    name: str
    elements: int
    step: float | None
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
    quantizer: str = "uniform",
    curvature: Curvatures | None = None,
    batches: Iterable[Any] | None = None,
    correct_bias: bool = True,
    fold_batchnorm: bool = True,
    progress: Callable[[int, int, str], None] | None = None,
) -> GridReport:
    """Quantize without retraining: min over all symbols and steps of D + lambda R.

    Each weight becomes ``step * q`` with integer q, chosen with its code length in the objective,
    with its error made up for by the weights not rounded yet, and then again with all others as
    they are (:mod:`espalier.quantization.grid`). One lambda over all layers spreads the bits where
    they matter, and zeros come out of it. The result is a codebook on the model, as
    :func:`espalier.share` leaves one, and can be saved.

    Parameters
    ----------
    model : nn.Module
        Changed in place: linear and 1-D and 2-D convolution weights. Pruned weights stay zero.
    lam : float or mapping
        What a bit may cost, in the unit of D. One value, or values by ``"*"``, kind and name
        pattern.
    quantizer : {"uniform", "ecsq"}
        Multiples of a step for each layer, rounded with feedback; or levels that are free
        (:mod:`espalier.quantization.ecsq`), each weight by itself, with the diagonal of the
        curvature for its importance. At equal bytes the first loses less.
    curvature : mapping, optional
        From :func:`espalier.collect_curvature`: D is then the rise of the loss, in nats a sample,
        and useful values of lambda lie around 1e-7 for a network of 1e5 to 1e6 weights. Without it
        D is the squared error of each layer over its mean square, and they lie around 0.01.
    batches : iterable of inputs, or of (inputs, targets), optional
        Some hundred samples that show what quantization changed in the means and deviations of the
        channels, layer after layer: batch norms and biases then take it out again. With curvature
        only.
    correct_bias : bool
        With curvature, for layers with a bias or a batch norm folded in: add what the mean input
        loses, (W - W') E[a] (Nagel et al. 2019, arXiv 1906.04721, section 4.2).
    fold_batchnorm : bool
        With curvature: where a batch norm directly follows a layer that is quantized, its scale
        goes into the weights before they are, and its shift is rounded; of its four vectors three
        are then constant (with ``batches`` two, and its scale is in 128ths). What the network
        computes in evaluation stays the same; choose False to train it further, and the batch norms
        stay exact (with ``batches``, but for their statistics).
    progress : callable, optional
        Called with layers done, layers in all, and the name of the layer.

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
    if quantizer not in QUANTIZERS:
        raise InvalidArgument(f"quantizer must be {' or '.join(QUANTIZERS)}, not {quantizer!r}")
    if batches is not None and curvature is None:
        raise InvalidArgument("batches: they are for use with curvature, which is not given")
    chosen, skipped = select(model, Lookup(lam, "lambda", check_lambda))
    shown = None if batches is None else list(batches)
    work = []
    for target, value in chosen:
        reason = _obstacle(target)
        if reason:
            skipped.append(Skipped(target.name, reason))
            continue
        refuse_nonfinite(target, target.value)
        work.append((target, value, _seen(target, curvature)))
    if not work:
        raise InvalidArgument(
            "lambda: no linear or convolution weight of the model can be quantized"
        )
    original = copy.deepcopy(model) if shown is not None else model
    norms = _Norms(model, original, fold_batchnorm)
    layers = []
    for done, (target, value, seen) in enumerate(work):
        if progress:
            progress(done, len(work), target.name)
        weight = norms.fold(target, seen)
        centred = correct_bias and norms.bias(target, seen) is not None
        layer = _layer(target, weight, seen, norms.output(seen), centred)
        chosen_levels = _on_grid(layer, value) if quantizer == "uniform" else _free(layer, value)
        layers.append(_put(target, weight, chosen_levels))
        if seen is not None and correct_bias:
            norms.correct(target, weight, seen)
    if shown is not None:
        norms.move(shown)
    for target, value, seen in work:
        norms.round(target, seen, value)
    return GridReport(tuple(layers), tuple(skipped))


def _obstacle(target: Target) -> str:
    site = target.sites[0]
    if len(target.sites) > 1:
        return "it is tied: its layers see different inputs"
    if not supported(site.module) or site.attribute != "weight":
        return "rate-distortion rounding knows linear layers and 1-D and 2-D convolutions"
    return ""


def _seen(target: Target, curvature: Curvatures | None) -> LayerCurvature | None:
    if curvature is None:
        return None
    seen = curvature.get(target.name)
    if seen is None or seen.moments_sum.shape[0] != target.value[0].numel():
        raise InvalidArgument(f"{target.name}: the curvature was not collected on this model")
    return seen


def _layer(
    target: Target,
    weight: Tensor,
    seen: LayerCurvature | None,
    output: OutputCurvature | None,
    centred: bool,
) -> Layer:
    """``centred``: the bias makes up for the mean, and H is the covariance of the inputs."""
    flat, mask = weight.double().flatten(1).cpu().numpy(), mask_of(target)
    kept = None if mask is None else mask.flatten(1).cpu().numpy()
    if seen is None or output is None:
        scale = 2 / max(float(np.mean(flat**2)), 1e-30)
        return Layer(flat, None, np.full(len(flat), scale), kept)
    products = (output.products / max(seen.samples, 1)).cpu().numpy()
    full = products if products.ndim == 2 else None
    diagonal = products if full is None else np.ascontiguousarray(np.diagonal(full))
    places = int(np.prod(weight.shape[2:], dtype=np.int64))
    moments = seen.covariance if centred else seen.moments
    return Layer(flat, moments.cpu().numpy(), diagonal, kept, full, places)


@dataclass(frozen=True, eq=False)
class _Levels:
    """The values of a weight: ``levels[codes]``."""

    levels: Array
    codes: Array
    distortion: float
    step: float | None = None


def _on_grid(layer: Layer, lam: float) -> _Levels:
    found = layer.best(lam)
    multiples, codes = np.unique(found.symbols, return_inverse=True)
    return _Levels(multiples * found.step, codes.reshape(-1), found.distortion, found.step)


def _free(layer: Layer, lam: float) -> _Levels:
    """Pruned weights take the level 0, and no part in the choice."""
    kept = slice(None) if layer.kept is None else layer.kept.reshape(-1)
    values = layer.weights.reshape(-1)
    found = entropy_constrained(values[kept], layer.importance().reshape(-1)[kept], lam)
    quantized = np.zeros_like(values)
    quantized[kept] = found.levels[found.codes]
    levels, codes = np.unique(quantized, return_inverse=True)
    distortion = layer.distortion(quantized.reshape(layer.weights.shape))
    return _Levels(levels, codes.reshape(-1), distortion)


def _put(target: Target, weight: Tensor, chosen: _Levels) -> GridLayer:
    mask, codes = mask_of(target), chosen.codes
    codebook = torch.from_numpy(chosen.levels).to(weight)
    found = torch.from_numpy(codes.astype(np.int32) + 1).to(weight.device).view(weight.shape)
    if mask is not None:
        found = torch.where(mask, found, torch.zeros_like(found))
    set_codes(target, found.to(codes_dtype(len(codebook))), codebook, latent=False)
    counts = np.bincount(codes)
    entropy = float(-(counts * np.log2(counts / counts.sum())).sum())
    return GridLayer(
        target.name, weight.numel(), chosen.step, len(codebook), entropy, chosen.distortion
    )


class _Norms:
    """The batch norms and biases behind the layers that are quantized."""

    def __init__(self, model: nn.Module, original: nn.Module, fold: bool) -> None:
        self._model, self._original = unwrap(model), original
        self._fold = fold
        self._folded: list[str] = []
        self._biased: list[str] = []

    def output(self, seen: LayerCurvature | None) -> OutputCurvature | None:
        """The curvature in the outputs that the weights are now those of."""
        if seen is None:
            return None
        return seen.normed if self._fold and seen.normed is not None else seen.outputs

    def fold(self, target: Target, seen: LayerCurvature | None) -> Tensor:
        """The weight to quantize: with its batch norm's scale, if that can be."""
        weight = target.value.detach().clone()
        norm = self._norm(seen)
        if seen is None or norm is None:
            if self.bias(target, seen) is not None:
                self._biased.append(target.name.rpartition(".")[0])
            return weight
        self._folded.append(seen.norm)
        return fold_batchnorm(target.sites[0].module, norm, weight)

    def _norm(self, seen: LayerCurvature | None) -> BatchNorm | None:
        if not self._fold or seen is None or not seen.norm:
            return None
        norm = self._model.get_submodule(seen.norm)
        assert isinstance(norm, BatchNorm)
        return norm

    def bias(self, target: Target, seen: LayerCurvature | None) -> nn.Parameter | None:
        """The bias that shifts the outputs of a layer: its batch norm's, or its own."""
        holder = self._norm(seen) or target.sites[0].module
        bias = getattr(holder, "bias", None)
        return bias if isinstance(bias, nn.Parameter) else None

    def correct(self, target: Target, before: Tensor, seen: LayerCurvature) -> None:
        """Add to the bias what the mean input loses."""
        bias = self.bias(target, seen)
        if bias is not None:
            lost = (before - target.value).double().flatten(1) @ seen.mean_input.to(before.device)
            bias.add_(lost.to(bias.dtype))

    def move(self, batches: list[Any]) -> None:
        """Let the batch norms take out what ``batches`` show to have changed."""
        if self._fold:
            move_norms(self._model, batches, self._original, self._folded + self._biased)
        else:
            reestimate_batchnorm(self._model, batches, like=self._original)

    def round(self, target: Target, seen: LayerCurvature | None, lam: float) -> None:
        """Round the shift of a batch norm that was folded."""
        norm = self._norm(seen)
        if norm is not None and seen is not None and seen.normed is not None:
            round_bias(norm.bias, seen.normed.of_bias / max(seen.samples, 1), lam)


def search_lambda(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    limit: float,
    *,
    curvature: Curvatures | None = None,
    start: float | None = None,
    evaluations: int = 10,
    after: Callable[[nn.Module], object] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
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
        Where the search begins; 5e-8 with curvature, 0.01 without.
    evaluations : int
        At most so many models are made and evaluated.
    after : callable, optional
        What is done to each model before it is evaluated.
    progress : callable, optional
        Called with models made, models to make at most, and the lambda that is tried.
    **options
        For :func:`quantize_rd`: ``quantizer``, ``batches``, ``correct_bias``, ``fold_batchnorm``.

    Raises
    ------
    InvalidArgument
        ``evaluate`` gives NaN; or no lambda that was tried stays within the limit.
    """

    def within(lam: float) -> bool:
        candidate = copy.deepcopy(model)
        quantize_rd(candidate, lam, curvature=curvature, **options)
        if after is not None:
            after(candidate)
        value = float(evaluate(candidate))
        if math.isnan(value):
            raise InvalidArgument(f"evaluate gave NaN at lambda {lam:g}")
        return value <= limit

    good = bad = None
    lam = start or (5e-8 if curvature is not None else 0.01)
    for tried in range(evaluations):
        if progress:
            progress(tried, evaluations, f"lambda {lam:.3g}")
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
