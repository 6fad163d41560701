"""The operations of a forward pass: as ``torch.fx`` traces them, or as PyTorch dispatches them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from espalier.errors import InvalidArgument

_NAMES = {
    "adaptiveavgpool": "adaptive_avg_pool",
    "adaptivemaxpool": "adaptive_max_pool",
    "addmm": "linear",
    "avgpool": "avg_pool",
    "batchnorm": "batch_norm",
    "cat": "concat",
    "concatenate": "concat",
    "convolution": "conv",
    "crossmaplrn": "local_response_norm",
    "dropoutnd": "dropout",
    "groupnorm": "group_norm",
    "iadd": "add",
    "layernorm": "layer_norm",
    "localresponsenorm": "local_response_norm",
    "maxpool": "max_pool",
    "native_batch_norm": "batch_norm",
    "native_layer_norm": "layer_norm",
}
"""One name for what a module, a function and an operator call differently; without dimensions."""


@dataclass(frozen=True)
class Operation:
    """One step of a forward pass.

    ``weights``: parameters and buffers that it reads. ``macs``: multiply-accumulates.
    ``output_bytes``: of the tensors that it gives.
    """

    layer: str
    name: str
    weights: tuple[Tensor, ...]
    macs: int
    output_bytes: int


class Operations(ABC):
    """The operations of one forward pass on fixed inputs, to be run any number of times."""

    found: list[Operation]

    @abstractmethod
    def marks(self, mark: Callable[[], Any]) -> list[tuple[Any, Any]]:
        """Run all, with ``mark()`` before and after each."""


def operation_name(name: str) -> str:
    """The common name of an operation.

    Examples
    --------
    >>> operation_name("MaxPool2d"), operation_name("max_pool2d"), operation_name("relu_")
    ('max_pool2d', 'max_pool2d', 'relu')
    """
    name = name.lower().strip("_").removesuffix("_legit_no_training")
    match = re.fullmatch(r"(.*?)_?([123]d)?(?:_with_indices)?", name)
    assert match is not None  # every part of the pattern may be empty
    common = _NAMES.get(match[1], match[1])
    return common if common.endswith("norm") else common + (match[2] or "")


# ---------------------------------------------------------------- torch.fx


class TracedOperations(Operations):
    """The nodes of a traced graph that compute something."""

    def __init__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> None:
        self.module, self.inputs = module, inputs
        self.modules = dict(module.named_modules())
        self.nodes = list(module.graph.nodes)
        last: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:
            for used in node.all_input_nodes:
                last[used] = node
        self.freed: dict[fx.Node, list[fx.Node]] = {}
        for used, node in last.items():
            self.freed.setdefault(node, []).append(used)
        self.found = list(self._describe())

    def _describe(self) -> Iterator[Operation]:
        values: dict[fx.Node, Any] = {}
        given = iter(self.inputs)
        for node in self.nodes:
            if node.op in ("placeholder", "get_attr"):
                values[node] = self._given(node, given)
            elif node.op != "output":
                values[node], macs = _counted(self._bind(node, values))
                layer, name, weights = self._identity(node)
                yield Operation(layer, name, weights, macs, _bytes(values[node]))
            for dead in self.freed.get(node, ()):
                del values[dead]

    def marks(self, mark: Callable[[], Any]) -> list[tuple[Any, Any]]:
        values: dict[fx.Node, Any] = {}
        given = iter(self.inputs)
        found = []
        for node in self.nodes:
            if node.op in ("placeholder", "get_attr"):
                values[node] = self._given(node, given)
            elif node.op != "output":
                run, dead = self._bind(node, values), self.freed.get(node, ())
                start = mark()
                values[node] = run()
                run = _nothing  # it holds the arguments, which are freed as the model frees them
                for used in dead:
                    del values[used]
                found.append((start, mark()))
        return found

    def _given(self, node: fx.Node, given: Iterator[Any]) -> Any:
        if node.op == "get_attr":
            return _attribute(self.module, str(node.target))
        return next(given, node.args[0] if node.args else None)

    def _bind(self, node: fx.Node, values: dict[fx.Node, Any]) -> Callable[[], Any]:
        """The operation on its arguments, which are looked up before the clock runs."""
        args = fx.node.map_arg(node.args, values.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
        if node.op == "call_method":
            target = getattr(type(args[0]), str(node.target), None) or getattr(
                args[0], str(node.target)
            )
        else:
            target = self.modules[node.target] if node.op == "call_module" else node.target
        return lambda: target(*args, **kwargs)

    def _identity(self, node: fx.Node) -> tuple[str, str, tuple[Tensor, ...]]:
        """Layer, operation and weights of a node."""
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            weights = (*module.parameters(), *module.buffers())
            return str(node.target), operation_name(_class_name(module)), weights
        target = node.target if isinstance(node.target, str) else node.target.__name__
        stack = list(node.meta.get("nn_module_stack", {}).values())
        within = str(stack[-1][0]) if stack else ""
        weights = tuple(
            _attribute(self.module, str(used.target))
            for used in node.all_input_nodes
            if used.op == "get_attr"
        )
        layer = f"{within}/{node.name}" if within else node.name
        tensors = tuple(w for w in weights if isinstance(w, Tensor))
        return layer, operation_name(target), tensors


def _nothing() -> None:
    return None


def _counted(run: Callable[[], Any]) -> tuple[Any, int]:
    """What ``run`` gives, and the multiply-accumulates that it took."""
    with FlopCounterMode(display=False) as counter:
        given = run()
    return given, counter.get_total_flops() // 2


def _bytes(value: Any) -> int:
    """Bytes of the tensors in a result."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, list | tuple):
        return sum(map(_bytes, value))
    return sum(map(_bytes, value.values())) if isinstance(value, dict) else 0


