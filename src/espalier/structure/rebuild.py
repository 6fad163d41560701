"""A convolution in place of another: a new window, more outputs, a bias."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from espalier.errors import InvalidArgument
from espalier.structure.operations import Window
from espalier.structure.traced import Traced

REBUILDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Not classes derived from these, which may take other arguments, or do something else."""


def window_to_json(window: Window) -> dict[str, list[int]]:
    """As edits hold it; dilation is that of the convolution that is replaced."""
    plain = {name: list(values) for name, values in asdict(window).items()}
    del plain["dilation"]
    return plain


def check_window(name: str, plain: Mapping[str, Any]) -> None:
    """InvalidArgument unless ``plain`` holds a window as :func:`window_to_json` writes it."""
    for key, least in (("kernel", 1), ("stride", 1), ("padding", 0)):
        values = plain.get(key)
        if not isinstance(values, list) or not all(
            isinstance(n, int) and not isinstance(n, bool) and n >= least for n in values
        ):
            raise InvalidArgument(f"{name}: {key} {values!r} is no list of sizes")
    if len({len(plain[key]) for key in ("kernel", "stride", "padding")}) != 1:
        raise InvalidArgument(f"{name}: kernel, stride and padding are not of the same length")


def convolution(traced: Traced, name: str) -> _ConvNd:
    """The convolution called ``name``, called once; InvalidArgument otherwise."""
    module = traced.modules.get(name)
    if module is None:
        raise InvalidArgument(
            f"{name}: the model has no such layer; the edits are of another architecture"
        )
    if not isinstance(module, _ConvNd) or type(module) not in REBUILDABLE:
        raise InvalidArgument(
            f"{name}: is a {type(module).__name__}, the edit is of a convolution; the edits are of "
            "another architecture"
        )
    traced.only_call(name)
    return module


@torch.no_grad()
def rebuilt(old: _ConvNd, plain: Mapping[str, Any], before: int = 0, after: int = 0) -> _ConvNd:
    """A convolution with the window ``plain`` and outputs added before and after those of ``old``.

    Its weights are those of ``old``, in the middle of the kernel, and zero elsewhere.
    """
    outputs = before + old.out_channels + after
    new = nn.utils.skip_init(
        type(old),
        old.in_channels,
        outputs,
        tuple(plain["kernel"]),
        tuple(plain["stride"]),
        tuple(plain["padding"]),
        dilation=old.dilation,
        groups=old.groups,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    assert isinstance(new, _ConvNd)
    assert new.bias is not None
    new.weight.zero_()
    new.bias.zero_()
    place: list[slice] = [slice(before, before + old.out_channels), slice(None)]
    for wide, narrow in zip(new.kernel_size, old.kernel_size, strict=True):
        first = (wide - narrow) // 2
        place.append(slice(first, first + narrow))
    new.weight[tuple(place)] = old.weight
    if old.bias is not None:
        new.bias[place[0]] = old.bias
    new.requires_grad_(old.weight.requires_grad)
    return new.train(old.training)
