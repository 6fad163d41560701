"""What can be merged in a network, each as the edit that does it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from espalier.structure.branches import Block, block_at, concatenations
from espalier.structure.edits.merge_branches import MergeBranches
from espalier.structure.edits.streamline import Streamline
from espalier.structure.geometry import merged_window
from espalier.structure.operations import (
    CONVOLUTION,
    LRN,
    POOLS,
    RELU,
    Window,
    convolution_window,
)
from espalier.structure.rebuild import REBUILDABLE, window_to_json
from espalier.structure.traced import Traced, shapes
from espalier.targets import Skipped

Shapes = Mapping[fx.Node, tuple[int, ...]]


@dataclass(frozen=True)
class Goal:
    """What a new layer should give: some channels of a node of the network as it was.

    ``rectified``: a ReLU stands behind the layer.
    """

    node: str
    first: int
    count: int
    rectified: bool


@dataclass(frozen=True)
class Plan:
    """One layer or block that can be merged.

    ``place``: of its last step among all steps. ``gone``: the last convolutions of the branches
    that go.
    """

    part: str
    name: str
    edit: Streamline | MergeBranches
    goals: Mapping[str, Goal]
    place: int
    gone: tuple[str, ...] = ()


class Obstacle(Exception):
    """Why something cannot be merged."""


def find_plans(
    model: nn.Module, example: Any, parts: Sequence[str], relu: bool
) -> tuple[list[Plan], list[Skipped]]:
    """Everything that can be merged, in the network's order; and what cannot, with reasons."""
    traced = Traced(model)
    sizes = shapes(model, traced.graph, example)
    place = {node: i for i, node in enumerate(traced.graph.nodes)}
    plans: list[Plan] = []
    skipped: list[Skipped] = []
    taken: set[fx.Node] = set()
    for node in concatenations(traced) if "branch" in parts else []:
        block = block_at(traced, node)
        if isinstance(block, str):
            skipped.append(Skipped(node.name, block))
            continue
        try:
            known = {plan.name for plan in plans}
            plans.append(_block_plan(traced, block, known, sizes, place, relu))
        except Obstacle as reason:
            named = any(branch.layer for branch in block.branches)
            skipped.append(Skipped(block.name if named else node.name, str(reason)))
            continue
        taken.update(n for branch in block.branches for n in branch.nodes)
    for node in traced.graph.nodes if "streamline" in parts else []:
        if traced.step(node).kind != CONVOLUTION or node in taken:
            continue
        run = _worth_merging(traced, traced.run_after(node))
        if not run:
            continue
        try:
            plans.append(_streamline_plan(traced, node, run, sizes, place, relu))
        except Obstacle as reason:
            skipped.append(Skipped(str(node.target), str(reason)))
    return sorted(plans, key=lambda plan: plan.place), skipped


def _worth_merging(traced: Traced, run: Sequence[fx.Node]) -> list[fx.Node]:
    """The run, if there is more in it than what folds exactly or has to stay."""
    kinds = [traced.step(node).kind for node in run]
    return list(run) if any(kind in (LRN, *POOLS) for kind in kinds) else []


def _streamline_plan(
    traced: Traced,
    node: fx.Node,
    run: Sequence[fx.Node],
    sizes: Shapes,
    place: Mapping[fx.Node, int],
    relu: bool,
) -> Plan:
    name = str(node.target)
    keeps = relu and _has_relu(traced, run)
    window = _window(traced, node, run, run[-1], sizes)
    merged = {"run": [str(traced.step(n)) for n in run]} | window_to_json(window) | {"relu": keeps}
    goal = Goal(run[-1].name, 0, sizes[run[-1]][1], keeps)
    return Plan("streamline", name, Streamline({name: merged}), {name: goal}, place[run[-1]])