def _attribute(module: nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _class_name(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("Parametrized")


def traced_operations(model: nn.Module, inputs: Sequence[Any]) -> Operations:
    """Trace ``model``; whatever tracing or a first run of the graph raises goes to the caller."""
    return TracedOperations(fx.symbolic_trace(model), inputs)


# ---------------------------------------------------------------- TorchDispatchMode


class _Dispatched(TorchDispatchMode):
    """Lets ``step`` run every operator that PyTorch dispatches."""

    def __init__(self, step: Callable[[Any, Callable[[], Any]], Any]) -> None:
        super().__init__()
        self.step = step

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.step(func, lambda: func(*args, **(kwargs or {})))


class DispatchedOperations(Operations):
    """The operators of a model that cannot be traced, each under the module that calls it."""

    def __init__(self, model: nn.Module, inputs: Sequence[Any]) -> None:
        self.model, self.inputs = model, inputs
        self.found = []
        paths = {module: path for path, module in model.named_modules()}
        stack: list[nn.Module] = []
        counts: dict[str, int] = {}

        def step(func: Any, run: Callable[[], Any]) -> Any:
            module = stack[-1] if stack else model
            own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
            name = operation_name(func.__name__.partition(".")[0])
            layer = f"{paths.get(module, '')}/{name}".strip("/")
            counts[layer] = counts.get(layer, 0) + 1
            layer += f"_{counts[layer] - 1}" if counts[layer] > 1 else ""
            given, macs = _counted(run)
            self.found.append(Operation(layer, name, own, macs, _bytes(given)))
            return given

        hooks = [m.register_forward_pre_hook(lambda m, _: stack.append(m)) for m in model.modules()]
        hooks += [m.register_forward_hook(lambda *_: stack.pop() and None) for m in model.modules()]
        try:
            with _Dispatched(step):
                model(*inputs)
        finally:
            for hook in hooks:
                hook.remove()

    def marks(self, mark: Callable[[], Any]) -> list[tuple[Any, Any]]:
        found: list[tuple[Any, Any]] = []

        def step(_func: Any, run: Callable[[], Any]) -> Any:
            start = mark()
            given = run()
            found.append((start, mark()))
            return given

        with _Dispatched(step):
            self.model(*self.inputs)
        if len(found) != len(self.found):
            raise InvalidArgument(
                f"the model runs {len(found)} operators in one pass and {len(self.found)} in "
                "another: it cannot be profiled"
            )
        return found


def dispatched_operations(model: nn.Module, inputs: Sequence[Any]) -> Operations:
    """Run ``model`` once, and see which operators it dispatches."""
    return DispatchedOperations(model, inputs)
