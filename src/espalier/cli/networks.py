"""What the commands share that take a network by the function which builds it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from espalier.errors import InvalidArgument

if TYPE_CHECKING:
    from torch import Tensor, nn

Model = Annotated[str, typer.Option(metavar="PKG.MOD:FUNCTION", help="Builds the network.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="cpu or cuda.")]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Of PyTorch on the CPU.", show_default="its own"),
]


def device(name: str) -> Any:
    """The device called ``name``: cpu or cuda."""
    import torch

    if name not in ("cpu", "cuda"):
        raise InvalidArgument(f"--device must be cpu or cuda, not {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidArgument("--device cuda: PyTorch finds no CUDA device here")
    return torch.device(name)


def network(reference: str) -> nn.Module:
    """What the function of ``--model`` builds."""
    from torch import nn

    from espalier.recipe.refs import resolve

    built = resolve(reference, "--model")()
    if not isinstance(built, nn.Module):
        raise InvalidArgument(f"--model: {reference} gave a {type(built).__name__}, not a Module")
    return built


def random_input(shape: str, batch: int) -> Tensor:
    """``batch`` random samples of the shape that ``--input-shape`` gives."""
    import torch

    try:
        sizes = [int(part) for part in shape.replace("x", ",").split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise InvalidArgument(f"--input-shape {shape!r} must be sizes, as in 3,224,224")
    return torch.randn(batch, *sizes, generator=torch.Generator().manual_seed(0))


def example(input_shape: str | None, given: str | None, batch: int = 1) -> list[Any]:
    """What a pass takes: a random tensor of ``--input-shape``, or what ``--inputs`` gives."""
    if (input_shape is None) == (given is None):
        raise typer.BadParameter("give either --input-shape or --inputs")
    return [random_input(input_shape, batch)] if input_shape else inputs(str(given))


def batches(reference: str, samples: int) -> list[Any]:
    """Inputs of some training samples of what the function of ``--data`` gives."""
    from espalier.recipe.refs import training_batches

    return list(training_batches(reference, samples))


def loaded(model: str, source: Path) -> nn.Module:
    """The network that the function of ``--model`` builds, with the weights of a file."""
    from espalier.recipe.refs import load_weights

    built = network(model)
    load_weights(built, source)
    return built


def inputs(reference: str) -> list[Any]:
    """What the function of ``--inputs`` gives."""
    from espalier.recipe.refs import resolve

    given = resolve(reference, "--inputs")()
    return list(given) if isinstance(given, list | tuple) else [given]
