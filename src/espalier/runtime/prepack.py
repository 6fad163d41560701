"""Dense convolutions of a network laid out once, where the whole of it is faster for that."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from espalier.errors import InvalidArgument
from espalier.runtime.candidates import Inputs, gain, repeated
from espalier.runtime.dense_convolution import (
    PREPACKED,
    RELU,
    Activation,
    PrepackedConv,
    obstacle,
)
from espalier.runtime.inference_layer import DENSE
from espalier.runtime.report import BatchForm, PrepackedRow
from espalier.structure.operations import RELU as RELU_STEP
from espalier.structure.traced import Traced, set_module
from espalier.timing import Clock, compare

_REPEATS, _WARMUP, _SECONDS = 15, 1, 2.0
_WORTH_IT = 1.03
_WORTH_ITS_MEMORY = 1.1
"""How much faster than packed weights dense ones must be, of all layers together."""
_CLOSE = 1e-3
"""By how much of its largest value an output may differ: the order of additions is another."""

Layers = dict[tuple[str, ...], PrepackedConv]
"""By the names of the convolution in whose place it comes."""


def twin(model: nn.Module) -> nn.Module:
    """The same modules anew, over the same tensors."""
    held = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model, {id(tensor): tensor for tensor in held})


@dataclass(frozen=True)
class Laid:
    """Layers that were laid out, by the names of what they stand for, and how they compute."""

    layers: Layers = field(default_factory=dict)
    forms: tuple[BatchForm, ...] = ()

    @property
    def gain(self) -> float:
        """How many times as fast the network is, over all batch sizes."""
        return prod(one.gain for one in self.forms)

    def rows(self) -> tuple[PrepackedRow, ...]:
        """As the report has them."""
        return tuple(
            PrepackedRow(
                names[0],
                tuple(layer.shape),
                layer.after.name if layer.after else "",
                layer.weight_bytes,
            )
            for names, layer in self.layers.items()
        )


def lay_out(
    model: nn.Module,
    sparse: Mapping[tuple[str, ...], nn.Module],
    inputs: tuple[Any, ...],
    batches: Sequence[int],
    shapes: Inputs,
    prefer: str,
) -> Laid:
    """Put :class:`PrepackedConv` in place of dense convolutions, activations included.

    ``sparse``: the dense layers whose place packed ones have taken. Of the dense convolutions, all
    or none; and of the packed ones, all or none go back to be laid out too. What is timed is the
    whole network, since a weight is read from memory there, and from the cache where its layer runs
    alone. Nothing is done where that is not faster, where it fails or its outputs differ, or where
    PyTorch was built without oneDNN.
    """
    dense = _layers(_convolutions(model), shapes, min(batches))
    found = _tried(model, dense, inputs, batches, prefer)
    if prefer == "time":
        instead = _layers(sparse, shapes, min(batches))
        everywhere = _tried(model, instead | dense, inputs, batches, prefer) if instead else Laid()
        if everywhere.gain > _WORTH_ITS_MEMORY * found.gain:
            found = everywhere
    if not found.layers:
        return found
    for names, layer in found.layers.items():
        layer.choice = {
            layer.places(shapes[names[0]][form.batch]): form.form for form in found.forms
        }
        layer.drop_unused()
    _place(model, found.layers)
    return found


def _convolutions(model: nn.Module) -> dict[tuple[str, ...], nn.Module]:
    """Those that share their weight with no other module, by all of their names."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    holders = Counter(id(p) for m in names for p in m.parameters(recurse=False))
    return {
        tuple(called): module
        for module, called in names.items()
        if "" not in called
        and isinstance(module, nn.Conv2d)
        and all(holders[id(p)] == 1 for p in module.parameters(recurse=False))
    }


def _layers(modules: Mapping[tuple[str, ...], nn.Module], shapes: Inputs, batch: int) -> Layers:
    """A layer to come for each module that can be laid out.

    oneDNN's order depends on the batch size. It counts most at the smallest, where the weight is
    read for the fewest outputs; at others it is brought about at each call, as PyTorch does.
    """
    found: Layers = {}
    for names, module in modules.items():
        if names[0] not in shapes or obstacle(module):
            continue
        assert isinstance(module, nn.Conv2d)
        try:
            found[names] = PrepackedConv(module, shapes[names[0]][batch])
        except (AttributeError, RuntimeError):  # no oneDNN in this build, or none for this machine
            return {}
    return found


def _tried(
    model: nn.Module, layers: Layers, inputs: tuple[Any, ...], batches: Sequence[int], prefer: str
) -> Laid:
    """The layers and their forms, if they make the network faster; the model stays as it is."""
    if not layers:
        return Laid()
    trial = twin(model)
    _place(trial, layers)
    forms = []
    for n in batches:
        form = _form(model, trial, repeated(inputs, n), n)
        if form is None:
            return Laid()
        forms.append(form)
    made = {form.form for form in forms}
    if made == {DENSE} or (prefer == "memory" and DENSE in made):
        return Laid()
    return Laid(layers, tuple(forms))


def _place(model: nn.Module, layers: Layers) -> None:
    """Put the layers into ``model``, and take out the activations that they compute."""
    traced = _traced(model)
    for names, layer in layers.items():
        for name in names:
            set_module(model, name, layer)
    if traced is None:
        return
    by_name = {name: layer for names, layer in layers.items() for name in names}
    for node in traced.graph.nodes:
        after = _activation(traced, node)
        source = traced.source(node) if after else node
        made = by_name.get(str(source.target)) if source.op == "call_module" else None
        if after and made and len(source.users) == len(traced.calls[str(source.target)]) == 1:
            made.after = after
            traced.remove([node])
    traced.commit()


def _traced(model: nn.Module) -> Traced | None:
    """The graph of ``model``; None where there is none, or hooks would go with its containers."""
    for module in model.modules():
        hooks = module._forward_hooks or module._forward_pre_hooks
        if hooks and module is not model and next(module.children(), None) is not None:
            return None
    try:
        return Traced(model)
    except InvalidArgument:
        return None


def _activation(traced: Traced, node: fx.Node) -> Activation | None:
    if node.op == "call_module":
        module = traced.modules[str(node.target)]
        hooked = module._forward_hooks or module._forward_pre_hooks
        return None if hooked else Activation.of(module)
    return RELU if traced.step(node).kind == RELU_STEP else None


def _form(
    model: nn.Module, trial: nn.Module, inputs: tuple[Any, ...], batch: int
) -> BatchForm | None:
    """Which is faster at a batch size; None if the two do not give the same."""
    try:
        if not _agree(trial(*inputs), model(*inputs)):
            return None
    except RuntimeError:  # such as a view of what lies in another order now
        return None
    found = compare(
        lambda: model(*inputs),
        lambda: trial(*inputs),
        Clock(),
        repeats=_REPEATS,
        warmup=_WARMUP,
        seconds=_SECONDS,
    )
    gained = gain(found)
    faster = gained > _WORTH_IT
    return BatchForm(batch, PREPACKED if faster else DENSE, gained if faster else 1.0)


def _agree(found: Any, want: Any) -> bool:
    """Whether two outputs, tensors or containers of such, are equal but for rounding."""
    if isinstance(want, Tensor):
        if not want.is_floating_point() or not want.numel():
            return torch.equal(found, want)
        return bool((found - want).abs().max() <= _CLOSE * want.abs().max())
    if isinstance(want, Mapping):
        return all(_agree(found[key], want[key]) for key in want)
    if isinstance(want, list | tuple):
        return len(found) == len(want) and all(map(_agree, found, want))
    return True
