"""``espalier search``: Optuna over the grid of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from espalier.cli import console, studied

if TYPE_CHECKING:
    from espalier.analysis.search import SearchResult

RESULT, DATABASE = "search.json", "search.db"


def command(
    sweep: studied.SweepFolder,
    max_loss: studied.MaxLoss = None,
    max_bytes: studied.MaxBytes = None,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="The whole front of size and metric.")
    ] = False,
    trials: Annotated[
        int, typer.Option(metavar="N", min=1, help="Finished trials, of all processes together.")
    ] = 200,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Database, as postgresql://...: several machines may work on one.",
            show_default="SQLite in the results' folder",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the sampler.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for results.", show_default="DIR")
    ] = None,
    data_dir: studied.DataDir = None,
    jobs: studied.Jobs = None,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Search densities and bits by layer with Optuna, from where a sweep leaves off.

    The same command goes on with a search that was stopped or killed, and the
    same command on several machines works on one search, with one database URL.

    [bold]Examples[/]

    espalier search runs/sensitivity-lenet5 --max-loss 0.1 --trials 300

    espalier search runs/sensitivity-lenet5 --pareto --storage postgresql://host/espalier
    """
    if (max_loss is not None) + (max_bytes is not None) + pareto != 1:
        raise typer.BadParameter("give one of --max-loss, --max-bytes and --pareto")
    asked = studied.Asked.of_sweep(sweep, data_dir)
    swept = studied.read_sweep(sweep)
    folder = asked.folder(out or sweep, "search")

    from espalier.analysis.search import Goal, search

    network = asked.network(sweep, quiet)
    evaluate, words = asked.judge(network)
    with console.work("Searching", quiet) as report:
        result = search(
            network.model,
            evaluate,
            swept,
            Goal(max_loss, max_bytes),
            trials=trials,
            storage=storage or f"sqlite:///{folder / DATABASE}",
            seed=seed,
            data=words,
            jobs=jobs,
            keep=sweep / studied.POINTS,
            progress=report,
        )
    studied.write_json(folder / RESULT, result.to_json())
    recipe = None
    if len(result.front) == 1:
        recipe = studied.write_recipe(network, result.front[0].stages(), folder, quiet)
    if as_json:
        console.print_json(result.to_json())
    elif not quiet:
        _print(result)
        if recipe:
            typer.echo(f"espalier run {recipe} makes the file")


def _print(result: SearchResult) -> None:
    if not result.front:
        typer.echo(f"Nothing within the limit in {result.trials} trials")
        return
    rows = [
        [
            console.size(proposal.file_bytes),
            f"{proposal.metric:.2f}",
            "; ".join(
                f"{layer.removesuffix('.weight')} "
                + ", ".join(f"{axis} {value:g}" for axis, value in values.items())
                for layer, values in proposal.setting.items()
            ),
        ]
        for proposal in result.front
    ]
    console.print_table(f"After {result.trials} trials", ["bytes", "metric", ""], rows)
