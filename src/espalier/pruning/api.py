"""``espalier.prune``: masks on a model, at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from espalier.errors import InvalidArgument
from espalier.options import Lookup, check_density
from espalier.parametrization import mask_of, set_mask
from espalier.pruning.criterion import CRITERIA, Criterion, Stats
from espalier.pruning.fisher import Batches, Loss, diagonal_fisher
from espalier.pruning.masks import masks_global, masks_per_layer
from espalier.targets import Skipped, Target, refuse_nonfinite, select

Densities = float | Mapping[str, float | None]


@dataclass(frozen=True)
class PrunedLayer:
    """What pruning left of one weight."""

    name: str
    elements: int
    kept: int

    @property
    def density(self) -> float:
        """Share of the weights that are kept."""
        return self.kept / self.elements if self.elements else 1.0


@dataclass(frozen=True)
class PruneReport:
    """Every layer that was pruned, and every layer that was not, with the reason."""

    layers: tuple[PrunedLayer, ...]
    skipped: tuple[Skipped, ...]

    @property
    def density(self) -> float:
        """Share kept over all pruned layers together."""
        elements = sum(layer.elements for layer in self.layers)
        return sum(layer.kept for layer in self.layers) / elements if elements else 1.0


def check_quality(value: object) -> float:
    """``value`` as a quality, a threshold in standard deviations: a number >= 0."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return float(value)
    raise InvalidArgument(f"quality must be a number of at least 0, not {value!r}")


@torch.no_grad()
def prune(
    model: nn.Module,
    density: Densities | None = None,
    *,
    quality: Densities | None = None,
    criterion: str | Criterion | None = None,
    scope: str = "layer",
    batches: Batches | None = None,
    loss: Loss | None = None,
    seed: int = 0,
) -> PruneReport:
    """Keep the weights with the highest scores, set the rest to zero, and hold them there.

    min L(w) subject to nnz(w_l) = density_l x n_l, solved greedily by score (Han et al. 2016,
    section 2). The zeros are masks on ``model`` (:class:`espalier.parametrization.Mask`): retrain
    it with any loop, and they stay exactly zero.

    Parameters
    ----------
    model : nn.Module
        Changed in place. Linear, convolution, transposed convolution and embedding weights are
        pruned; any other parameter when it is named.
    density : float or mapping
        Share of the weights that stay, in (0, 1]. One value, or values by ``"*"`` (all), by kind
        (``"linear"``, ``"conv"``, ``"embedding"``) and by name pattern (``"fc1"``, ``"layer?.*"``).
        Counts are exact, ties keep the lower index.
    quality : float or mapping
        Instead of ``density``: keep where score >= quality. With the default criterion
        ``"deviation"`` that is the threshold quality x standard deviation of Han et al. 2015.
    criterion : str or Criterion
        ``"magnitude"`` (default), ``"deviation"``, ``"magnitude-random"``, ``"obd"``, ``"lamp"``
        (with ``scope="global"``: each layer's share by its magnitudes), or an instance.
    scope : {"layer", "global"}
        Whether scores are compared within a layer, or over all layers together; then ``density``
        has to be one value.
    batches, loss :
        For ``"obd"``: samples ``(inputs, targets)``, and ``loss(outputs, targets)``, by default
        cross-entropy.
    seed : int
        For criteria that draw at random.

    Returns
    -------
    PruneReport

    Raises
    ------
    InvalidArgument
        A density outside (0, 1], a pattern that matches nothing, NaN in a weight, ...; the model is
        then as it was.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    >>> espalier.prune(model, density={"0": 0.25, "1": 0.5}).layers[0].kept
    16
    """
    lookup = _lookup(density, quality)
    criterion = CRITERIA.make(criterion or ("magnitude" if quality is None else "deviation"))
    chosen, skipped = select(model, lookup)
    fisher = fisher_for(model, criterion, batches, loss)
    generator = torch.Generator().manual_seed(seed)
    targets = [target for target, _ in chosen]
    scores = [score(t, criterion, fisher, generator) for t in targets]
    if quality is not None:
        masks = [s >= value for s, (_, value) in zip(scores, chosen, strict=True)]
    else:
        masks = choose(targets, scores, [value for _, value in chosen], scope)
    return apply(targets, masks, skipped)


def _lookup(density: Densities | None, quality: Densities | None) -> Lookup[float]:
    if (density is None) == (quality is None):
        raise InvalidArgument("give either density or quality")
    if density is not None:
        return Lookup(density, "density", check_density)
    assert quality is not None
    return Lookup(quality, "quality", check_quality)


def fisher_for(
    model: nn.Module, criterion: Criterion, batches: Batches | None, loss: Loss | None
) -> dict[nn.Parameter, Tensor]:
    """The Fisher information where ``criterion`` needs it, else nothing."""
    if not criterion.needs_fisher:
        return {}
    if batches is None:
        raise InvalidArgument(
            f"criterion {criterion.name!r} needs batches=[(inputs, targets), ...]"
        )
    with torch.enable_grad():
        return diagonal_fisher(model, batches, loss)


def score(
    target: Target,
    criterion: Criterion,
    fisher: Mapping[nn.Parameter, Tensor],
    generator: torch.Generator,
    *,
    regrow: bool = False,
    margin: float = 0.0,
) -> Tensor:
    """Scores of one weight. Unless it may ``regrow``, what is pruned already scores below all."""
    kept = mask_of(target)
    weight = target.latent.detach() if regrow else target.value.detach()
    refuse_nonfinite(target, weight)
    information = fisher.get(target.latent)
    if information is not None and information.shape != weight.shape:
        raise InvalidArgument(
            f"{target.name}: criterion {criterion.name!r} scores weights before they are shared"
        )
    scores = criterion.score(weight, Stats(kept, information, generator))
    if kept is None:
        return scores
    if regrow:
        return torch.where(kept, scores * (1 + margin), scores)
    return torch.where(kept, scores, scores.new_full((), -torch.inf))


def choose(
    targets: Sequence[Target], scores: Sequence[Tensor], densities: Sequence[float], scope: str
) -> list[Tensor]:
    """The masks for given densities, within each layer or over all of them."""
    match scope:
        case "layer":
            return masks_per_layer(scores, densities)
        case "global":
            if len(set(densities)) > 1:
                raise InvalidArgument(
                    "scope 'global' takes one density for all layers, not several: "
                    + ", ".join(f"{d:g}" for d in sorted(set(densities)))
                )
            return masks_global(scores, densities[0], [t.name for t in targets])
    raise InvalidArgument(f"scope must be 'layer' or 'global', not {scope!r}")


def apply(
    targets: Sequence[Target],
    masks: Sequence[Tensor],
    skipped: Sequence[Skipped],
    *,
    straight_through: bool = False,
) -> PruneReport:
    """Put ``masks`` on ``targets``; what is pruned already stays so unless it may regrow."""
    layers = []
    for target, mask in zip(targets, masks, strict=True):
        before = mask_of(target)
        if before is not None and not straight_through:
            mask = mask & before
        held = set_mask(target, mask)
        if hasattr(held, "straight_through"):
            held.straight_through = straight_through
        layers.append(PrunedLayer(target.name, mask.numel(), int(mask.sum())))
    return PruneReport(tuple(layers), tuple(skipped))


__all__ = [
    "PruneReport",
    "PrunedLayer",
    "apply",
    "choose",
    "fisher_for",
    "prune",
    "score",
]
