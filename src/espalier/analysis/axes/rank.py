"""The share of a layer's full rank that its factors have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from espalier.analysis.axis import AXES, Axis, Value
from espalier.errors import InvalidArgument
from espalier.structure.factorization import FACTORIZATIONS, default_method, obstacle
from espalier.structure.factorize import factorize
from espalier.targets import Target


@AXES.register("rank")
@dataclass(frozen=True)
class Rank(Axis):
    """Factor the layer: :func:`espalier.factorize`, with the method that goes with its kind.

    A layer whose factors would cost more than it does stays as it is.

    Parameters
    ----------
    example : Tensor or tuple of Tensors, optional
        An input of the network.
    """

    example: Any = None

    order: ClassVar[int] = 5
    grid: ClassVar[tuple[Value, ...]] = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
    by_default: ClassVar[bool] = False
    replaces: ClassVar[bool] = True
    wants_example: ClassVar[bool] = True

    def check(self, value: object) -> Value:
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1:
            return float(value)
        raise InvalidArgument(f"rank must be a share of the full rank in (0, 1], not {value!r}")

    def takes(self, target: Target) -> bool:
        layer = target.sites[0].module
        return (
            target.kind in ("linear", "conv")
            and super().takes(target)
            and len(target.names) == 1
            and "." in target.name
            and not obstacle(layer)
            and not FACTORIZATIONS.make(default_method(layer)).refuses(layer)
            and bool(target.value.any())
        )

    def apply(self, model: nn.Module, values: Mapping[str, Value]) -> None:
        has = {target.name for target in self.targets(model)}
        ranks = {layer: float(value) for layer, value in values.items() if layer in has}
        if ranks:
            factorize(model, ranks, example=self.example)

    def stage(self, values: Mapping[str, Value]) -> dict[str, Any]:
        return {"factorize": {"rank": {layer: float(value) for layer, value in values.items()}}}
