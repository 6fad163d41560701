"""The bits of a layer's codes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from espalier.analysis.axis import AXES, Axis, Value
from espalier.options import check_bits
from espalier.quantization.share import share


@AXES.register("bits")
@dataclass(frozen=True)
class Bits(Axis):
    """Let the kept weights share 2^bits values: :func:`espalier.share`."""

    order: ClassVar[int] = 20
    grid: ClassVar[tuple[Value, ...]] = (1, 2, 3, 4, 5, 6, 8)

    def check(self, value: object) -> Value:
        return check_bits(value)

    def apply(self, model: nn.Module, values: Mapping[str, Value]) -> None:
        share(model, {layer: int(bits) for layer, bits in values.items()})

    def stage(self, values: Mapping[str, Value]) -> dict[str, Any]:
        return {"share": {"bits": {layer: int(bits) for layer, bits in values.items()}}}
