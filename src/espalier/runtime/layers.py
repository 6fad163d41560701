"""Layers that compute from a packed weight, for inference."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.errors import InvalidArgument
from espalier.runtime.packed import PackedMatrix, padded

LARGEST = 2**31 - 1
"""Values in an input that is computed on at once: where columns begin is int32."""

PACKED, EXPANDED, DENSE = "packed", "expanded", "dense"


class PackedLayer(nn.Module, ABC):
    """A layer in place of a dense one, with its weight in one form or several.

    Attributes
    ----------
    matrix : PackedMatrix
        The weight, its outputs as rows.
    expanded : Tensor or None
        The same in ``torch.sparse_csr``, where that was measured to be faster.
    kept : Tensor or None
        The same, dense, where that was.
    choice : mapping of int to str
        Positions of an input, and the form that computes with so many; the nearest counts.

    Notes
    -----
    None of this is a parameter or a buffer, since it takes part in no training and moves to no
    other device. ``state_dict`` holds the dense ``weight`` and ``bias``, as the dense layer's does.
    """

    def __init__(self, matrix: PackedMatrix, shape: torch.Size, bias: Tensor | None) -> None:
        super().__init__()
        self.matrix = matrix
        self.shape = shape
        self.bias = None if bias is None else bias.detach()
        dtype = torch.from_numpy(matrix.table).dtype
        zeros = torch.zeros(matrix.shape[0], dtype=dtype)
        self.addend = zeros if self.bias is None else self.bias.contiguous()
        self.expanded: Tensor | None = None
        self.kept: Tensor | None = None
        self.choice: Mapping[int, str] = {1: PACKED}
        self.training = False

    @property
    def weight(self) -> Tensor:
        """The dense weight, made anew where it is not kept."""
        return self.matrix.dense().view(self.shape) if self.kept is None else self.kept

    def held(self) -> dict[int, int]:
        """Bytes in memory of each form of the weight that is held, by its identity."""
        found = {id(self.matrix): self.matrix.nbytes}
        if self.expanded is not None:
            csr = self.expanded
            parts = (csr.crow_indices(), csr.col_indices(), csr.values())
            found[id(csr)] = sum(part.nbytes for part in parts)
        if self.kept is not None:
            found[id(self.kept)] = self.kept.nbytes
        return found

    @property
    def weight_bytes(self) -> int:
        """Bytes in memory of the weight, in all forms that are held."""
        return sum(self.held().values())

    def drop_unused(self) -> None:
        """Let go of the forms that no batch size asks for; the packed one stays."""
        forms = set(self.choice.values())
        if EXPANDED not in forms:
            self.expanded = None
        if DENSE not in forms:
            self.kept = None

    @abstractmethod
    def positions(self, x: Tensor) -> int:
        """How many times the weight meets a column of ``x``: its samples, or its places."""

    @abstractmethod
    def compute(self, x: Tensor, form: str) -> Tensor:
        """The layer's output by one form of its weight."""

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
                f"{type(self).__name__} computes from compressed weights, for inference only: call "
                "model.eval(), and run it under torch.no_grad(); to train, take the model before "
                "espalier.accelerate"
            )
        if x.device.type != "cpu" or x.dtype != self.addend.dtype:
            raise InvalidArgument(
                f"{type(self).__name__} computes on the CPU in {self.addend.dtype}; the input is "
                f"on {x.device.type}, in {x.dtype}"
            )
        return self.compute(x.detach(), self.form(self.positions(x)))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight
        if self.bias is not None:
            destination[prefix + "bias"] = self.bias

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        raise InvalidArgument(
            f"{type(self).__name__} holds compressed weights, into which none can be loaded: load "
            "them before espalier.accelerate"
        )


class PackedLinear(PackedLayer):
    """``y = x W^T + b`` from the packed W."""

    def __init__(self, matrix: PackedMatrix, layer: nn.Linear) -> None:
        super().__init__(matrix, layer.weight.shape, layer.bias)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._found: tuple[int, Tensor] | None = None

    def positions(self, x: Tensor) -> int:
        return x.numel() // max(1, self.in_features)

    def compute(self, x: Tensor, form: str) -> Tensor:
        if x.dim() == 0 or x.shape[-1] != self.in_features:
            raise InvalidArgument(
                f"input of shape {tuple(x.shape)} for a layer of {self.in_features} features"
            )
        if form == DENSE:
            return F.linear(x, self.weight, self.bias)
        flat = x if x.dim() == 2 else x.reshape(-1, self.in_features)
        if form == EXPANDED:
            assert self.expanded is not None
            y = self._expanded(flat)
        elif len(flat) == 1:
            threads = torch.get_num_threads()
            y = self.matrix.times_vector(flat.contiguous(), self.addend, threads)[None]
        else:
            y = self._tiles(flat)
        return y if y.dim() == x.dim() else y.view(*x.shape[:-1], self.out_features)

    def _tiles(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        stride = padded(n)
        if stride * self.in_features > LARGEST and n > 1:
            return torch.cat([self._tiles(half) for half in x.split(-(-n // 2))])
        turned = F.pad(x, (0, 0, 0, stride - n)).t().contiguous()
        y = self.matrix.times_tiles(
            turned, self._starts(stride), n, self.addend, torch.get_num_threads()
        )
        return y[:, :n].t().contiguous()

    def _starts(self, stride: int) -> Tensor:
        """Where each column of the matrix begins in the turned input; the last are remembered."""
        found = self._found
        if found is None or found[0] != stride:
            starts = torch.arange(self.in_features, dtype=torch.int32) * stride
            found = self._found = stride, starts
        return found[1]

    def expand(self) -> None:
        """Hold the weight as ``torch.sparse_csr`` too, with indices of 32 bits."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its support is in beta
            csr = self.weight.to_sparse_csr()
            self.expanded = torch.sparse_csr_tensor(
                csr.crow_indices().int(),
                csr.col_indices().int(),
                csr.values(),
                csr.shape,
                check_invariants=True,
            )

    def _expanded(self, x: Tensor) -> Tensor:
        assert self.expanded is not None
        y = (self.expanded @ x[0])[None] if len(x) == 1 else (self.expanded @ x.t()).t()
        return y.contiguous() if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
