"""Weights packed or laid out for inference: :func:`espalier.accelerate`."""

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
    """A copy of the model that runs from nonzeros and codes, and dense weights laid out once."""

    def prepare(self, model: nn.Module, inputs: Sequence[Any]) -> Call:
        model = deepcopy(model)
        accelerate(model, tuple(inputs), batches=[len(inputs[0])])
        return lambda: model(*inputs)
