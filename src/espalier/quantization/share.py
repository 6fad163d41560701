"""``espalier.share``: codebooks on a model (trained quantization, Han et al. 2016, section 3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from espalier.errors import InvalidArgument
from espalier.options import Lookup, check_bits
from espalier.parametrization import (
    LatentSharedWeight,
    codes_dtype,
    current,
    mask_of,
    set_codes,
)
from espalier.quantization.quantizer import Quantized
from espalier.quantization.quantizers.kmeans import KMeans
from espalier.targets import Skipped, Target, find_targets, refuse_nonfinite, select

Bits = int | Mapping[str, int | None]


@dataclass(frozen=True)
class SharedLayer:
    """One weight after sharing.

    ``levels``: number of distinct values, at most 2^bits. ``sse``: within-cluster sum of squares.
    ``reseeded``: clusters that the solver found empty and gave new members (linear initialisation
    leaves many empty on pruned layers).
    """

    name: str
    bits: int
    elements: int
    kept: int
    levels: int
    sse: float
    reseeded: int


@dataclass(frozen=True)
class ShareReport:
    """Every layer that shares its weights now, and every layer that does not, with the reason."""

    layers: tuple[SharedLayer, ...]
    skipped: tuple[Skipped, ...]


class Refresher:
    """Assign weights to their nearest centroids again, every ``every`` steps of the user's loop.

    Parameters
    ----------
    model : nn.Module
        With weights shared by ``share(..., refreshable=True)``: their dense values go on training
        behind the codebook, straight through.
    every : int
        Steps between two assignments.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Linear(64, 64)
    >>> _ = espalier.share(model, bits=2, refreshable=True)
    >>> refresher = espalier.Refresher(model, every=100)
    >>> refresher.step()  # after optimizer.step()
    0
    """

    def __init__(self, model: nn.Module, every: int) -> None:
        if every < 1:
            raise InvalidArgument(f"every must be at least 1, not {every}")
        found = [(target, current(target)) for target in find_targets(model)]
        self._shared = [(t, held) for t, held in found if isinstance(held, LatentSharedWeight)]
        if not self._shared:
            raise InvalidArgument("no weight of the model is shared with refreshable=True")
        self.every, self.steps_done = every, 0

    def step(self) -> int:
        """Count one optimizer step; return how many weights changed their centroid."""
        self.steps_done += 1
        if self.steps_done % self.every:
            return 0
        return sum(held.refresh(target.latent) for target, held in self._shared)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the model's own state."""
        return {"steps_done": self.steps_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.steps_done = int(state["steps_done"])


@torch.no_grad()
def share(
    model: nn.Module,
    bits: Bits,
    *,
    init: str | None = None,
    solver: str | None = None,
    iterations: int = 300,
    reseed: bool = True,
    refreshable: bool = False,
    importance: Mapping[nn.Parameter, Tensor] | None = None,
    seed: int = 0,
) -> ShareReport:
    """Let the weights of each layer share 2^bits values, found by 1-D k-means, and trainable.

    min over centroids c and assignments of sum_i (w_i - c(i))^2, over the weights that are kept
    (Han et al. 2016, section 3.1, eq. 2). After it the model's parameter of a shared weight *is*
    its codebook: train on with a new optimizer, and the gradient of a centroid is the sum of the
    gradients of its weights (eq. 3). Pruned weights stay exactly zero.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    bits : int or mapping
        1 to 16. One value, or values by ``"*"``, by kind and by name pattern, as for
        :func:`espalier.prune`: ``{"conv": 8, "linear": 5}`` is the paper's.
    init : str, optional
        ``"linear"`` (the paper's choice), ``"density"``, ``"random"``, ``"kmeans++"``,
        ``"gaussian"``, ``"histogram"``, ``"sample"``. Given without a solver, it means Lloyd's
        algorithm from there.
    solver : str, optional
        ``"optimal"`` (default: the global optimum within a stated gap, whatever the
        initialisation), ``"lloyd"``, ``"exact"``.
    iterations : int
        Bound for Lloyd's algorithm.
    reseed : bool
        Whether clusters that Lloyd's algorithm leaves empty get new members, cut from the costliest
        cluster; otherwise the layer ends with fewer values. The report counts them.
    refreshable : bool
        False: the assignment stays fixed, as in the paper. True: the dense weights go on training
        behind the codebook, and a :class:`Refresher` assigns them again every n steps.
    importance : mapping of parameter to Tensor, optional
        Weights of the squares, for example from :func:`espalier.diagonal_fisher` (Choi et al.
        2017).
    seed : int
        For initialisations that draw at random.

    Returns
    -------
    ShareReport

    Raises
    ------
    InvalidArgument
        Bits outside 1..16, a pattern that matches nothing, NaN or infinity in a weight (by name);
        the model is then as it was.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Linear(64, 64)
    >>> report = espalier.share(model, bits=4)
    >>> model.weight.unique().numel()
    16
    """
    if isinstance(model, DistributedDataParallel):
        raise InvalidArgument(
            "share before wrapping the model in DistributedDataParallel: its buckets are made for "
            "the shapes of the parameters, and a codebook has another"
        )
    chosen, skipped = select(model, Lookup(bits, "bits", check_bits))
    for target, _ in chosen:
        refuse_nonfinite(target, target.value)
    results = []
    for target, b in chosen:
        weights = importance.get(target.latent) if importance else None
        quantizer = KMeans(b, init, solver, iterations, seed, reseed)
        results.append((target, b, *_fit(target, quantizer, weights)))
    layers = []
    for target, b, quantized, kept in results:
        sse = _put(target, quantized, kept, latent=refreshable)
        layers.append(
            SharedLayer(
                target.name,
                b,
                elements=target.value.numel(),
                kept=int(quantized.codes.size),
                levels=int(quantized.codebook.size),
                sse=sse,
                reseeded=quantized.reseeded,
            )
        )
    return ShareReport(tuple(layers), tuple(skipped))


def _fit(
    target: Target, quantizer: KMeans, importance: Tensor | None
) -> tuple[Quantized, Tensor | None]:
    weight, kept = target.value.detach(), mask_of(target)
    values = (
        weight.cpu().numpy() if weight.dtype != torch.bfloat16 else weight.float().cpu().numpy()
    )
    mask = None if kept is None else kept.cpu().numpy()
    weights = None if importance is None else importance.double().cpu().numpy()
    try:
        return quantizer.fit(values, mask, weights), kept
    except InvalidArgument as error:
        raise InvalidArgument(f"{target.name}: {error}") from None


def _put(target: Target, quantized: Quantized, kept: Tensor | None, *, latent: bool) -> float:
    """Put codes and codebook on ``target``; return the squared error made."""
    weight = target.value.detach().clone()
    codebook = torch.from_numpy(np.ascontiguousarray(quantized.codebook)).to(weight)
    dtype = codes_dtype(codebook.numel())
    found = torch.from_numpy(quantized.codes.astype(np.int32) + 1).to(weight.device, dtype)
    if kept is None:
        codes = found.view(weight.shape)
    else:
        codes = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
        codes[kept] = found
    set_codes(target, codes, codebook, latent=latent)
    return float((target.value.double() - weight.double()).square().sum())


def share_layerwise(model: nn.Module, bits: Bits, **options: Any) -> Iterator[SharedLayer]:
    """Share one layer after another, from input to output, the finished ones frozen.

    Between two layers the caller fine-tunes, so that the layers still dense make up for what the
    shared ones lost. Layers come in the order in which the model defines them.

    Yields
    ------
    SharedLayer
        Just shared. It trains until the next one is asked for, and is then frozen
        (``requires_grad`` False). When the iterator ends, all are as trainable as they were before.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    >>> for layer in espalier.share_layerwise(model, bits=2):
    ...     pass  # train(model)
    """
    chosen, _ = select(model, Lookup(bits, "bits", check_bits))
    frozen: list[nn.Parameter] = []
    try:
        for target, b in chosen:
            name = target.name
            yield share(model, {name: b}, **options).layers[0]
            trainable = [target.latent]
            held = current(target)
            if isinstance(held, LatentSharedWeight):
                trainable.append(held.codebook)
            for parameter in trainable:
                if parameter.requires_grad:
                    parameter.requires_grad_(False)
                    frozen.append(parameter)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


__all__ = ["Refresher", "ShareReport", "SharedLayer", "share", "share_layerwise"]
