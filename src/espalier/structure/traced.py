"""A network as a ``torch.fx`` graph: read, changed, and put back on the user's own module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from espalier.errors import InvalidArgument, first_line
from espalier.modes import evaluating, in_mode
from espalier.structure.operations import IDENTITY, NON_TENSOR, Step, step_of

_PLAIN, _TRAINING = "_espalier_plain_class", "training"


class Traced:
    """The graph of a model, the layers that it calls, and changes to both.

    Parameters
    ----------
    model : nn.Module
        Not changed before :meth:`commit`.

    Attributes
    ----------
    graph : fx.Graph
    modules : dict of str to nn.Module
    calls : dict of str to list of fx.Node
        Every call of each layer.

    Raises
    ------
    InvalidArgument
        The model cannot be traced.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.graph = trace(model)
        self.modules = dict(model.named_modules())
        self.calls: dict[str, list[fx.Node]] = {}
        for node in self.graph.nodes:
            if node.op == "call_module":
                self.calls.setdefault(str(node.target), []).append(node)
        self._removed: list[fx.Node] = []
        self._dropped: list[fx.Node] = []

    # ------------------------------------------------------------ reading

    def step(self, node: fx.Node) -> Step:
        """What a node does."""
        return step_of(node, self.modules)

    def only_call(self, layer: str) -> fx.Node:
        """The one call of ``layer``; InvalidArgument if there is none, or there are several."""
        calls = self.calls.get(layer, [])
        if len(calls) != 1:
            raise InvalidArgument(f"{layer}: is called {len(calls)} times, and not once")
        return calls[0]

    def run_after(self, node: fx.Node) -> list[fx.Node]:
        """The non-tensor steps behind ``node``, as long as nothing else reads what they read."""
        run: list[fx.Node] = []
        while len(node.users) == 1:
            (node,) = node.users
            if self.step(node).kind not in NON_TENSOR or len(_inputs(node)) != 1:
                break
            run.append(node)
        return run

    def source(self, node: fx.Node) -> fx.Node:
        """Where the one input of ``node`` comes from, seen through identities."""
        (before,) = _inputs(node)[:1] or [node]
        while self.step(before).kind == IDENTITY and len(before.users) == 1:
            before = _inputs(before)[0]
        return before

    def obstacle(self, layer: str) -> str:
        """Why a layer cannot be replaced by another one; empty if it can."""
        if len(self.calls.get(layer, [])) != 1:
            return f"it is called {len(self.calls.get(layer, []))} times"
        module = self.modules[layer]
        if parametrize.is_parametrized(module):
            return "it is pruned or shared already; merge before that"
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
            return "it has hooks, which a new layer would not have"
        own = set(map(id, module.parameters(recurse=False)))
        for name, other in self.model.named_modules(remove_duplicate=False):
            if name != layer and own & set(map(id, other.parameters(recurse=False))):
                return f"it shares its weight with {name}"
        return ""

    # ------------------------------------------------------------ changing

    def remove(self, nodes: Iterable[fx.Node]) -> None:
        """Leave out steps: what read their outputs reads their inputs."""
        self._removed += nodes

    def drop(self, nodes: Iterable[fx.Node]) -> None:
        """Take out steps whose outputs nothing reads any more."""
        self._dropped += nodes

    def commit(self, *, rewrite: bool = False) -> None:
        """Make the changes on the model.

        Where every removed step is a layer that is called nowhere else, an identity takes its place
        and the model's class stays; otherwise, or if ``rewrite``, the model gets a ``forward``
        written from the graph.
        """
        layers = {str(node.target) for node in self._removed if node.op == "call_module"}
        removed, dropped = set(self._removed), set(self._dropped)
        whole = all(node.op == "call_module" for node in removed) and all(
            set(self.calls[layer]) <= removed for layer in layers
        )
        if whole and not dropped and not rewrite:
            for layer in layers:
                set_module(self.model, layer, nn.Identity())
            return
        for node in reversed(list(self.graph.nodes)):
            if node in removed:
                node.replace_all_uses_with(_inputs(node)[0])
                self.graph.erase_node(node)
            elif node in dropped or (node.op == "get_attr" and not node.users):
                self.graph.erase_node(node)
        called = {str(node.target) for node in self.graph.nodes if node.op == "call_module"}
        for layer in self.calls:
            if layer not in called:
                _delete(self.model, layer)
        install(self.model, self.graph)


def _inputs(node: fx.Node) -> list[fx.Node]:
    """The tensors that ``node`` reads."""
    return [n for n in node.all_input_nodes if (n.op, n.target) != ("get_attr", _TRAINING)]


