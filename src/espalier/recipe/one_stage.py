"""Rate-distortion quantization of a checkpoint, with its network and its data."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from espalier.errors import InvalidArgument
from espalier.interop import Checkpoint
from espalier.pruning import prune
from espalier.recipe.context import Context
from espalier.recipe.options import QuantizeRd
from espalier.recipe.refs import Split, build_data, build_model
from espalier.recipe.schema import Recipe, Stage
from espalier.recipe.stages import run_stage
from espalier.samples import Samples
from espalier.state import CompressedTensor
from espalier.torch_io import read_model

HELD_OUT = 5000
"""Training samples held out to choose lambda on, where the data function holds none out..."""
HELD_OUT_SHARE = 5
"""...but not more than one in so many."""


def quantize_checkpoint(
    checkpoint: Checkpoint,
    model: str,
    data: str,
    options: Mapping[str, Any],
    *,
    density: Any = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> tuple[dict[str, CompressedTensor], dict[str, Any]]:
    """Load ``checkpoint`` into its network and run the stage ``quantize_rd`` on it.

    Parameters
    ----------
    checkpoint : Checkpoint
        A file, or a folder of them.
    model, data : str
        ``package.module:function``, as in a recipe.
    options : mapping
        Of :class:`espalier.recipe.options.QuantizeRd`.
    density : float or mapping, optional
        Prune by magnitude first.
    progress : callable, optional
        Called with steps done, steps in all, and what is being done.

    Returns
    -------
    tensors : dict
        Those of the checkpoint, as the network has them now.
    measured : dict
        What the stage measured.

    Raises
    ------
    InvalidArgument
        The checkpoint does not fit the model; the data cannot be used; no lambda is within the
        limit.
    """
    stage = Stage(kind="quantize_rd", options=QuantizeRd(**options))
    recipe = Recipe(model=model, data=data, weights=str(checkpoint.path), stages=[stage])
    network = build_model(recipe)
    split = _with_held_out(build_data(recipe, None))
    if density is not None:
        prune(network, density)
    with tempfile.TemporaryDirectory() as folder:
        context = Context(network, split, recipe, Path(folder), 0, progress)
        measured = run_stage(context, stage)
    tensors = read_model(network).tensors
    return {name: tensors[name] for name in checkpoint.infos if name in tensors}, measured


def _with_held_out(split: Split) -> Split:
    if split.held_out is not None:
        return split
    if not isinstance(split.train, Samples):
        return split
    wanted = min(HELD_OUT, len(split.train) // HELD_OUT_SHARE)
    if wanted < 1:
        raise InvalidArgument(f"--data: {len(split.train)} training samples are too few")
    train, held_out = split.train.split(wanted, 0)
    return replace(split, train=train, held_out=held_out)
