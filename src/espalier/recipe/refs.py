"""From ``package.module:function`` to the user's model and data."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from espalier.errors import InvalidArgument
from espalier.interop import open_checkpoint
from espalier.recipe.schema import Recipe
from espalier.samples import Data, Samples
from espalier.torch_io import load, needed, to_tensor


@dataclass(frozen=True)
class Split:
    """Training, held-out and test data. ``held_out`` is None where the recipe holds nothing out."""

    train: Data
    held_out: Data | None
    test: Data
    source: str


def resolve(reference: str, option: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names; modules are looked for here first."""
    module_name, colon, attribute = reference.partition(":")
    if not (colon and module_name and attribute):
        raise InvalidArgument(f"{option}: {reference!r} is not package.module:function")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InvalidArgument(f"{option}: cannot import {module_name} ({error})") from None
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InvalidArgument(f"{option}: {module_name} has no function {attribute!r}")
    return function


def _call(reference: str, option: str, options: dict[str, Any]) -> Any:
    function = resolve(reference, option)
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        raise InvalidArgument(f"{option}_options: {reference}: {error}") from None
    return function(**options)


def build_model(recipe: Recipe, seed: int | None = None) -> nn.Module:
    """A fresh model, seeded, with the recipe's start weights if it names any."""
    torch.manual_seed(recipe.seed if seed is None else seed)
    model = _call(recipe.model, "model", recipe.model_options)
    if not isinstance(model, nn.Module):
        raise InvalidArgument(f"model: {recipe.model} gave a {type(model).__name__}, not a Module")
    if recipe.weights is not None:
        load_weights(model, Path(recipe.weights))
    return model


def load_weights(model: nn.Module, path: Path) -> None:
    if path.suffix == ".esp":
        load(path, into=model, trainable=True)
        return
    state = {}
    with open_checkpoint(path) as checkpoint:
        for name in checkpoint.names():
            dtype, array = checkpoint.load(name)
            state[name] = to_tensor(array, dtype)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InvalidArgument(f"weights: {path}: {' '.join(str(error).split())}") from None
    missing = needed(missing)
    if missing or unexpected:
        raise InvalidArgument(
            f"weights: {path}: missing {missing or 'nothing'}, unexpected {unexpected or 'nothing'}"
        )


def build_data(recipe: Recipe, data_dir: str | os.PathLike[str] | None) -> Split:
    """The recipe's data, with the held-out split taken from the training samples."""
    options = dict(recipe.data_options)
    if data_dir is not None:
        options["data_dir"] = data_dir
    found = _call(recipe.data, "data", options)
    source = str(getattr(found, "source", recipe.data))
    train, held_out, test = _splits(found, recipe.data)
    if recipe.holdout:
        if not isinstance(train, Samples):
            raise InvalidArgument(
                "holdout: a DataLoader cannot be split; give (train, held_out, test)"
            )
        train, held_out = train.split(recipe.holdout, recipe.seed)
    return Split(train, held_out, test, source)


def training_batches(reference: str, samples: int, size: int = 128) -> list[torch.Tensor]:
    """Inputs of some training samples of ``--data``: drawn at random, or the loader's first."""
    data, _, _ = _splits(_call(reference, "--data", {}), reference)
    if isinstance(data, Samples):
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        return list(data.x[order[:samples]].split(size))
    found: list[torch.Tensor] = []
    for x, _ in data:
        found.append(x[: samples - sum(map(len, found))])
        if sum(map(len, found)) >= samples:
            break
    return found


def _splits(found: Any, reference: str) -> tuple[Data, Data | None, Data]:
    """Training, held-out (or None) and test data, of what a function for data gave."""
    held_out: Any = None
    if hasattr(found, "train") and hasattr(found, "test"):
        train, test = found.train, found.test
        held_out = getattr(found, "held_out", None)
    elif isinstance(found, tuple) and len(found) in (2, 3):
        train, *middle, test = found
        held_out = middle[0] if middle else None
    else:
        raise InvalidArgument(
            f"data: {reference} gave a {type(found).__name__}; give (train, test) or "
            "(train, held_out, test) of Samples or DataLoader"
        )
    between = _data(held_out, reference) if held_out is not None else None
    return _data(train, reference), between, _data(test, reference)


def _data(value: Any, reference: str) -> Data:
    if isinstance(value, Samples | DataLoader):
        return value
    if isinstance(value, tuple) and len(value) == 2 and all(torch.is_tensor(v) for v in value):
        return Samples(*value)
    raise InvalidArgument(
        f"data: {reference} gave a {type(value).__name__}; wanted Samples, (inputs, labels) or a "
        "DataLoader"
    )
