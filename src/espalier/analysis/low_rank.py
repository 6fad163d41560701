"""Truncated SVD of every weight, trainable: what the studies compare with."""

from __future__ import annotations

import io
import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from espalier.container import write
from espalier.errors import InvalidArgument
from espalier.state import CompressedModel, CompressedTensor, Dense
from espalier.targets import find_targets
from espalier.torch_io import to_array


class LowRank(nn.Module):
    """weight = left @ right, in the shape (out, in x kernel), of rank r; both factors train.

    Parameters
    ----------
    rank : int
    shape : sequence of int
        Of the weight.
    """

    def __init__(self, rank: int, shape: torch.Size) -> None:
        super().__init__()
        self.rank, self.shape = rank, shape

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (left @ right).view(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        # The best approximation of that rank (Eckart and Young 1936).
        u, s, v = torch.linalg.svd(weight.reshape(weight.shape[0], -1), full_matrices=False)
        root = s[: self.rank].sqrt()
        return u[:, : self.rank] * root, root[:, None] * v[: self.rank]


def factor(model: nn.Module, share: float) -> nn.Module:
    """Replace every weight by its truncated SVD of ``share`` of its full rank, at least 1.

    Weights whose factors would hold more numbers than they do stay as they are. ``model`` is
    changed, and returned.
    """
    if not 0 < share <= 1:
        raise InvalidArgument(f"rank must be a share in (0, 1], not {share}")
    for target in find_targets(model):
        weight = target.value
        if not target.by_default or target.obstacle or weight.dim() < 2 or not weight.numel():
            continue
        rows, columns = weight.shape[0], weight.numel() // weight.shape[0]
        rank = max(1, math.floor(share * min(rows, columns) + 0.5))
        if rank * (rows + columns) < weight.numel():
            for site in target.sites:
                method = LowRank(rank, weight.shape)
                parametrize.register_parametrization(
                    site.module, site.attribute, method, unsafe=True
                )
    return model


def factored_bytes(model: nn.Module) -> int:
    """The file that holds the factors in place of the weights, everything else as it is."""
    tensors: dict[str, CompressedTensor] = {}
    for name, value in model.state_dict().items():
        dtype, array = to_array(value)
        tensors[name.replace("parametrizations.", "")] = Dense(tuple(value.shape), dtype, array)
    return write(CompressedModel(tensors), io.BytesIO()).file_bytes
