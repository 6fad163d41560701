"""``espalier.merge``: layers merged into fewer, exactly or with weights fitted anew."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from espalier.errors import InvalidArgument
from espalier.structure.cost import Cost, cost
from espalier.structure.edit import StructuralEdit, edits_of, perform
from espalier.structure.edits.in_place import InPlace
from espalier.structure.edits.merge_branches import MergeBranches
from espalier.structure.edits.streamline import Streamline
from espalier.structure.exact import merge_exactly
from espalier.structure.filter_stats import Batches
from espalier.structure.filters import prune_filters
from espalier.structure.least_squares import LayerFit
from espalier.structure.merge_plans import Plan, find_plans
from espalier.structure.traced import Traced, record
from espalier.targets import Skipped, unwrap

_Original = tuple[nn.Module, fx.Graph]
"""The network before merges that are not exact, and its graph."""

PARTS = ("exact", "streamline", "branch")
STARTS = ("fit", "random")
KEPT_ELEMENTS = 1 << 26
"""Inputs and outputs of the layers that are fitted together, which are kept between rounds."""


@dataclass(frozen=True)
class Merged:
    """One merge: the layers whose weights are new, and what was done, in words.

    ``error``: ||outputs - wanted||^2 / ||wanted - mean||^2 of each new layer on the batches, as it
    starts; none where the merge is exact or the start random.
    """

    part: str
    name: str
    layers: tuple[str, ...]
    what: str
    error: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MergeReport:
    """What was merged, what could not be, and what the network costs.

    ``before`` and ``after``: multiply-accumulates of one sample, and parameters.
    """

    merged: tuple[Merged, ...]
    skipped: tuple[Skipped, ...]
    before: Cost
    after: Cost


def merge(
    model: nn.Module,
    example: Any,
    *,
    parts: str | Sequence[str] = PARTS,
    layers: str | Sequence[str] = "*",
    batches: Batches | None = None,
    start: str = "fit",
    relu: bool = True,
    width: float = 1.0,
    seed: int = 0,
) -> MergeReport:
    """Merge layers, so that fewer steps are left; poolings and normalisations cost time too.

    DeepRebirth (Li, Wang and Kong 2018, arXiv 1708.04728, section 3). Three parts:

    ``"exact"``
        Batch norms into the layers before them, linear maps that follow each other into one,
        dropout and identities left out, ReLUs in place. In evaluation the network computes what it
        did.
    ``"streamline"``
        A convolution followed by any run of local response normalisation, batch norm, ReLU,
        pooling and dropout that holds more than batch norm, ReLU and dropout becomes one
        convolution with the combined stride, whose kernel and padding keep the output's shape.
    ``"branch"``
        Where branches of one input meet in a concatenation, those of 1x1 kernels and poolings go,
        and the others give their outputs too, or, with ``width``, some of them, and the layers
        behind take fewer. What follows the concatenation is merged as above.

    A merged layer starts from a least-squares fit to the outputs of what it replaces. Then train:
    with ten times the learning rate for merged layers, as :func:`parameter_groups` gives them and
    :func:`espalier.train` does. Recorded as edits. Saves time, on any runtime; sizes change little.

    Parameters
    ----------
    model : nn.Module
        Changed in place. Has to be traceable by ``torch.fx``. Its parameters are new: make a new
        optimizer.
    example : Tensor or tuple of Tensors
        Inputs of the size that the network is for; paddings depend on it.
    parts : str or sequence of str
    layers : str or sequence of str
        Patterns of the convolutions, or blocks, to streamline and merge.
    batches : iterable of (inputs, targets), optional
        For the fit; a few hundred samples. Targets are not looked at.
    start : {"fit", "random"}
    relu : bool
        Whether one ReLU stays behind a merged convolution that had one in its run, as in the paper.
    width : float
        Share of the outputs of 1x1 and pooling branches that the others take over, in (0, 1]; those
        with the largest filters by L1 norm.
    seed : int
        Of random weights, and of the positions in feature maps that the fit looks at.

    Returns
    -------
    MergeReport

    Raises
    ------
    InvalidArgument
        The model cannot be traced or run on ``example``, a pattern matches nothing, no batches for
        the fit, nothing can be merged; the model is then as it was.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.ReLU(),
    ...     torch.nn.LocalResponseNorm(3), torch.nn.MaxPool2d(2))
    >>> images = torch.randn(64, 1, 8, 8)
    >>> report = espalier.merge(model, images[:1], batches=[(images, None)])
    >>> model[0]
    Conv2d(1, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
    >>> print(espalier.edits_of(model)[0].describe()[0])
    0: relu, lrn, max_pool 2x2/2x2+0x0 are merged into it, a convolution 3 x 3 with stride 2 x 2
    """
    steps = _Merger(model, example, parts, layers, batches, start, relu, width, seed)
    before = cost(unwrap(model), example)
    merged = tuple(steps.run())
    return MergeReport(merged, tuple(steps.skipped), before, cost(unwrap(model), example))


def merge_layerwise(
    model: nn.Module,
    example: Any,
    *,
    parts: str | Sequence[str] = PARTS,
    layers: str | Sequence[str] = "*",
    batches: Batches | None = None,
    start: str = "fit",
    relu: bool = True,
    width: float = 1.0,
    seed: int = 0,
) -> Iterator[Merged]:
    """Merge one layer or block at a time; train after each.

    As in the paper's table 2. What is exact comes first, all at once. A layer is fitted to what the
    network gave there when this was called, from inputs as the network has them by then.

    Parameters
    ----------
    model, example, parts, layers, batches, start, relu, width, seed
        As in :func:`merge`.

    Yields
    ------
    Merged

    Examples
    --------
    >>> import torch, espalier
    >>> model = espalier.zoo.alexnet(10)
    >>> image = torch.zeros(1, 3, 227, 227)
    >>> for merged in espalier.merge_layerwise(model, image, parts="streamline", start="random"):
    ...     print(merged.name)  # and train here
    conv1
    conv2
    conv5
    """
    steps = _Merger(model, example, parts, layers, batches, start, relu, width, seed)
    return steps.run(layerwise=True)


class _Merger:
    """The state of one call; everything that can be wrong is found before anything is changed."""

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        parts: str | Sequence[str],
        layers: str | Sequence[str],
        batches: Batches | None,
        start: str,
        relu: bool,
        width: float,
        seed: int,
    ) -> None:
        self.model, self.example = unwrap(model), example
        self.parts = _chosen_parts(parts)
        self.relu, self.seed = relu, seed
        if start not in STARTS:
            raise InvalidArgument(f"start must be 'fit' or 'random', not {start!r}")
        self.start = start
        patterns = [layers] if isinstance(layers, str) else list(layers)
        if not (isinstance(width, int | float) and 0 < width <= 1):
            raise InvalidArgument(f"width must be a number in (0, 1], not {width!r}")
        trial = copy.deepcopy(self.model)
        exact, self.skipped = merge_exactly(trial) if "exact" in self.parts else ([], [])
        self.exact = [("exact", edit) for edit in exact]
        found, skipped = find_plans(trial, example, self.parts, relu)
        if width < 1:
            chosen = [plan for plan in found if _matches(plan, patterns)]
            self.exact += [("branch", edit) for edit in _narrowed(trial, example, chosen, width)]
            found, skipped = find_plans(trial, example, self.parts, relu)
        self.plans = [p for p in found if _matches(p, patterns)]
        self.skipped += skipped
        _refuse_unmatched(patterns, found)
        if not self.plans and all(isinstance(edit, InPlace) for _, edit in self.exact):
            reasons = "; ".join(f"{s.name}: {s.reason}" for s in self.skipped[:3])
            raise InvalidArgument(
                f"parts {', '.join(self.parts)}: nothing in the model can be merged "
                f"({reasons or 'it has no such layers'})"
            )
        self.batches = list(batches) if batches is not None else []
        if self.plans and start == "fit" and not self.batches:
            raise InvalidArgument(
                "start 'fit' needs batches=[(inputs, targets), ...]; or ask for start='random'"
            )
        self.original = trial.eval()
        self.graph = Traced(self.original).graph

    def run(self, layerwise: bool = False) -> Iterator[Merged]:
        """Merge, and say what; all at once for the model unless ``layerwise``."""
        for part, edit in self.exact:
            perform(self.model, [edit])
            for line in edit.describe():
                yield Merged(part, line.partition(":")[0], (), line)
        if not layerwise:
            perform(self.model, _together(self.plans))
        for i, plan in enumerate(self.plans):
            if layerwise:
                perform(self.model, [plan.edit])
            error = self._begin(plan, i)
            what = plan.edit.describe()[0]
            yield Merged(plan.part, plan.name, tuple(plan.edit.new_layers), what, error)

    def _begin(self, plan: Plan, index: int) -> dict[str, float]:
        """Give the new layers of ``plan`` the weights that they start from."""
        if self.start == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed * 1_000_003 + index)
                for name in plan.goals:
                    layer = self.model.get_submodule(name)
                    assert isinstance(layer, _ConvNd)
                    layer.reset_parameters()
            return {}
        return _fit(
            self.model, (self.original, self.graph), plan, self.batches, self.seed * 1009 + index
        )


def _narrowed(
    model: nn.Module, example: Any, plans: Sequence[Plan], width: float
) -> list[StructuralEdit]:
    """Cut the outputs of branches that ``plans`` merge, on ``model``; the edits."""
    cut = {layer: width for plan in plans for layer in plan.gone}
    if not cut:
        return []
    before = len(edits_of(model))
    prune_filters(model, cut, example=example)
    return list(edits_of(model)[before:])


def _chosen_parts(parts: str | Sequence[str]) -> tuple[str, ...]:
    chosen = (parts,) if isinstance(parts, str) else tuple(parts)
    if not chosen or set(chosen) - set(PARTS):
        raise InvalidArgument(f"parts must be of {', '.join(PARTS)}, not {parts!r}")
    return tuple(part for part in PARTS if part in chosen)


def _matches(plan: Plan, patterns: Sequence[str]) -> bool:
    names = [plan.name, *plan.goals]
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _refuse_unmatched(patterns: Sequence[str], plans: Sequence[Plan]) -> None:
    for pattern in patterns:
        if pattern != "*" and not any(_matches(plan, [pattern]) for plan in plans):
            known = ", ".join(plan.name for plan in plans) or "none"
            raise InvalidArgument(
                f"layers: {pattern!r} matches nothing that can be merged; there is {known}"
            )


def _together(plans: Sequence[Plan]) -> list[StructuralEdit]:
    """One edit of each kind; plans have no layer in common."""
    edits = [plan.edit for plan in plans]
    layers = {name: m for e in edits if isinstance(e, Streamline) for name, m in e.layers.items()}
    blocks = {
        name: b for e in edits if isinstance(e, MergeBranches) for name, b in e.blocks.items()
    }
    joined: list[StructuralEdit] = [Streamline(layers)] if layers else []
    return joined + ([MergeBranches(blocks)] if blocks else [])


@torch.no_grad()
def _fit(
    model: nn.Module, original: _Original, plan: Plan, batches: Sequence[Any], seed: int
) -> dict[str, float]:
    """Fit the layers that ``plan`` made in ``model`` to what ``original`` gives there."""
    fits = {}
    for name, goal in plan.goals.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, _ConvNd)
        fits[name] = LayerFit(layer, goal.rectified, seed)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        seen = _Seen(model, original, plan, batches)
        for _ in range(max(f.rounds for f in fits.values())):
            for name, inputs, wanted in seen:
                fits[name].add(inputs, wanted)
            for found in fits.values():
                found.finish()
        return _errors(model, plan, seen)
    finally:
        for module, mode in modes:
            module.training = mode


class _Seen:
    """What :func:`_seen` gives, any number of times; kept in memory where it is not much.

    The layers of one plan do not feed each other, so that fitting them changes nothing in it.
    """

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.kept: list[tuple[str, Tensor, Tensor]] | None = None

    def __iter__(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        if self.kept is not None:
            yield from self.kept
            return
        kept, elements = [], 0
        for item in _seen(*self.arguments):
            elements += item[1].numel() + item[2].numel()
            if elements <= KEPT_ELEMENTS:
                kept.append(item)
            else:
                kept.clear()
            yield item
        if elements <= KEPT_ELEMENTS:
            self.kept = kept


def _seen(
    model: nn.Module, original: _Original, plan: Plan, batches: Sequence[Any]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(layer, its inputs in ``model``, the outputs that it should have), batch after batch."""
    network, graph = original
    nodes = {node.name: node for node in graph.nodes}
    device = next(model.parameters()).device
    for batch in batches:
        x = batch[0].to(device) if isinstance(batch, tuple | list) else batch.to(device)
        inputs: dict[str, Tensor] = {}
        handles = [_keep_input(model.get_submodule(name), name, inputs) for name in plan.goals]
        try:
            model(x)
        finally:
            for handle in handles:
                handle.remove()
        given = record(network, x, {nodes[g.node] for g in plan.goals.values()}, graph)
        for name, goal in plan.goals.items():
            wanted = given[nodes[goal.node]][:, goal.first : goal.first + goal.count]
            yield name, inputs[name], wanted


def _keep_input(module: nn.Module, name: str, kept: dict[str, Tensor]) -> Any:
    def look(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        kept[name] = arguments[0]

    return module.register_forward_pre_hook(look)


def _errors(model: nn.Module, plan: Plan, seen: _Seen) -> dict[str, float]:
    """||outputs - wanted||^2 over ||wanted - mean||^2 of each layer that ``plan`` made."""
    missed = dict.fromkeys(plan.goals, 0.0)
    moments = dict.fromkeys(plan.goals, (0, 0.0, 0.0))
    for name, inputs, wanted in seen:
        outputs = model.get_submodule(name)(inputs)
        if plan.goals[name].rectified:
            outputs = outputs.clamp_min(0)
        missed[name] += float((outputs - wanted).double().square().sum())
        flat = wanted.double().transpose(0, 1).flatten(1)
        count, total, squares = moments[name]
        moments[name] = (
            count + flat.shape[1],
            total + flat.sum(1),  # type: ignore[assignment]
            squares + float(flat.square().sum()),
        )
    errors = {}
    for name, (count, total, squares) in moments.items():
        spread = squares - float((total**2).sum()) / count  # type: ignore[attr-defined]
        errors[name] = missed[name] / spread if spread > 0 else 0.0
    return errors


def parameter_groups(model: nn.Module, lr: float, factor: float = 10.0) -> list[dict[str, Any]]:
    """Groups for an optimizer: merged layers learn ``factor`` times as fast as the rest.

    Li et al. 2018, section 3.1. Layers whose merge is exact are of the rest.

    Parameters
    ----------
    model : nn.Module
        That edits were made to. Without any there is one group.
    lr : float
        Learning rate of the rest.
    factor : float

    Returns
    -------
    list of dict
        ``{"params": [...], "lr": ...}``; parameters that want no gradient are in none.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.MaxPool2d(2),
    ...     torch.nn.Flatten(), torch.nn.Linear(36, 2))
    >>> _ = espalier.merge(model, torch.zeros(1, 1, 8, 8), start="random")
    >>> optimizer = torch.optim.SGD(espalier.parameter_groups(model, lr=0.01), momentum=0.9)
    >>> [(len(group["params"]), group["lr"]) for group in optimizer.param_groups]
    [(2, 0.01), (2, 0.1)]
    """
    for what, value in (("lr", lr), ("factor", factor)):
        if not (math.isfinite(value) and value > 0):
            raise InvalidArgument(f"{what} must be positive, not {value}")
    model = unwrap(model)
    names = {name for edit in edits_of(model) for name in edit.new_layers}
    merged = {
        id(parameter)
        for name, module in model.named_modules()
        if name in names
        for parameter in module.parameters()
    }
    wanted = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in wanted if (id(p) in merged) == new], "lr": lr * scale}
        for new, scale in ((False, 1.0), (True, factor))
    ]
    return [group for group in groups if group["params"]]
