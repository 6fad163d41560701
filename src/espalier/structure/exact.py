"""The exact merges: batch norms, linear maps that follow each other, steps that do nothing."""

from __future__ import annotations

from torch import nn

from espalier.structure.edit import StructuralEdit, edits_of, perform
from espalier.structure.edits.in_place import overwriting
from espalier.structure.edits.merge_linear import MergeLinear, obstacle
from espalier.structure.edits.remove_identities import removable
from espalier.structure.fold import fold_batch_norms
from espalier.structure.operations import CONVOLUTION, LINEAR
from espalier.structure.traced import Traced
from espalier.targets import Skipped


def merge_exactly(model: nn.Module) -> tuple[list[StructuralEdit], list[Skipped]]:
    """Make every exact merge on ``model``; the edits, and the layers that stay, with reasons."""
    before = len(edits_of(model))
    _remove_identities(model)
    skipped = list(fold_batch_norms(model).skipped)
    while True:
        pairs, left = _linear_pairs(model)
        if not pairs:
            break
        perform(model, [MergeLinear(pairs)])
    _remove_identities(model)
    in_place = overwriting(Traced(model))
    if in_place.layers or in_place.functions:
        perform(model, [in_place])
    return list(edits_of(model)[before:]), skipped + left


def _remove_identities(model: nn.Module) -> None:
    found = removable(Traced(model))
    if found.layers or found.functions:
        perform(model, [found])


def _linear_pairs(model: nn.Module) -> tuple[dict[str, str], list[Skipped]]:
    """Layers that can be merged with the one right behind them, each in one pair."""
    traced = Traced(model)
    pairs: dict[str, str] = {}
    taken: set[str] = set()
    skipped = []
    for node in traced.graph.nodes:
        behind = traced.step(node)
        if behind.kind not in (CONVOLUTION, LINEAR):
            continue
        before = traced.step(traced.source(node))
        if before.kind != behind.kind or len(traced.source(node).users) != 1:
            continue
        reason = obstacle(traced, before.layer, behind.layer)
        if reason:
            skipped.append(Skipped(behind.layer, f"cannot be merged into {before.layer}: {reason}"))
        elif not {before.layer, behind.layer} & taken:
            pairs[before.layer] = behind.layer
            taken |= {before.layer, behind.layer}
    return pairs, skipped
