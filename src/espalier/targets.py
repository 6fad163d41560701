"""What can be compressed in a module: its parameters, each once, with every place that holds it.

Tied weights are one :class:`Target` with several :class:`Site` values, so that no stage handles
them twice and none unties them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize

from espalier.errors import InvalidArgument
from espalier.options import Lookup

V = TypeVar("V")

PARAMETRIZATIONS = "parametrizations"
_WILDCARDS = frozenset("*?[")


@dataclass(frozen=True)
class Site:
    """One place that holds a parameter: ``getattr(module, attribute)``."""

    module: nn.Module
    attribute: str

    @property
    def parametrizations(self) -> parametrize.ParametrizationList | None:
        """The parametrizations that stand between the parameter and the weight, if any."""
        if not parametrize.is_parametrized(self.module, self.attribute):
            return None
        found = self.module.parametrizations[self.attribute]  # type: ignore[index]
        assert isinstance(found, parametrize.ParametrizationList)
        return found


@dataclass(frozen=True)
class Target:
    """A parameter that a method can be applied to.

    Attributes
    ----------
    names : tuple of str
        Its names in a plain ``state_dict``, the first one counts: ``("fc1.weight",)``.
    kind : str
        ``"linear"``, ``"conv"``, ``"embedding"`` or ``"other"``.
    sites : tuple of Site
        Every module that holds it.
    obstacle : str
        Why no method can be applied to it; empty if one can.
    """

    names: tuple[str, ...]
    kind: str
    sites: tuple[Site, ...]
    obstacle: str = ""

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def by_default(self) -> bool:
        """Whether a method takes it without being asked for it by name."""
        return self.kind != "other"

    @property
    def answers_to(self) -> tuple[str, ...]:
        """Its names, and for a layer's weight the layer's name: ``("fc1", "fc1.weight")``."""
        layers = tuple(n.rpartition(".")[0] for n in self.names) if self.by_default else ()
        return tuple(layer for layer in layers if layer) + self.names

    @property
    def value(self) -> Tensor:
        """The weight as the forward pass sees it."""
        site = self.sites[0]
        weight = getattr(site.module, site.attribute)
        assert isinstance(weight, Tensor)
        return weight

    @property
    def latent(self) -> nn.Parameter:
        """The parameter that the optimizer sees: behind a mask, the weight before it."""
        site = self.sites[0]
        held = site.parametrizations
        found = getattr(site.module, site.attribute) if held is None else held.original
        assert isinstance(found, nn.Parameter)
        return found


def _kind(module: nn.Module, attribute: str) -> str:
    match module:
        case nn.Embedding() | nn.EmbeddingBag() if attribute == "weight":
            return "embedding"
        case nn.Linear() | nn.Bilinear() if attribute == "weight":
            return "linear"
        case _ConvNd() if attribute == "weight":
            return "conv"
        case nn.MultiheadAttention() if attribute.endswith("proj_weight"):
            return "linear"
        case nn.RNNBase() | nn.RNNCellBase() if attribute.startswith("weight"):
            return "linear"
    return "other"


def _obstacle(module: nn.Module, attribute: str, parameter: nn.Parameter | None) -> str:
    if parameter is None:
        return "its parametrization has several parameters, as weight_norm's has"
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        return "it is not initialised yet: run one batch through the model first"
    if parameter.is_meta:
        return "it is on the meta device, where it has no values"
    if isinstance(module, nn.RNNBase):
        return f"{type(module).__name__} keeps its weights in a flat list of its own"
    if not parameter.is_floating_point():
        return f"it is {str(parameter.dtype).removeprefix('torch.')}, not floating point"
    held = Site(module, attribute).parametrizations
    foreign = [type(p).__name__ for p in held or () if not getattr(p, "espalier", False)]
    if foreign:
        return f"it is parametrized by {', '.join(foreign)}: remove that first"
    return ""


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter | None]]:
    """Every (plain name, module, attribute, parameter); shared modules under each name."""
    for path, module in model.named_modules(remove_duplicate=False):
        if PARAMETRIZATIONS in path.split("."):
            continue
        prefix = f"{path}." if path else ""
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + attribute, module, attribute, parameter
        if parametrize.is_parametrized(module):
            for attribute, held in module.parametrizations.items():
                yield prefix + attribute, module, attribute, getattr(held, "original", None)


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module under ``torch.compile`` and (Distributed)DataParallel.

    Names are those of the plain module everywhere, so that a file that a wrapped model wrote loads
    into one that is not.
    """
    while True:
        # By name, since importing the class would load the whole compiler.
        compiled = model._modules.get("_orig_mod")
        if compiled is not None:
            model = compiled
        elif isinstance(model, nn.DataParallel | DistributedDataParallel):
            model = model.module
        else:
            return model


