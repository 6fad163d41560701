"""``espalier run``: the stages of a recipe, on the user's model and data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from espalier.cli import console, networks

if TYPE_CHECKING:
    from espalier.recipe.run import RunResult

DataDir = Annotated[
    Path | None,
    typer.Option(metavar="D", help="Where data is looked for first.", show_default=False),
]


def command(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE.yaml", help="Recipe file, or a built-in one's name.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for results.", show_default="runs/RECIPE"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(metavar="N", help="In place of the recipe's.", show_default=False),
    ] = None,
    data_dir: DataDir = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="cpu or cuda.", show_default="where the model is built"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Start again where DIR holds a run.")
    ] = False,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Log training, densities and sizes for TensorBoard."),
    ] = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Train, prune, retrain, share, fine-tune and save, as a recipe says.

    A run that was interrupted goes on with --resume, to the same result.

    [bold]Examples[/]

    espalier run lenet300 --out runs/lenet300

    espalier run my.yaml --out runs/mine --resume
    """
    if resume and force:
        raise typer.BadParameter("--resume and --force exclude each other")

    place = None if device is None else networks.device(device)

    from espalier.recipe import run_recipe

    folder = out or Path("runs") / Path(recipe).stem
    with console.stages(quiet) as report:
        result = run_recipe(
            recipe,
            folder,
            resume=resume,
            force=force,
            seed=seed,
            data_dir=data_dir,
            device=place,
            progress=report,
            tensorboard=tensorboard,
        )
    if as_json:
        console.print_json(result.to_json())
    elif not quiet:
        _print(result)


def _print(result: RunResult) -> None:
    rows = [
        [str(number), stage.kind, f"{stage.seconds:.1f}", _summary(stage.values)]
        for number, stage in enumerate(result.stages, 1)
    ]
    console.print_table("Stages", ["#", "stage", "seconds", ""], rows)
    typer.echo(f"Results in {result.out}")


def _summary(values: dict[str, Any]) -> str:
    """The plain numbers and words among what a stage measured."""
    parts = []
    for key, value in values.items():
        if isinstance(value, float):
            parts.append(f"{key} {value:.4g}")
        elif isinstance(value, int | str) and not isinstance(value, bool):
            parts.append(f"{key} {value}")
    ledger = values.get("ledger")
    if isinstance(ledger, dict):
        parts.append(f"{ledger['file_bytes']:,} bytes, {ledger['ratio']:.1f}x smaller")
    return ", ".join(parts)
