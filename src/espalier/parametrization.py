"""Masks, codebooks and grids on the user's own module, by ``torch.nn.utils.parametrize``.

The model is the state. A pruned weight is ``where(mask, latent, 0)``; a shared weight is
``codebook[codes]``, and then the parameter that the optimizer sees *is* the codebook. So zeros stay
zero under momentum and weight decay, the gradient of a centroid is the sum of the gradients of its
weights (Han et al. 2016, eq. 3) because autograd says so, and a ``state_dict`` holds everything.

===================================  =====================================================
state of a weight                    what its ``state_dict`` holds
===================================  =====================================================
pruned (:class:`Mask`)               ``original`` (dense), ``0.mask``
shared (:class:`SharedWeight`)       ``original`` (the codebook), ``0.codes``
shared, codes refreshed              ``original`` (dense), ``0.codes``, ``0.codebook``
(:class:`LatentSharedWeight`)
on a grid                            ``original`` (dense), ``0.method``, ``0.scales``,
(:class:`QuantizedWeight`)           ``0.zeros``, and ``0.mask`` if pruned
on a grid, its step in training      ``original`` (dense), ``0.log_step``,
(:class:`RateAwareWeight`)           ``0.mask`` if pruned, ``0.unit`` if its symbols are fixed
===================================  =====================================================
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from espalier.errors import EspalierError, InvalidArgument
from espalier.quantized_inputs import (
    check_layers,
    grids_in,
    remove_input_grids,
    set_input_grids,
)
from espalier.quantized_weight import QuantizedWeight
from espalier.rate_aware_weight import RateAwareWeight
from espalier.targets import Target, find_targets, unwrap

PRUNED = 0
"""The code of a pruned weight; the code of centroid i is i + 1."""


class Mask(nn.Module):
    """weight = latent where kept, +0 elsewhere.

    Parameters
    ----------
    mask : bool Tensor of the weight's shape
        True where the weight is kept.

    Notes
    -----
    ``where`` and not a product, so that pruned weights are +0 and never -0 or NaN. With
    ``straight_through`` the gradient reaches the pruned weights too, so that one that was cut in
    error can grow back before the mask is estimated again (Guo et al. 2016, arXiv 1608.04493).
    """

    espalier: ClassVar[bool] = True

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.straight_through = False

    mask: Tensor

    def forward(self, latent: Tensor) -> Tensor:
        kept = torch.where(self.mask, latent, latent.new_zeros(()))
        if self.straight_through:
            return latent + (kept - latent).detach()
        return kept

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def _channels_last(tensor: Tensor) -> bool:
    """Whether a convolution's weight or codes lie in memory with the channels last.

    By the strides: a 1x1 kernel lies both ways at once, and only they say which was meant.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return (
        tensor.dim() in formats
        and (tensor.stride(1), tensor.stride(-1)) == (1, tensor.shape[1])
        and tensor.is_contiguous(memory_format=formats[tensor.dim()])
    )


def _laid_out(field: Tensor, weight: Tensor) -> Tensor:
    """``field`` in the memory format of ``weight``: results inherit it, and with it their speed."""
    return torch.empty_like(weight, dtype=field.dtype).copy_(field)


def codes_dtype(k: int) -> torch.dtype:
    """The narrowest dtype that holds the codes 0 (pruned) to ``k``, and that gloo broadcasts."""
    return torch.uint8 if k <= 255 else torch.int32


class SharedWeight(nn.Module):
    """weight = codebook[codes - 1] where codes > 0, +0 elsewhere (Han et al. 2016, section 3).

    Parameters
    ----------
    codes : integer Tensor of the weight's shape
        0 where the weight is pruned, i + 1 where it shares centroid i.
    """

    espalier: ClassVar[bool] = True

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codes)

    codes: Tensor

    def forward(self, codebook: Tensor) -> Tensor:
        table = torch.cat([codebook.new_zeros(1), codebook])
        codes = self.codes.movedim(1, -1) if _channels_last(self.codes) else self.codes
        weight = table.index_select(0, codes.flatten().int()).view(codes.shape)
        return weight.movedim(-1, 1) if codes is not self.codes else weight

    def centroids(self, original: Tensor) -> Tensor:
        """The codebook, given the parameter that stands before this parametrization."""
        return original


