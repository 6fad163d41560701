"""``espalier demo``: the whole chain on LeNet-300-100."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from espalier.cli import console
from espalier.cli.run import DataDir


class DataSet(StrEnum):
    """What the demo can be run on."""

    MNIST = "mnist"
    DIGITS = "digits"


def command(
    dataset: Annotated[
        DataSet | None,
        typer.Option(help="Data to train on.", show_default="mnist, or digits where it is not had"),
    ] = None,
    data_dir: DataDir = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for results.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(metavar="N", help="Of everything random.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Start again where DIR holds a run.")
    ] = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Train, prune, share and code LeNet-300-100; print the paper's table beside ours.

    Takes minutes on two cores. Leaves the .esp file, its ledger and a report in DIR.

    [bold]Example[/]

    espalier demo --out runs/demo
    """
    if resume and force:
        raise typer.BadParameter("--resume and --force exclude each other")

    from espalier.demo import run_demo

    with console.stages(quiet) as report:
        result = run_demo(
            None if dataset is None else dataset.value,
            data_dir=data_dir,
            out=out,
            seed=seed,
            resume=resume,
            force=force,
            progress=report,
            announce=lambda line: None if quiet else console.note(line),
        )
    if as_json:
        console.print_json(result.to_json())
    elif not quiet:
        for title, (columns, rows) in result.tables():
            console.print_table(title, columns, rows)
        typer.echo(f"Results in {result.run.out}")
