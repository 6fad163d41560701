"""The networks of a study: which each figure asks for, and how one is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import nn

from espalier.options import check_density
from espalier.parametrization import finalize
from espalier.pruning import prune
from espalier.quantization.share import share
from espalier.samples import Data
from espalier.structure.factorize import factorize
from espalier.targets import find_targets
from espalier.training.loop import train
from espalier.training.settings import Settings

FIGURES = ("compression", "bits", "initialisation", "table")

DENSITIES = (0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01)
BITS = (8, 6, 5, 4, 3, 2, 1)
BOTH = ((0.3, 8), (0.2, 6), (0.1, 5), (0.05, 5), (0.03, 4), (0.02, 4), (0.01, 3))
ENERGIES = (0.97, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
FIGURE_7_BITS = (1, 2, 3, 4, 5, 6, 8)
FIGURE_8_BITS = (2, 3, 4, 5, 6, 8)
INITIALISATIONS = ("random", "density", "linear")
TABLE_6 = ((8, 5), (8, 4), (4, 2))


@dataclass(frozen=True)
class Tuning:
    """How a network is trained on after it was cut.

    ``samples``: so many training samples, drawn once, are one epoch; all of them if None.
    """

    epochs: int = 1
    lr: float = 5e-4
    batch_size: int = 128
    samples: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Case:
    """One network of a study.

    ``series`` and ``x`` are its place in the figure. ``base``: ``"trained"`` or ``"pruned"``, the
    network it begins with. Of ``density``, ``conv_bits``, ``fc_bits`` and ``energy`` those that are
    set are applied, in this order; ``tuned``: with training after each. ``energy``: low rank that
    holds it in each layer, by ``method``, or by what goes with the kind of layer.
    """

    figure: str
    series: str
    x: float
    base: str = "trained"
    density: float | None = None
    conv_bits: int | None = None
    fc_bits: int | None = None
    init: str | None = None
    energy: float | None = None
    method: str | None = None
    tuned: bool = False


def cases(figures: Sequence[str], kinds: Sequence[str], tuned: bool) -> list[Case]:
    """All cases of the figures; ``kinds``: those of the network's layers."""
    found: list[Case] = []
    both = [False, True] if tuned else [False]
    if "compression" in figures:
        where: dict[str, Any] = {"figure": "compression", "tuned": tuned}
        found += [Case(series="pruning", x=d, density=d, **where) for d in DENSITIES]
        found += [Case(series="sharing", x=b, conv_bits=b, fc_bits=b, **where) for b in BITS]
        found += [
            Case(series="pruning and sharing", x=d, density=d, conv_bits=b, fc_bits=b, **where)
            for d, b in BOTH
        ]
        low_rank: dict[str, str | None] = {"truncated SVD": "svd"}
        if "conv" in kinds and find_spec("tensorly"):
            low_rank["Tucker-2"] = None
        found += [
            Case(series=series, x=e, energy=e, method=method, **where)
            for series, method in low_rank.items()
            for e in ENERGIES
        ]
    if "bits" in figures:
        for base in ("trained", "pruned"):
            for kind, field in (("conv", "conv_bits"), ("linear", "fc_bits")):
                if kind in kinds:
                    name = f"{'conv' if kind == 'conv' else 'fc'}, {base}"
                    found += [
                        Case("bits", name, b, base, **{field: b})  # type: ignore[arg-type]
                        for b in FIGURE_7_BITS
                    ]
    if "initialisation" in figures:
        for after in both:
            for init in INITIALISATIONS:
                name = f"{init}, fine-tuned" if after else init
                found += [
                    Case(
                        "initialisation",
                        name,
                        b,
                        "pruned",
                        conv_bits=b,
                        fc_bits=b,
                        init=init,
                        tuned=after,
                    )
                    for b in FIGURE_8_BITS
                ]
    if "table" in figures:
        found += [
            Case("table", f"{c}/{f}", c, "pruned", conv_bits=c, fc_bits=f, tuned=tuned)
            for c, f in TABLE_6
        ]
    return found


def layer_densities(model: nn.Module, density: float) -> dict[str, float]:
    """Densities by layer that keep ``density`` of all weights together, more of small layers.

    density_l = min(1, c (n_out + n_in + k_1 + ... + k_d) / n_l): of a layer with n_l weights about
    as many stay as it has inputs and outputs (Erdos-Renyi-kernel: Evci et al. 2020, arXiv
    1911.11134, section 3, after Mocanu et al. 2018). Layers that would be fuller than full stay so.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.Linear(100, 10))
    >>> {name: round(d, 3) for name, d in layer_densities(model, 0.2).items()}
    {'0.weight': 0.142, '1.weight': 0.781}
    """
    check_density(density)
    shapes = {
        t.name: tuple(t.value.shape)
        for t in find_targets(model)
        if t.by_default and not t.obstacle and t.value.numel()
    }
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    left, free = density * sum(sizes.values()), dict(shapes)
    while free:
        scale = left / sum(sum(shape) for shape in free.values())
        full = [name for name, shape in free.items() if scale * sum(shape) >= sizes[name]]
        if not full:
            break
        for name in full:
            left -= sizes[name]
            del free[name]
    return {
        name: max(1e-9, scale * sum(shape) / sizes[name]) if name in free else 1.0
        for name, shape in shapes.items()
    }


def cut(model: nn.Module, case: Case, data: Data | None, tuning: Tuning | None) -> nn.Module:
    """Prune, share or factor ``model`` as ``case`` says, with training after each; returns it."""
    if case.density is not None:
        prune(model, layer_densities(model, case.density))
        _tune(model, case, data, tuning)
    bits = {"conv": case.conv_bits, "linear": case.fc_bits}
    kinds = {t.kind for t in find_targets(model)}
    wanted = {kind: b for kind, b in bits.items() if b is not None and kind in kinds}
    if wanted:
        share(model, wanted, init=case.init)
        _tune(model, case, data, tuning)
    if case.energy is not None:
        factorize(finalize(model), energy=case.energy, method=case.method)
        _tune(model, case, data, tuning)
    return model


def _tune(model: nn.Module, case: Case, data: Data | None, tuning: Tuning | None) -> None:
    if not case.tuned or tuning is None or data is None:
        return
    settings = Settings(
        epochs=tuning.epochs, lr=tuning.lr, batch_size=tuning.batch_size, seed=tuning.seed
    )
    train(model, data, settings)
