"""``torch.compile``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from espalier.analysis.runtime import RUNTIMES, Call, Runtime
from espalier.errors import InvalidArgument, first_line


@RUNTIMES.register("compile")
@dataclass(frozen=True)
class Compile(Runtime):
    """The model compiled by ``torch.compile`` for the shapes of the inputs.

    Parameters
    ----------
    mode : str
        Of ``torch.compile``: ``"default"``, ``"reduce-overhead"`` or ``"max-autotune"``.
    """

    mode: str = "default"

    def reset(self) -> None:
        # Past a few models of one class, dynamo gives up compiling, and runs eagerly in silence.
        torch._dynamo.reset()

    def prepare(self, model: nn.Module, inputs: Sequence[Any]) -> Call:
        compiled = torch.compile(model, dynamic=False, mode=self.mode)
        try:
            compiled(*inputs)
        except Exception as error:
            raise InvalidArgument(
                f"torch.compile fails on the model: {first_line(error)}"
            ) from error
        return lambda: compiled(*inputs)
