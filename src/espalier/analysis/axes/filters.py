"""The share of a layer's filters that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from espalier.analysis.axis import AXES, Axis, Value
from espalier.errors import InvalidArgument
from espalier.structure.filters import check_keep, prune_filters
from espalier.structure.graph import filter_groups
from espalier.targets import Target


@AXES.register("filters")
@dataclass(frozen=True)
class Filters(Axis):
    """Remove the filters with the least L1 norm: :func:`espalier.prune_filters`.

    Layers whose filters go together are one, under the name of the first. The sweep of Li et al.
    2017 (arXiv 1608.08710, section 3.2).

    Parameters
    ----------
    example : Tensor or tuple of Tensors
        An input of the network.
    """

    example: Any = None

    order: ClassVar[int] = 2
    grid: ClassVar[tuple[Value, ...]] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    by_default: ClassVar[bool] = False
    adds_up: ClassVar[bool] = False
    wants_example: ClassVar[bool] = True

    def check(self, value: object) -> Value:
        return check_keep(value)

    def targets(self, model: nn.Module) -> list[Target]:
        if self.example is None:
            raise InvalidArgument(
                "filters: which channels go together shows on an input; give sensitivity() an "
                "evaluate function"
            )
        groups = filter_groups(model, self.example)
        first = {group.layers[0] for group in groups if not group.obstacle}
        return [t for t in super().targets(model) if t.name.rpartition(".")[0] in first]

    def apply(self, model: nn.Module, values: Mapping[str, Value]) -> None:
        if self.example is None:
            self.targets(model)
        keep = {layer: float(value) for layer, value in values.items()}
        prune_filters(model, keep, example=self.example)

    def stage(self, values: Mapping[str, Value]) -> dict[str, Any]:
        return {"prune_filters": {"keep": {k: float(value) for k, value in values.items()}}}
