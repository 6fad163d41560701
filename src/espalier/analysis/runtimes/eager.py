"""PyTorch as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from espalier.analysis.runtime import RUNTIMES, Call, Runtime


@RUNTIMES.register("eager")
@dataclass(frozen=True)
class Eager(Runtime):
    """One operation after another, as the model's ``forward`` calls them."""

    def prepare(self, model: nn.Module, inputs: Sequence[Any]) -> Call:
        return lambda: model(*inputs)
