"""What stands between a parameter and its weight: looked at, put there, taken off."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from espalier.errors import InvalidArgument
from espalier.parametrization.masks import PRUNED, Mask, laid_out
from espalier.parametrization.quantized_weight import QuantizedWeight
from espalier.parametrization.rate_aware_weight import RateAwareWeight
from espalier.parametrization.shared_weight import LatentSharedWeight, SharedWeight
from espalier.targets import Target

Grid = QuantizedWeight | RateAwareWeight
Held = Mask | SharedWeight | Grid
"""What of Espalier's can stand between a parameter and the weight."""


def current(target: Target) -> Held | None:
    """Espalier's parametrization of ``target``, or None where it is a plain parameter."""
    held = target.sites[0].parametrizations
    found = held[0] if held is not None else None
    return found if isinstance(found, Held) else None


def mask_of(target: Target) -> Tensor | None:
    """The mask of ``target``, True where kept; None where nothing is pruned by a stage."""
    match current(target):
        case Mask() as held:
            return held.mask
        case SharedWeight() as held:
            return held.codes > PRUNED
        case QuantizedWeight() | RateAwareWeight() as held:
            return held.mask
        case _:
            return None


@torch.no_grad()
def set_mask(target: Target, mask: Tensor) -> Held:
    """Prune ``target`` where ``mask`` is False.

    A plain weight gets a :class:`Mask`, one that has a mask gets this one. On a shared weight the
    pruned codes become 0 and stay so: what was pruned before cannot come back.
    """
    held = current(target)
    match held:
        case Mask():
            held.mask.copy_(mask)
        case SharedWeight():
            held.codes.mul_(mask)
        case QuantizedWeight() | RateAwareWeight():
            held.mask = laid_out(mask, target.value)
        case _:
            held = Mask(laid_out(mask, target.value))
            _register(target, held)
    return held


@torch.no_grad()
def set_codes(target: Target, codes: Tensor, codebook: Tensor, *, latent: bool) -> SharedWeight:
    """Share the weights of ``target``; takes the place of a mask, whose zeros are in ``codes``."""
    if codes.shape != target.value.shape:
        raise InvalidArgument(
            f"{target.name}: codes of shape {tuple(codes.shape)} for a weight of shape "
            f"{tuple(target.value.shape)}"
        )
    codes = laid_out(codes, target.value)
    release(target)
    shared = LatentSharedWeight(codes, codebook) if latent else SharedWeight(codes)
    if not latent:
        target.latent.set_(codebook)  # type: ignore[call-overload]
        target.latent.grad = None
    _register(target, shared)
    return shared


@torch.no_grad()
def set_grid(target: Target, grid: Grid) -> None:
    """Put ``target`` on a grid, in the place of what was there; its weight becomes the latent."""
    release(target)
    _register(target, grid)


@torch.no_grad()
def release(target: Target) -> None:
    """Take Espalier's parametrization off ``target``; the weight stays what it was, bit for bit."""
    held = current(target)
    if held is None:
        return
    weight, parameter = target.value.detach().clone(), target.latent
    for site in target.sites:
        rank = parameter_rank(site.module)
        _own_class(site.module)
        parametrize.remove_parametrizations(site.module, site.attribute, leave_parametrized=False)
        own = site.module._parameters
        for name in sorted(own, key=lambda name: rank.get(name, len(rank))):
            own[name] = own.pop(name)
    parameter.set_(weight)  # type: ignore[call-overload]
    parameter.grad = None
    if isinstance(held, RateAwareWeight) and held.trains:
        parameter.requires_grad_()


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module a class of its own.

    Torch makes a class for each parametrized module, which a deep copy shares, and takes the weight
    off the class when the parametrization goes: the copy's would go with it.
    """
    cls = type(module)
    members = {k: v for k, v in vars(cls).items() if k not in ("__dict__", "__weakref__")}
    module.__class__ = type(cls.__name__, cls.__bases__, members)


def parameter_rank(module: nn.Module) -> dict[str, int]:
    """Place of each parameter in the plain module; empty where Espalier parametrized nothing."""
    held = getattr(module, "parametrizations", None)
    return {name: i for i, name in enumerate(getattr(held, "order", ()))}


def _register(target: Target, parametrization: nn.Module) -> None:
    """Put one parametrization on every site. All of them go on sharing one parameter.

    ``unsafe``: a codebook has another shape than the weight that is made from it. The order of the
    module's parameters is kept beside, for :func:`release`: optimizers and files go by it.
    """
    for site in target.sites:
        if site.parametrizations is not None:
            continue
        order = list(site.module._parameters)
        parametrize.register_parametrization(
            site.module, site.attribute, parametrization, unsafe=True
        )
        held = site.module.parametrizations
        assert isinstance(held, nn.ModuleDict)
        held.order = getattr(held, "order", order)  # type: ignore[assignment]