def find_targets(model: nn.Module) -> list[Target]:
    """All parameters of ``model``, in the order of its ``state_dict``, tied ones once."""
    model = unwrap(model)
    groups: dict[int, list[tuple[str, nn.Module, str, nn.Parameter | None]]] = {}
    for name, module, attribute, parameter in _parameters(model):
        key = id(parameter) if parameter is not None else id(module)
        groups.setdefault(key, []).append((name, module, attribute, parameter))
    targets = []
    for found in groups.values():
        kinds = [_kind(module, attribute) for _, module, attribute, _ in found]
        kind = next((k for k in kinds if k != "other"), "other")
        sites = dict.fromkeys((id(m), a) for _, m, a, _ in found)
        modules = {id(m): m for _, m, _, _ in found}
        obstacles = [_obstacle(m, a, p) for _, m, a, p in found]
        targets.append(
            Target(
                names=tuple(name for name, *_ in found),
                kind=kind,
                sites=tuple(Site(modules[i], a) for i, a in sites),
                obstacle=next((o for o in obstacles if o), ""),
            )
        )
    return targets


def _asked_for(target: Target, keys: Sequence[str]) -> bool:
    """Whether a bias, a norm's scale or the like is meant by one of the patterns.

    ``fc1*`` means the layer's weight. Anything else has to be named: literally, or by a pattern
    that ends in the parameter's own name, as ``*.bias`` does. ``*.weight`` does not ask for the
    scales of batch norms.
    """
    for name in target.names:
        attribute = name.rpartition(".")[2]
        for key in keys:
            last = key.rpartition(".")[2]
            literal = not _WILDCARDS & set(key)
            if key == name if literal else last == attribute != "weight" and fnmatchcase(name, key):
                return True
    return False


@dataclass(frozen=True)
class Skipped:
    """A layer that a method left alone, and why."""

    name: str
    reason: str


def select(model: nn.Module, lookup: Lookup[V]) -> tuple[list[tuple[Target, V]], list[Skipped]]:
    """The targets that ``lookup`` has a value for, with their values; and the rest, with reasons.

    Raises
    ------
    InvalidArgument
        A key matches nothing, or nothing at all is left, or a weight asked for by name cannot be
        compressed.
    """
    keys = [key for key in lookup.entries if key != "*"]
    targets = [t for t in find_targets(model) if t.by_default or _asked_for(t, keys)]
    chosen: list[tuple[Target, V]] = []
    skipped: list[Skipped] = []
    values = lookup.resolve([(t.answers_to, t.kind) for t in targets])
    for target, value in zip(targets, values, strict=True):
        if value is None:
            skipped.append(Skipped(target.name, f"no {lookup.what} is set for it"))
        elif target.obstacle:
            skipped.append(Skipped(target.name, target.obstacle))
        else:
            chosen.append((target, value))
    if not chosen:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in skipped) or "it has no such layer"
        raise InvalidArgument(f"{lookup.what}: nothing in the model can be compressed ({reasons})")
    return chosen, skipped


def refuse_nonfinite(target: Target, values: Tensor) -> None:
    """Raise :class:`InvalidArgument`, naming the tensor, if a value is NaN or infinite."""
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise InvalidArgument(f"{target.name} holds {bad} values that are NaN or infinite")


__all__ = ["Site", "Skipped", "Target", "find_targets", "refuse_nonfinite", "select", "unwrap"]
