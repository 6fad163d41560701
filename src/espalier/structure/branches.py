"""Inception-like blocks of a traced network: branches of one input that meet in a concatenation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import fx

from espalier.structure.operations import CONVOLUTION, NON_TENSOR, Step, concatenated
from espalier.structure.traced import Traced


@dataclass(frozen=True)
class Branch:
    """The steps from a block's input to its concatenation, in order."""

    nodes: tuple[fx.Node, ...]
    steps: tuple[Step, ...]

    @property
    def last(self) -> int:
        """Where the last convolution stands; -1 if there is none."""
        found = [i for i, step in enumerate(self.steps) if step.kind == CONVOLUTION]
        return found[-1] if found else -1

    @property
    def layer(self) -> str:
        """The last convolution's name; empty if there is none."""
        return self.steps[self.last].layer if self.last >= 0 else ""

    @property
    def tail(self) -> tuple[fx.Node, ...]:
        """The steps behind the last convolution."""
        return self.nodes[self.last + 1 :]

    @property
    def tensor(self) -> bool:
        """Whether a convolution of it sees more than one position."""
        windows = [step.window for step in self.steps if step.kind == CONVOLUTION]
        return any(window is not None and max(window.kernel) > 1 for window in windows)


@dataclass(frozen=True)
class Block:
    """Branches, the concatenation where they meet, and the non-tensor steps behind that."""

    branches: tuple[Branch, ...]
    concatenation: fx.Node
    after: tuple[fx.Node, ...]

    @property
    def name(self) -> str:
        """What the names of its layers begin with, or the first with a kernel above 1x1."""
        layers = [b.layer for b in self.branches if b.layer]
        parts = [layer.split(".") for layer in layers]
        common = []
        for names in zip(*parts, strict=False):
            if len(set(names)) > 1:
                break
            common.append(names[0])
        tensor = [b.layer for b in self.branches if b.tensor]
        return ".".join(common) or (tensor or layers)[0]


def block_at(traced: Traced, node: fx.Node) -> Block | str:
    """The block whose branches meet in ``node``, or why there is none."""
    branches, starts = [], set()
    parts = concatenated(node)
    if len(set(parts)) != len(parts):
        return "it concatenates the same outputs twice"
    for part in parts:
        nodes: list[fx.Node] = []
        while traced.step(part).kind in (CONVOLUTION, *NON_TENSOR) and len(part.users) == 1:
            nodes.insert(0, part)
            part = cast(fx.Node, part.args[0])
        branches.append(Branch(tuple(nodes), tuple(traced.step(n) for n in nodes)))
        starts.add(part)
    if len(starts) != 1:
        return "its branches do not come from one input"
    if not all(branch.nodes for branch in branches):
        return "its input itself is concatenated"
    return Block(tuple(branches), node, tuple(traced.run_after(node)))


def concatenations(traced: Traced) -> list[fx.Node]:
    """Every concatenation of channels of two or more tensors, in order."""
    return [node for node in traced.graph.nodes if len(concatenated(node)) > 1]
