"""What the layers have in common that compute from a weight in another form, for inference."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import InvalidArgument

DENSE = "dense"


class InferenceLayer(nn.Module, ABC):
    """A layer in place of another, with its weight in one form or several.

    Attributes
    ----------
    forms : dict of str to object
        The weight, by form.
    shape : torch.Size
        Of the weight.
    bias : Tensor or None
    dtype : torch.dtype
        Of inputs and outputs.
    choice : mapping of int to str
        Positions of an input, and the form that computes with so many; the nearest counts.

    Notes
    -----
    None of this is a parameter or a buffer, since it takes part in no training and moves to no
    other device. ``state_dict`` holds the dense ``weight`` and ``bias``, as the dense layer's does.
    """

    weights = "weights"
    """What errors say that the layer computes from."""
    fx_leaf = True
    """One step of a traced network, whatever happens inside."""

    def __init__(self, shape: torch.Size, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.forms: dict[str, Any] = {}
        self.shape, self.dtype = shape, dtype
        self.bias = None if bias is None else bias.detach()
        self.choice: Mapping[int, str] = {}
        self.training = False

    @property
    @abstractmethod
    def weight(self) -> Tensor:
        """The dense weight."""

    @abstractmethod
    def held(self) -> dict[int, int]:
        """Bytes in memory of each form of the weight, by its identity."""

    @abstractmethod
    def positions(self, x: Tensor) -> int:
        """How many times the weight meets a column of ``x``: its samples, or its places."""

    @abstractmethod
    def compute(self, x: Tensor, form: str) -> Tensor:
        """The layer's output by one form of its weight."""

    @property
    def weight_bytes(self) -> int:
        """Bytes in memory of the weight, in all forms that are held."""
        return sum(self.held().values())

    def drop_unused(self) -> None:
        """Let go of the forms that no batch size asks for."""
        self.forms = {form: self.forms[form] for form in dict.fromkeys(self.choice.values())}

    def form(self, positions: int) -> str:
        """The form that was measured nearest to so many positions, by ratio."""
        found = self.choice.get(positions)
        if found is not None:
            return found
        near = min(self.choice, key=lambda n: abs(math.log(max(positions, 1) / n)))
        return self.choice[near]

    def forward(self, x: Tensor) -> Tensor:
        if self.training or (torch.is_grad_enabled() and x.requires_grad):
            raise InvalidArgument(
                f"{type(self).__name__} computes from {self.weights}, for inference only: call "
                "model.eval(), and run it under torch.no_grad(); to train, take the model before "
                "espalier.accelerate"
            )
        if x.device.type != "cpu" or x.dtype != self.dtype:
            raise InvalidArgument(
                f"{type(self).__name__} computes on the CPU in {self.dtype}; the input is "
                f"on {x.device.type}, in {x.dtype}"
            )
        return self.compute(x.detach(), self.form(self.positions(x)))

    def __deepcopy__(self, memo: dict[int, Any]) -> InferenceLayer:
        """A layer with the same weights: nothing writes to them."""
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy({**vars(self), "forms": None}, memo))
        twin.forms = dict(self.forms)
        return twin

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise InvalidArgument(
            f"{type(self).__name__} holds {self.weights}, into which none can be loaded: load "
            "them before espalier.accelerate"
        )