def _window(
    traced: Traced, node: fx.Node, run: Iterable[fx.Node], end: fx.Node, sizes: Shapes
) -> Window:
    """The window of what stands for ``node`` and ``run``; outputs are as large as at ``end``."""
    name = str(node.target)
    module = traced.modules[name]
    reason = traced.obstacle(name)
    if reason:
        raise Obstacle(reason)
    if not isinstance(module, _ConvNd) or type(module) not in REBUILDABLE:
        raise Obstacle(f"a {type(module).__name__} cannot be built anew")
    source = node.all_input_nodes[0]
    if source not in sizes or len(sizes[source]) != len(module.kernel_size) + 2:
        raise Obstacle("its input has no batch axis")
    windows = []
    for step_node in run:
        window = traced.step(step_node).window
        if window is None:
            continue
        seen = sizes[step_node.all_input_nodes[0]][2:]
        if all(k >= n for k, n in zip(window.kernel, seen, strict=True)) and prod(seen) > 1:
            raise Obstacle(f"it is followed by a pooling over the whole of {_size(seen)}")
        windows.append(window)
    shapes_of = sizes[source][2:], sizes[end][2:]
    merged = merged_window(convolution_window(module), windows, *shapes_of)
    if merged is None:
        raise Obstacle(
            f"no kernel with its dilation makes {_size(shapes_of[1])} of {_size(shapes_of[0])}"
        )
    return merged


def _size(values: Sequence[int]) -> str:
    return " x ".join(map(str, values))


# ---------------------------------------------------------------- blocks


def _block_plan(
    traced: Traced,
    block: Block,
    known: Container[str],
    sizes: Shapes,
    place: Mapping[fx.Node, int],
    relu: bool,
) -> Plan:
    after = _worth_merging(traced, block.after)
    end = after[-1] if after else block.concatenation
    kept = [i for i, branch in enumerate(block.branches) if branch.tensor]
    if not kept:
        raise Obstacle("no branch of it has a kernel above 1x1")
    if len(kept) == len(block.branches) and not after:
        raise Obstacle("no branch of it is of 1x1 kernels or a pooling")
    widths = [sizes[branch.nodes[-1]][1] for branch in block.branches]
    owners = _owners(traced, block, kept)
    layers: dict[str, dict[str, Any]] = {}
    goals: dict[str, Goal] = {}
    first = 0
    for i in kept:
        branch = block.branches[i]
        before = sum(widths[j] for j in range(i) if owners[j] == i)
        behind = sum(widths[j] for j in range(i + 1, len(widths)) if owners[j] == i)
        node = branch.nodes[branch.last]
        module = traced.modules[branch.layer]
        if before + behind and getattr(module, "groups", 1) > 1:
            raise Obstacle(f"{branch.layer} has groups, and gets no more outputs")
        try:
            window = _window(traced, node, [*branch.tail, *after], end, sizes)
        except Obstacle as reason:
            raise Obstacle(f"{branch.layer}: {reason}") from None
        layers[branch.layer] = {"before": before, "after": behind} | window_to_json(window)
        count = before + widths[i] + behind
        rectified = relu and _has_relu(traced, [*branch.tail, *after])
        goals[branch.layer] = Goal(end.name, first, count, rectified)
        first += count
    name = block.name if block.name not in known else next(iter(layers))
    edit = MergeBranches(
        {
            name: {
                "branches": [[str(step) for step in b.steps] for b in block.branches],
                "after": [str(traced.step(n)) for n in after],
                "kept": layers,
                "relu": relu,
            }
        }
    )
    gone = tuple(b.layer for b in block.branches if b.layer and b.layer not in layers)
    return Plan("branch", name, edit, goals, place[end], gone)


def _owners(traced: Traced, block: Block, kept: Sequence[int]) -> list[int]:
    """For each branch the one of ``kept`` that gives its outputs, so that channels stay in order.

    Between two of them it is the one whose outputs cost fewer weights.
    """

    def weights(i: int) -> int:
        layer: Any = traced.modules[block.branches[i].layer]
        return layer.weight[0].numel()

    owners = []
    for i in range(len(block.branches)):
        left = [k for k in kept if k <= i][-1:]
        right = [k for k in kept if k >= i][:1]
        owners.append(min([*left, *right], key=weights))
    return owners


def _has_relu(traced: Traced, nodes: Iterable[fx.Node]) -> bool:
    return any(traced.step(n).kind == RELU for n in nodes)
