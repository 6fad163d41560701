"""Layers that compute from a packed weight, for inference."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.errors import InvalidArgument
from espalier.runtime.inference_layer import DENSE, InferenceLayer
from espalier.runtime.packed import PackedMatrix, padded

LARGEST = 2**31 - 1
"""Values in an input that is computed on at once: where columns begin is int32."""

_SHARES = 8
"""Parts of the outputs that threads can take, where each goes through all inputs."""

PACKED, SKIPPING, EXPANDED = "packed", "skipping", "expanded"


class PackedLayer(InferenceLayer):
    """A layer in place of a dense one, computing from nonzeros.

    Attributes
    ----------
    forms : dict of str to object
        The weight, by form: ``"packed"``, a :class:`PackedMatrix` of outputs by inputs;
        ``"skipping"``, one of inputs by outputs, of which the rows are skipped whose input is zero;
        ``"expanded"``, a ``torch.sparse_csr`` tensor; ``"dense"``, the weight as it was.
    scales : Tensor or None
        One for each output, with which the packed numbers are multiplied: of fixed point.
    """

    weights = "compressed weights"

    def __init__(
        self,
        matrix: PackedMatrix,
        shape: torch.Size,
        bias: Tensor | None,
        scales: Tensor | None = None,
    ) -> None:
        super().__init__(shape, bias, torch.from_numpy(matrix.table).dtype)
        self.scales = scales
        self.forms[PACKED] = matrix
        zeros = torch.zeros(matrix.shape[0], dtype=self.dtype)
        # What the kernels begin with; behind a scale, the bias comes last.
        at_once = self.bias is not None and scales is None
        self.addend = self.bias.contiguous() if self.bias is not None and at_once else zeros
        self.choice = {1: PACKED}

    @property
    def weight(self) -> Tensor:
        """The dense weight, made anew where it is not held."""
        if DENSE in self.forms:
            dense: Tensor = self.forms[DENSE]
        elif PACKED in self.forms:
            dense = self._scaled_weight(self.unpacked(self.forms[PACKED]))
        elif SKIPPING in self.forms:
            dense = self._scaled_weight(self.forms[SKIPPING].dense().t().contiguous())
        else:
            dense = self.forms[EXPANDED].to_dense()
        return dense

    def unpacked(self, matrix: PackedMatrix) -> Tensor:
        """The dense weight of ``matrix``."""
        return matrix.dense().view(self.shape)

    def _scaled_weight(self, weight: Tensor) -> Tensor:
        return weight if self.scales is None else weight * _beside(self.scales, weight.dim(), 0)

    def scaled(self, y: Tensor) -> Tensor:
        """``y``, samples by outputs, with the scales of the outputs and then the bias."""
        if self.scales is not None:
            y *= _beside(self.scales, y.dim(), 1)
            if self.bias is not None:
                y += _beside(self.bias, y.dim(), 1)
        return y

    def held(self) -> dict[int, int]:
        found = {id(part): _nbytes(part) for part in self.forms.values()}
        return found if self.scales is None else found | {id(self.scales): self.scales.nbytes}


class PackedLinear(PackedLayer):
    """``y = x W^T + b`` from the packed W."""

    def __init__(
        self, matrix: PackedMatrix, layer: nn.Linear, scales: Tensor | None = None
    ) -> None:
        super().__init__(matrix, layer.weight.shape, layer.bias, scales)
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
            y = self._expanded(flat)
        elif form == SKIPPING:
            y = self.scaled(self._skipping(flat))
        elif len(flat) == 1:
            threads = torch.get_num_threads()
            vector = self.forms[PACKED].times_vector(flat.contiguous(), self.addend, threads)
            y = self.scaled(vector[None])
        else:
            y = self.scaled(self._tiles(flat))
        return y if y.dim() == x.dim() else y.view(*x.shape[:-1], self.out_features)

    def _tiles(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        stride = padded(n)
        if stride * self.in_features > LARGEST and n > 1:
            return torch.cat([self._tiles(half) for half in x.split(-(-n // 2))])
        turned = (F.pad(x, (0, 0, 0, stride - n)) if stride > n else x).t().contiguous()
        y = self.forms[PACKED].times_tiles(
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

    def skip(self) -> None:
        """Hold the weight by its inputs too, to skip those that are zero."""
        self.forms[SKIPPING] = PackedMatrix.of(self.forms[PACKED].dense().t(), _SHARES)

    def _skipping(self, x: Tensor) -> Tensor:
        y = x.new_empty(x.shape[0], self.out_features)
        for one, of_one in zip(x, y, strict=True):
            self.forms[SKIPPING].skipping(
                one.contiguous(), of_one, self.addend, torch.get_num_threads()
            )
        return y

    def expand(self) -> None:
        """Hold the weight as ``torch.sparse_csr`` too, with indices of 32 bits."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its support is in beta
            csr = self.weight.to_sparse_csr()
            self.forms[EXPANDED] = torch.sparse_csr_tensor(
                csr.crow_indices().int(),
                csr.col_indices().int(),
                csr.values(),
                csr.shape,
                check_invariants=True,
            )

    def _expanded(self, x: Tensor) -> Tensor:
        csr = self.forms[EXPANDED]
        y = (csr @ x[0])[None] if len(x) == 1 else (csr @ x.t()).t()
        return y.contiguous() if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def _nbytes(weight: PackedMatrix | Tensor) -> int:
    if isinstance(weight, Tensor) and weight.layout == torch.sparse_csr:
        parts = (weight.crow_indices(), weight.col_indices(), weight.values())
        return sum(part.nbytes for part in parts)
    return weight.nbytes


def _beside(values: Tensor, dim: int, axis: int) -> Tensor:
    """``values`` along one axis of ``dim``."""
    return values.view([-1 if i == axis else 1 for i in range(dim)])