class _Tracer(fx.Tracer):
    """Also takes for one step the layers of Espalier's that say so by ``fx_leaf``."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return bool(getattr(m, "fx_leaf", False)) or super().is_leaf_module(
            m, module_qualified_name
        )


def trace(model: nn.Module) -> fx.Graph:
    """The graph of ``model``, for training and evaluation alike.

    ``torch.fx`` writes the value that ``self.training`` has while tracing into the graph, as in
    ``dropout(x, training=self.training)``; so the model is traced in both modes, and where the
    graphs differ the flag is read when they run.
    """
    try:
        with in_mode(model, training=True):
            graph = _Tracer().trace(model)
        with evaluating(model):
            evaluated = _Tracer().trace(model)
    except Exception as error:
        what = first_line(error)
        raise InvalidArgument(f"the model cannot be traced by torch.fx: {what}") from error
    nodes, others = list(graph.nodes), list(evaluated.nodes)
    if [(n.op, n.target) for n in nodes] != [(n.op, n.target) for n in others]:
        raise InvalidArgument(
            "the model cannot be traced by torch.fx: it takes other steps in training than in "
            "evaluation"
        )
    for node, other in zip(nodes, others, strict=True):
        if isinstance(
            node.type, str
        ):  # an annotation that was never evaluated; pickling fails on it
            node.type = None
        if str((node.args, node.kwargs)) != str((other.args, other.kwargs)):
            _read_mode(graph, node, other)
    return graph


def _read_mode(graph: fx.Graph, node: fx.Node, other: fx.Node) -> None:
    """Put ``self.training`` in place of what is True in training and False in evaluation."""
    with graph.inserting_before(node):
        training = graph.create_node("get_attr", _TRAINING)

    def chosen(in_training: Any, in_evaluation: Any) -> Any:
        if (in_training, in_evaluation) == (True, False):
            return training
        return in_training

    node.args = tuple(chosen(a, b) for a, b in zip(node.args, other.args, strict=True))
    node.kwargs = {name: chosen(value, other.kwargs[name]) for name, value in node.kwargs.items()}
    if training not in node.all_input_nodes:
        raise InvalidArgument(
            f"the model cannot be traced by torch.fx: {node.name} has other arguments in training "
            "than in evaluation"
        )


def install(model: nn.Module, graph: fx.Graph) -> None:
    """Make ``graph`` the ``forward`` of ``model``; its names, attributes and methods stay.

    The model gets a class of its own, derived from the one that it had, so that ``isinstance``,
    ``copy.deepcopy``, pickling and hooks go on working.
    """
    if isinstance(model, fx.GraphModule):
        model.graph = graph
        return
    plain = getattr(type(model), _PLAIN, type(model))
    model.__class__ = _class_with(plain, type(fx.GraphModule(model, graph)).forward)


def _class_with(plain: type[nn.Module], forward: Callable[..., Any]) -> type[nn.Module]:
    body = {
        "forward": forward,
        _PLAIN: plain,
        "__deepcopy__": _deepcopy,
        "__reduce_ex__": _reduce,
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
    }
    return type(plain.__name__, (plain,), body)


def _deepcopy(self: nn.Module, memo: dict[int, Any]) -> nn.Module:
    new = type(self).__new__(type(self))
    memo[id(self)] = new
    new.__dict__.update(copy.deepcopy(self.__dict__, memo))
    return new


def _reduce(self: nn.Module, _protocol: object) -> tuple[Any, ...]:
    # The class cannot be imported; a GraphModule can be pickled, and holds the same modules.
    graph = fx.GraphModule(self, trace(self))
    return _rebuild, (getattr(type(self), _PLAIN), graph), self.__dict__


def _rebuild(plain: type[nn.Module], graph: fx.GraphModule) -> nn.Module:
    made = _class_with(plain, type(graph).forward)
    return made.__new__(made)


def set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where ``name`` was."""
    head, _, tail = name.rpartition(".")
    parent = model.get_submodule(head)
    parent._modules[tail] = module


def _delete(model: nn.Module, name: str) -> None:
    """Take out a layer, and what is an empty container without it."""
    while name:
        head, _, tail = name.rpartition(".")
        parent = model.get_submodule(head)
        parent._modules.pop(tail, None)
        if parent._modules or parent._parameters or parent._buffers:
            return
        name = head


def record(
    model: nn.Module, inputs: Any, wanted: Iterable[fx.Node], graph: fx.Graph
) -> dict[fx.Node, Any]:
    """What the ``wanted`` nodes of ``graph`` give for ``inputs``."""
    return _Recorder(model, graph, set(wanted)).read(inputs)


class _Recorder(fx.Interpreter):
    def __init__(self, model: nn.Module, graph: fx.Graph, wanted: set[fx.Node]) -> None:
        super().__init__(model, garbage_collect_values=True, graph=graph)
        self.wanted, self.found = wanted, {}  # type: ignore[var-annotated]

    def read(self, inputs: Any) -> dict[fx.Node, Any]:
        """Run all nodes up to the last wanted one."""
        self.run(*(inputs if isinstance(inputs, tuple) else (inputs,)))
        return self.found

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.wanted:
            self.found[n] = value
        return value


@torch.no_grad()
def shapes(model: nn.Module, graph: fx.Graph, example: Any) -> dict[fx.Node, tuple[int, ...]]:
    """The shape of every tensor in ``graph``, in evaluation mode."""
    with evaluating(model):
        try:
            found = record(model, example, graph.nodes, graph)
        except Exception as error:
            raise InvalidArgument(
                f"the model cannot be run on the example inputs: {first_line(error)}"
            ) from error
    return {node: tuple(v.shape) for node, v in found.items() if isinstance(v, Tensor)}
