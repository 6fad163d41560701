"""What the steps of a traced network are: modules, functions and methods under common names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

CONVOLUTION, LINEAR, BATCH_NORM, LRN, RELU, DROPOUT, IDENTITY, MAX_POOL, AVERAGE_POOL = (
    "convolution",
    "linear",
    "batch_norm",
    "lrn",
    "relu",
    "dropout",
    "identity",
    "max_pool",
    "average_pool",
)
POOLS = (MAX_POOL, AVERAGE_POOL)
NON_TENSOR = (BATCH_NORM, LRN, RELU, DROPOUT, IDENTITY, *POOLS)
"""What a streamline-merged convolution can take over."""

_MODULES: tuple[tuple[type[nn.Module], str], ...] = (
    (_ConvTransposeNd, ""),
    (_ConvNd, CONVOLUTION),
    (nn.Linear, LINEAR),
    (_BatchNorm, BATCH_NORM),
    (nn.LocalResponseNorm, LRN),
    (nn.CrossMapLRN2d, LRN),
    (nn.ReLU, RELU),
    (_DropoutNd, DROPOUT),
    (nn.Identity, IDENTITY),
    (_MaxPoolNd, MAX_POOL),
    (_AvgPoolNd, AVERAGE_POOL),
    (nn.AvgPool1d, AVERAGE_POOL),
)
_FUNCTIONS: dict[Any, str] = {
    functional.local_response_norm: LRN,
    functional.relu: RELU,
    functional.relu_: RELU,
    torch.relu: RELU,
    torch.relu_: RELU,
    functional.dropout: DROPOUT,
    functional.dropout1d: DROPOUT,
    functional.dropout2d: DROPOUT,
    functional.dropout3d: DROPOUT,
    functional.alpha_dropout: DROPOUT,
    functional.feature_alpha_dropout: DROPOUT,
    torch.dropout: DROPOUT,
    functional.max_pool1d: MAX_POOL,
    functional.max_pool2d: MAX_POOL,
    functional.max_pool3d: MAX_POOL,
    torch.max_pool1d: MAX_POOL,
    torch.max_pool2d: MAX_POOL,
    torch.max_pool3d: MAX_POOL,
    functional.avg_pool1d: AVERAGE_POOL,
    functional.avg_pool2d: AVERAGE_POOL,
    functional.avg_pool3d: AVERAGE_POOL,
}
_METHODS = {"relu": RELU, "relu_": RELU}
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)
_POOL_ARGUMENTS = {
    MAX_POOL: ("kernel_size", "stride", "padding", "dilation"),
    AVERAGE_POOL: ("kernel_size", "stride", "padding"),
}


@dataclass(frozen=True)
class Window:
    """What one output of a convolution or pooling sees along each axis."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    def __str__(self) -> str:
        sides = (("", self.kernel), ("/", self.stride), ("+", self.padding))
        text = "".join(mark + "x".join(map(str, values)) for mark, values in sides)
        return text + ("" if set(self.dilation) == {1} else "*" + "x".join(map(str, self.dilation)))


@dataclass(frozen=True)
class Step:
    """One node of a graph: its kind (empty: any other), the layer called, and its window."""

    kind: str
    layer: str = ""
    window: Window | None = None

    def __str__(self) -> str:
        """As edits write it: ``"relu"``, ``"max_pool 3x3/2x2+0x0"``, ``"convolution conv1"``."""
        detail = self.layer if self.kind in (CONVOLUTION, LINEAR, BATCH_NORM) else self.window
        return f"{self.kind} {detail}" if detail else self.kind


def step_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> Step:
    """What ``node`` does.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2))
    >>> modules = dict(model.named_modules())
    >>> [str(step_of(n, modules)) for n in fx.symbolic_trace(model).graph.nodes]
    ['', 'convolution 0', 'relu', 'max_pool 2x2/2x2+0x0', '']
    """
    if node.op == "call_module":
        return _step_of_module(str(node.target), modules[str(node.target)])
    if node.op not in ("call_function", "call_method"):
        return Step("")
    if node.op == "call_method":
        return Step(_METHODS.get(str(node.target), ""))
    kind = _FUNCTIONS.get(node.target, "")
    if kind not in POOLS:
        return Step(kind)
    names = _POOL_ARGUMENTS[kind]
    given: dict[str, Any] = dict(zip(names, node.args[1:], strict=False))
    given |= {name: value for name, value in node.kwargs.items() if name in names}
    if node.kwargs.get("return_indices"):
        return Step("")  # gives a pair
    return Step(kind, window=_pool_window(given, _axes(getattr(node.target, "__name__", ""))))


def _step_of_module(layer: str, module: nn.Module) -> Step:
    kind = next((kind for base, kind in _MODULES if isinstance(module, base)), "")
    if kind == CONVOLUTION:
        assert isinstance(module, _ConvNd)
        return Step(kind, layer, convolution_window(module))
    if kind not in POOLS:
        return Step(kind, layer)
    if getattr(module, "return_indices", False):
        return Step("", layer)
    given = {name: getattr(module, name) for name in _POOL_ARGUMENTS[kind]}
    return Step(kind, layer, _pool_window(given, _axes(type(module).__name__)))


def _axes(name: str) -> int:
    """How many axes a pooling has, by its name: ``max_pool2d``."""
    found = re.search(r"([123])d$", name.lower())
    return int(found[1]) if found else 2


def _pool_window(given: Mapping[str, Any], dimensions: int) -> Window:
    def axes(value: Any) -> tuple[int, ...]:
        return (value,) * dimensions if isinstance(value, int) else tuple(value)

    kernel = axes(given["kernel_size"])
    stride = given.get("stride")
    return Window(
        kernel,
        axes(kernel if stride is None or stride == [] else stride),
        axes(given.get("padding", 0)),
        axes(given.get("dilation", 1)),
    )


def convolution_window(module: _ConvNd) -> Window:
    """The window of a convolution; ``padding="same"`` as what is added in front."""
    dilation, kernel = module.dilation, module.kernel_size
    if isinstance(module.padding, str):
        same = module.padding == "same"
        padding = tuple(d * (k - 1) // 2 * same for d, k in zip(dilation, kernel, strict=True))
    else:
        padding = module.padding
    return Window(tuple(kernel), tuple(module.stride), tuple(padding), tuple(dilation))


def concatenated(node: fx.Node) -> list[fx.Node]:
    """The nodes whose channels ``node`` concatenates; none if it does something else."""
    if node.op != "call_function" or node.target not in _CONCATENATIONS:
        return []
    names = ("tensors", "dim")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    parts = given.get("tensors", ())
    axis = given.get("dim", given.get("axis", 0))
    if axis not in (1, -3) or not isinstance(parts, list | tuple):
        return []
    return [part for part in parts if isinstance(part, fx.Node)]