class LatentSharedWeight(SharedWeight):
    """A shared weight over a dense latent one, so that its codes can be assigned again.

    weight = codebook[codes - 1]; the codebook gets the sum of the gradients, and the latent weight
    gets each of them straight through. :meth:`refresh` assigns every kept weight to the centroid
    that is nearest to its latent value.
    """

    def __init__(self, codes: Tensor, codebook: Tensor) -> None:
        super().__init__(codes)
        self.codebook = nn.Parameter(codebook)

    def forward(self, latent: Tensor) -> Tensor:
        shared = super().forward(self.codebook)
        through = torch.where(self.codes > PRUNED, latent - latent.detach(), latent.new_zeros(()))
        return shared + through

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def centroids(self, original: Tensor) -> Tensor:
        return self.codebook

    @torch.no_grad()
    def refresh(self, latent: Tensor) -> int:
        """Assign the kept weights to their nearest centroids; return how many changed."""
        order = torch.argsort(self.codebook)
        rising = self.codebook[order]
        nearest = order[torch.bucketize(latent, (rising[1:] + rising[:-1]) / 2)] + 1
        codes = torch.where(self.codes > PRUNED, nearest.to(self.codes.dtype), self.codes)
        changed = int((codes != self.codes).sum())
        self.codes.copy_(codes)
        return changed


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
            held.mask = _laid_out(mask, target.value)
        case _:
            held = Mask(_laid_out(mask, target.value))
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
    codes = _laid_out(codes, target.value)
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


def attach(model: nn.Module, state_dict: dict[str, Any], *, strict: bool = True) -> nn.Module:
    """Put the masks and codebooks of a checkpoint onto a freshly built model, and load it.

    Parameters
    ----------
    model : nn.Module
        Built as the original was; changed in place.
    state_dict : dict
        What ``state_dict()`` of a pruned or shared model gave; of the plain module, not of one
        that is wrapped for distributed training.
    strict : bool
        As in ``Module.load_state_dict``.

    Returns
    -------
    nn.Module
        ``model``.

    Raises
    ------
    InvalidArgument
        The checkpoint has a mask or codes for a weight that the model has not, or of another
        shape; the model is then as it was.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Linear(4, 2)
    >>> _ = espalier.prune(model, density=0.5)
    >>> fresh = espalier.attach(torch.nn.Linear(4, 2), model.state_dict())
    >>> bool((fresh.weight == model.weight).all())
    True
    """
    targets = {name: target for target in find_targets(model) for name in target.names}
    wanted = {
        name: parts
        for name, parts in _parametrized_names(state_dict).items()
        if {"0.mask", "0.codes", "0.method", "0.log_step"} & set(parts)
    }
    made = {name: _made(name, parts, targets) for name, parts in wanted.items()}
    grids = grids_in(state_dict)
    check_layers(model, grids)
    for target in targets.values():
        held = [name for name in target.names if name in wanted]
        if held and current(target) is None:
            _attach_one(target, wanted[held[0]], made[held[0]])
    set_input_grids(model, grids)
    unwrap(model).load_state_dict(state_dict, strict=strict)
    return model


def _made(name: str, parts: dict[str, Tensor], targets: dict[str, Target]) -> Grid | None:
    """The grid of a checkpoint's weight, if it has one; refuses what does not fit the model."""
    if name not in targets:
        raise InvalidArgument(f"the checkpoint has {name}, parametrized; the model has no such")
    target, on_grid = targets[name], {"0.method", "0.log_step"} & set(parts)
    fields = ("original",) if on_grid else ("0.mask", "0.codes")
    shape = next((tuple(parts[field].shape) for field in fields if field in parts), ())
    if shape != target.value.shape:
        raise InvalidArgument(
            f"{name}: the checkpoint's shape {shape} is not the model's {tuple(target.value.shape)}"
        )
    if not on_grid:
        return None
    if "0.log_step" in parts:
        return RateAwareWeight(1.0, target.latent, parts.get("0.mask"))
    own = {part.removeprefix("0."): value for part, value in parts.items()}
    try:
        return QuantizedWeight.like(own, target.value.shape, target.latent.device)
    except (EspalierError, KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(f"{name}: its grid cannot be read: {error}") from None


def _parametrized_names(state_dict: dict[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Plain name -> what the checkpoint holds of its parametrization."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in state_dict.items():
        head, mark, tail = key.rpartition("parametrizations.")
        if mark and (not head or head.endswith(".")):
            attribute, _, part = tail.partition(".")
            found.setdefault(head + attribute, {})[part] = value
    return found


def _attach_one(target: Target, parts: dict[str, Tensor], made: Grid | None) -> None:
    original = parts.get("original")
    if made is not None:
        set_grid(target, made)
    elif "0.mask" in parts:
        set_mask(target, torch.ones_like(target.value, dtype=torch.bool))
    elif "0.codes" in parts and original is not None:
        device, dtype = target.latent.device, target.latent.dtype
        codes = torch.zeros_like(parts["0.codes"], device=device)
        latent = "0.codebook" in parts
        like = parts["0.codebook"] if latent else original
        codebook = torch.zeros(like.shape, device=device, dtype=dtype)
        set_codes(target, codes, codebook, latent=latent)


def finalize(model: nn.Module) -> nn.Module:
    """Leave a plain module: every weight becomes an ordinary dense parameter, bit for bit the same.

    Nothing of Espalier is left on ``model``, which is changed in place and returned.
    Parametrizations that are not Espalier's stay.
    """
    for target in find_targets(model):
        release(target)
    remove_input_grids(model)
    return model
