"""Sparse layers from their compressed weights: :func:`espalier.accelerate`."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import nn

from espalier.analysis.runtime import RUNTIMES, Call, Runtime
from espalier.runtime import accelerate


@RUNTIMES.register("packed")
@dataclass(frozen=True)
class Packed(Runtime):
    """A copy of the model whose sparse layers run from nonzeros and codes, where that is faster."""

    def prepare(self, model: nn.Module, inputs: Sequence[Any]) -> Call:
        model = deepcopy(model)
        accelerate(model, tuple(inputs), batches=[len(inputs[0])])
        return lambda: model(*inputs)
