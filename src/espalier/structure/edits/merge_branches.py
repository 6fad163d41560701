"""Branches of an inception-like block, merged into those with larger kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from espalier.errors import InvalidArgument
from espalier.structure.branches import Block, block_at
from espalier.structure.edit import EDITS, StructuralEdit
from espalier.structure.operations import RELU, concatenated
from espalier.structure.rebuild import check_window, convolution, rebuilt
from espalier.structure.traced import Traced, set_module


@EDITS.register("merge_branches")
@dataclass(frozen=True)
class MergeBranches(StructuralEdit):
    """The outputs of 1x1 and pooling branches become outputs of the others (Li et al. 2018).

    Parameters
    ----------
    blocks : mapping of str to mapping
        For each block ``{"branches": [[step, ...], ...], "after": [step, ...], "kept": {layer:
        {"before": n, "after": n, "kernel": [...], "stride": [...], "padding": [...]}}, "relu":
        bool}``: the steps of each branch, in the order in which they are concatenated, and those
        behind the concatenation, which go too; the last convolutions of the branches that stay,
        with the outputs that each gets before and after its own. ``relu``: the last ReLU of each
        branch stays, or that behind the concatenation where a branch has none.
    """

    blocks: Mapping[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        for name, block in self.blocks.items():
            runs = [block.get("after"), *block.get("branches", [None])]
            if not all(isinstance(r, list) and all(isinstance(s, str) for s in r) for r in runs):
                raise InvalidArgument(f"{name}: branches or after are no lists of steps")
            kept = block.get("kept")
            if not isinstance(kept, dict) or not kept or not isinstance(block.get("relu"), bool):
                raise InvalidArgument(f"{name}: kept or relu is not what it should be")
            for layer, merged in kept.items():
                check_window(layer, merged)
                counts = (merged.get("before"), merged.get("after"))
                if not all(isinstance(n, int) and 0 <= n <= 1 << 20 for n in counts):
                    raise InvalidArgument(f"{layer}: {counts!r} are no counts of outputs")

    @property
    def new_layers(self) -> list[str]:
        return [layer for block in self.blocks.values() for layer in block["kept"]]

    def check(self, model: nn.Module) -> None:
        traced = Traced(model)
        for name in self.blocks:
            self._block(traced, name)

    def apply(self, model: nn.Module) -> None:
        traced = Traced(model)
        for name in self.blocks:
            self._merge(traced, name)
        traced.commit()

    def describe(self) -> list[str]:
        lines = []
        for name, block in self.blocks.items():
            gone = len(block["branches"]) - len(block["kept"])
            wider = ", ".join(
                f"{layer} ({m['before'] + m['after']} more outputs)"
                for layer, m in block["kept"].items()
            )
            steps = f"; {', '.join(block['after'])} behind it too" if block["after"] else ""
            lines.append(
                f"{name}: {gone} of {len(block['branches'])} branches are merged into "
                f"{wider}{steps}"
            )
        return lines

    def _block(self, traced: Traced, name: str) -> Block:
        """The block, with the steps that it had; InvalidArgument if it has others."""
        wanted = self.blocks[name]
        for layer, merged in wanted["kept"].items():
            module = convolution(traced, layer)
            if len(merged["kernel"]) != len(module.kernel_size):
                raise InvalidArgument(
                    f"{layer}: has {len(module.kernel_size)} axes, the edit {len(merged['kernel'])}"
                )
        node = traced.only_call(next(iter(wanted["kept"])))
        while len(node.users) == 1 and not concatenated(node):
            (node,) = node.users
        block = block_at(traced, node) if concatenated(node) else "nothing is concatenated there"
        if isinstance(block, str):
            raise InvalidArgument(f"{name}: {block}; the edits are of another architecture")
        found = [[str(step) for step in branch.steps] for branch in block.branches]
        after = [str(traced.step(n)) for n in block.after][: len(wanted["after"])]
        layers = [branch.layer for branch in block.branches]
        if (
            found != wanted["branches"]
            or after != wanted["after"]
            or any(layer not in layers for layer in wanted["kept"])
        ):
            raise InvalidArgument(
                f"{name}: its branches are {found} and then {after}, in the edit "
                f"{wanted['branches']} and then {wanted['after']}; the edits are of another "
                "architecture"
            )
        return Block(block.branches, block.concatenation, block.after[: len(after)])

    def _merge(self, traced: Traced, name: str) -> None:
        wanted = self.blocks[name]
        block = self._block(traced, name)
        keeps_relu = wanted["relu"]
        bare = 0  # branches that had no ReLU of their own
        for branch in block.branches:
            merged = wanted["kept"].get(branch.layer)
            if merged is None:
                continue
            old = convolution(traced, branch.layer)
            set_module(
                traced.model, branch.layer, rebuilt(old, merged, merged["before"], merged["after"])
            )
            kept = _last_relu(traced, branch.tail) if keeps_relu else []
            bare += keeps_relu and not kept
            traced.remove(n for n in branch.tail if n not in kept)
        kept = _last_relu(traced, block.after) if bare else []
        traced.remove(n for n in block.after if n not in kept)
        _rejoin(traced, block, set(wanted["kept"]))


def _last_relu(traced: Traced, nodes: tuple[fx.Node, ...]) -> list[fx.Node]:
    return [n for n in nodes if traced.step(n).kind == RELU][-1:]


def _rejoin(traced: Traced, block: Block, kept: set[str]) -> None:
    """Concatenate the branches that stay; what only one is left of needs no concatenation."""
    node = block.concatenation
    gone = {b.nodes[-1] for b in block.branches if b.layer not in kept}
    parts = [part for part in concatenated(node) if part not in gone]
    if "tensors" in node.kwargs:
        node.kwargs = {**node.kwargs, "tensors": parts}
    else:
        node.args = (parts, *node.args[1:])
    if len(parts) == 1:
        traced.remove([node])
    for branch in block.branches:
        if branch.layer not in kept:
            traced.drop(branch.nodes)
