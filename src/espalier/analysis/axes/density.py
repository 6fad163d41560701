"""The share of a layer's weights that stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from espalier.analysis.axis import AXES, Axis, Value
from espalier.options import check_density
from espalier.pruning import prune


@AXES.register("density")
@dataclass(frozen=True)
class Density(Axis):
    """Prune by magnitude, at once: :func:`espalier.prune`."""

    order: ClassVar[int] = 10
    grid: ClassVar[tuple[Value, ...]] = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 0.7)

    def check(self, value: object) -> Value:
        return check_density(value)

    def apply(self, model: nn.Module, values: Mapping[str, Value]) -> None:
        prune(model, dict(values))

    def stage(self, values: Mapping[str, Value]) -> dict[str, Any]:
        return {"prune": {"density": dict(values)}}
