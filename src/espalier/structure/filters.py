"""``espalier.prune_filters``: whole filters removed, and a smaller dense network left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import escape
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import InvalidArgument
from espalier.options import Lookup, check_share, kept_count
from espalier.structure.budget import Budget, largest_within, spending
from espalier.structure.cost import Cost, cost
from espalier.structure.edit import perform
from espalier.structure.filter_criterion import FILTER_CRITERIA, FilterCriterion, FilterStats
from espalier.structure.filter_stats import Batches, GroupStats, Loss, collect
from espalier.structure.graph import FilterGroup, filter_groups, keep_channels
from espalier.targets import Skipped, unwrap

Keep = float | Mapping[str, float | None]


@dataclass(frozen=True)
class PrunedFilters:
    """What is left of one group of layers whose filters go together."""

    layers: tuple[str, ...]
    filters: int
    kept: int


@dataclass(frozen=True)
class FilterReport:
    """Every group that lost filters, every layer that could not, and what the network costs.

    ``before`` and ``after``: multiply-accumulates of one sample, and parameters.
    """

    groups: tuple[PrunedFilters, ...]
    skipped: tuple[Skipped, ...]
    before: Cost
    after: Cost


def check_keep(value: object) -> float:
    """``value`` as the share of filters that stay: a number in (0, 1]."""
    return check_share(value, "keep")


def prune_filters(
    model: nn.Module,
    keep: Keep | None = None,
    *,
    example: Any,
    criterion: str | FilterCriterion = "l1",
    scope: str = "layer",
    macs: float | None = None,
    parameters: float | None = None,
    latency: float | None = None,
    batches: Batches | None = None,
    loss: Loss | None = None,
) -> FilterReport:
    """Remove the filters with the lowest scores, with their feature maps and all that reads them.

    Li et al. 2017 (arXiv 1608.08710, section 3). Layers that are tied to each other by shortcuts,
    concatenations, depthwise or grouped convolutions lose the same filters. What was removed is
    recorded on the model as an edit (:func:`espalier.edits_of`), goes into the file with
    :func:`espalier.save`, and is done again by :func:`espalier.load` on a freshly built model.
    Saves disk, memory and time, on any runtime.

    Parameters
    ----------
    model : nn.Module
        Changed in place. Its parameters are new: make a new optimizer.
    keep : float or mapping
        Share of the filters that stay, in (0, 1]. One value, or values by ``"*"``, kind
        (``"conv"``, ``"linear"``) and name pattern; of layers that go together, the first that a
        value was given for counts.
    example : Tensor or tuple of Tensors
        Inputs to trace the model with.
    criterion : str or FilterCriterion
        ``"l1"``, ``"l2"``, ``"entropy"``, ``"apoz"``, ``"batch-norm"``, ``"taylor"``.
    scope : {"layer", "global"}
        Whether scores are compared within a layer, or over all of them, each layer's divided by
        their root mean square; then ``keep`` is one value.
    macs, parameters, latency : float, optional
        In place of ``keep``: the share of the network's multiply-accumulates, its parameters, or
        its measured time that may stay; reached from below, with ``scope="layer"`` by one share of
        filters for all. The time is that of one forward pass on ``example``, by PyTorch as it is,
        measured in turn with the original's.
    batches, loss :
        Samples ``(inputs, targets)``, and ``loss(outputs, targets)`` (cross-entropy by default),
        for criteria that look at outputs or gradients.

    Returns
    -------
    FilterReport

    Raises
    ------
    InvalidArgument
        A share outside (0, 1], a pattern that matches nothing, a model that cannot be traced, no
        batches where they are needed, nothing that can be removed; the model is then as it was.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU(),
    ...     torch.nn.Conv2d(8, 4, 3))
    >>> report = espalier.prune_filters(model, 0.5, example=torch.zeros(1, 1, 8, 8))
    >>> model[0].weight.shape, model[2].weight.shape
    (torch.Size([4, 1, 3, 3]), torch.Size([4, 4, 3, 3]))
    """
    model = unwrap(model)
    method = FILTER_CRITERIA.make(criterion)
    budget = Budget.of(macs=macs, parameters=parameters, latency=latency)
    if (keep is None) == (budget is None):
        raise InvalidArgument("give one of keep, macs, parameters and latency")
    if scope not in ("layer", "global"):
        raise InvalidArgument(f"scope must be 'layer' or 'global', not {scope!r}")
    groups = filter_groups(model, example)
    chosen, skipped = _chosen(model, groups, 1.0 if keep is None else keep)
    if scope == "global" and len({share for _, share in chosen}) > 1:
        raise InvalidArgument("scope 'global' takes one value of keep for all layers")
    ranked = [group for group, _ in chosen]
    scores = _scores(model, ranked, method, batches, loss)
    before = cost(model, example)

    def removed(share: float | None) -> list[tuple[FilterGroup, list[int]]]:
        shares = [own if share is None else share for _, own in chosen]
        return list(zip(ranked, _kept(ranked, scores, shares, scope), strict=True))

    if budget is None:
        final = removed(None)
    else:
        spent = spending(budget, model, example, before)
        final = largest_within(
            budget, removed, lambda candidate: spent(keep_channels(candidate, model))
        )
    edit = keep_channels(final, model)
    if edit.layers:
        perform(model, [edit])
    kept = tuple(PrunedFilters(tuple(g.layers), g.filters, len(k)) for g, k in final)
    return FilterReport(kept, tuple(skipped), before, cost(model, example))


def prune_filters_layerwise(
    model: nn.Module,
    keep: Keep,
    *,
    example: Any,
    criterion: str | FilterCriterion = "l1",
    batches: Batches | None = None,
    loss: Loss | None = None,
) -> Iterator[PrunedFilters]:
    """Remove filters from one group of layers after another; the caller retrains in between.

    Li et al. 2017 (arXiv 1608.08710, section 3.4, "prune and retrain iteratively"). Each group is
    ranked when its turn comes, so that the scores are those of the retrained network. Options as
    in :func:`prune_filters`. Layers from the input on.

    Yields
    ------
    PrunedFilters
        What is left of the group. Parameters are new then: make a new optimizer.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.Conv2d(8, 8, 3),
    ...     torch.nn.Conv2d(8, 4, 3))
    >>> for group in espalier.prune_filters_layerwise(model, 0.5, example=torch.zeros(1, 1, 8, 8)):
    ...     print(group.layers, group.kept)
    ('0',) 4
    ('1',) 4
    """
    model = unwrap(model)
    chosen, _ = _chosen(model, filter_groups(model, example), keep)
    for group, share in chosen:
        if len(_kept([group], [torch.zeros(group.filters)], [share], "layer")[0]) == group.filters:
            continue
        report = prune_filters(
            model,
            {"*": None} | dict.fromkeys(map(escape, group.layers), share),
            example=example,
            criterion=criterion,
            batches=batches,
            loss=loss,
        )
        yield report.groups[0]


def _chosen(
    model: nn.Module, groups: list[FilterGroup], keep: Keep
) -> tuple[list[tuple[FilterGroup, float]], list[Skipped]]:
    """The groups that a share is given for, and the layers of the others with the reason."""
    lookup = Lookup(keep, "keep", check_keep)
    modules = dict(model.named_modules())
    layers = [(group, layer) for group in groups for layer in group.layers]
    kinds = ["linear" if isinstance(modules[n], nn.Linear) else "conv" for _, n in layers]
    targets = [((n, f"{n}.weight"), k) for (_, n), k in zip(layers, kinds, strict=True)]
    values = dict(zip((n for _, n in layers), lookup.resolve(targets), strict=True))
    chosen, skipped = [], []
    for group in groups:
        share = next((values[n] for n in group.layers if values[n] is not None), None)
        if share is None:
            skipped += [Skipped(n, "no keep is set for it") for n in group.layers]
        elif group.obstacle:
            skipped += [Skipped(n, group.obstacle) for n in group.layers]
        else:
            chosen.append((group, share))
    if not chosen:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in skipped[:3])
        raise InvalidArgument(f"keep: no filter of the model can be removed ({reasons})")
    return chosen, skipped


def _scores(
    model: nn.Module,
    groups: list[FilterGroup],
    method: FilterCriterion,
    batches: Batches | None,
    loss: Loss | None,
) -> list[Tensor]:
    """One score for each filter of each group: the mean over the layers that have it."""
    found: list[GroupStats | None] = [None] * len(groups)
    if method.needs_outputs or method.needs_gradients:
        if batches is None:
            raise InvalidArgument(
                f"criterion {method.name!r} needs batches=[(inputs, targets), ...]"
            )
        found = collect(model, groups, batches, loss, gradients=method.needs_gradients)
    scores = []
    for group, stats in zip(groups, found, strict=True):
        rows = []
        for layer in group.layers:
            weight = _filters(model.get_submodule(layer))
            known = FilterStats(
                weight,
                group.norms.get(layer),
                None if stats is None else stats.pooled,
                None if stats is None else stats.zeros,
                None if stats is None else stats.taylor,
            )
            try:
                row = method.score(known)
            except InvalidArgument as error:
                raise InvalidArgument(f"{layer}: {error}") from None
            if not torch.isfinite(row).all():
                raise InvalidArgument(f"{layer}: its filters have scores that are NaN or infinite")
            rows.append(row.detach().double().cpu())
        scores.append(torch.stack(rows).mean(0))
    return scores


def _filters(module: nn.Module) -> Tensor:
    """(filters, ...) of a layer's weight, a row to each filter."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    weight = weight.detach()
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        weight = weight.transpose(0, 1)
    return weight.flatten(1)


def _kept(
    groups: list[FilterGroup], scores: list[Tensor], shares: list[float], scope: str
) -> list[list[int]]:
    """The filters that stay in each group, rising; at least one in each block."""
    if scope == "global":
        shares = _shares_over_all(scores, shares[0])
    kept = []
    for group, score, share in zip(groups, scores, shares, strict=True):
        width = group.filters // group.blocks
        count = kept_count(share, width)
        best: list[int] = []
        for b in range(group.blocks):
            block = score[b * width : (b + 1) * width]
            order = torch.sort(block, descending=True, stable=True).indices[:count]
            best += [b * width + int(i) for i in order]
        kept.append(sorted(best))
    return kept


def _shares_over_all(scores: list[Tensor], share: float) -> list[float]:
    """How much of each group is among the best ``share`` of all filters, ties to the first."""
    scaled = [s / s.square().mean().sqrt().clamp_min(1e-30) for s in scores]
    together = torch.cat(scaled)
    best = torch.sort(together, descending=True, stable=True).indices
    kept = torch.zeros(len(together))
    kept[best[: kept_count(share, len(together))]] = 1
    parts = kept.split([len(s) for s in scaled])
    return [max(float(part.mean()), 1e-9) for part in parts]
