"""A checkpoint's masks, codebooks and grids on a fresh model; and all of them off again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import EspalierError, InvalidArgument
from espalier.parametrization.held import (
    Grid,
    current,
    release,
    set_codes,
    set_grid,
    set_mask,
)
from espalier.parametrization.quantized_weight import QuantizedWeight
from espalier.parametrization.rate_aware_weight import RateAwareWeight
from espalier.quantized_inputs import (
    check_layers,
    grids_in,
    remove_input_grids,
    set_input_grids,
)
from espalier.targets import Target, find_targets, unwrap


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
