"""``espalier sensitivity``: one layer at a time, over a grid."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from espalier.cli import console, studied
from espalier.errors import InvalidArgument

if TYPE_CHECKING:
    from espalier.analysis.axis import Grid, Value
    from espalier.analysis.sensitivity import Point, Sweep

POINTS, SWEEP = "points.jsonl", "sweep.json"


def command(
    source: studied.Source = None,
    model: studied.Model = None,
    data: studied.DataFunction = None,
    weights: studied.Weights = None,
    evaluate: studied.Evaluate = None,
    metric: studied.MetricName = "accuracy",
    lower: studied.Lower = False,
    split: studied.SplitName = "held_out",
    holdout: studied.Holdout = None,
    density: Annotated[
        str | None,
        typer.Option(metavar="D,D,...", help="Densities to try.", show_default=False),
    ] = None,
    bits: Annotated[
        str | None, typer.Option(metavar="B,B,...", help="Bits to try.", show_default=False)
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="AXIS=V,V,...",
            help="Values of any registered axis to try; may be given several times.",
            show_default="densities and bits, each over its own grid",
        ),
    ] = None,
    layers: studied.Layers = None,
    out: studied.Out = None,
    data_dir: studied.DataDir = None,
    jobs: studied.Jobs = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Forget the points that DIR holds.")
    ] = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Which layers can take it: change one at a time, and see what the network loses.

    Nothing is retrained, and the model stays as it is. Finished points are kept
    in DIR: the same command goes on where it was stopped.

    [bold]Examples[/]

    espalier sensitivity runs/lenet5 --density 0.05,0.1,0.2,0.5

    espalier sensitivity --model mine:model --weights mine.pt --data mine:data --holdout 5000

    espalier sensitivity model.safetensors --bits 2,3,4,6,8

    INPUT is the folder of a finished run, a recipe (its network is trained
    first), or a bare checkpoint: then no data is needed, and the relative
    error and the SQNR of the weights are measured.
    """
    asked = studied.Asked(
        source, model, data, weights, evaluate, metric, lower, split, holdout, data_dir
    )
    values = grid_of(density, bits, grid)
    wanted = studied.patterns(layers)
    folder = asked.folder(out, "sensitivity")
    if force:
        (folder / POINTS).unlink(missing_ok=True)
    if source is not None and studied.is_checkpoint(source):
        sweep = _bare(source, values, wanted, folder, jobs, quiet)
    else:
        sweep = _judged(asked, values, wanted, folder, jobs, quiet)
    studied.write_json(folder / SWEEP, sweep.to_json())
    if as_json:
        console.print_json(sweep.to_json())
    elif not quiet:
        print_sweep(sweep)
        typer.echo(f"Results in {folder}")


def _bare(
    source: str,
    grid: Grid | None,
    layers: list[str] | None,
    folder: Path,
    jobs: int | None,
    quiet: bool,
) -> Sweep:
    from espalier.analysis.bare import bare_sensitivity
    from espalier.interop import open_checkpoint

    with console.work("Sweeping", quiet) as report:
        return bare_sensitivity(
            open_checkpoint(Path(source)),
            grid,
            layers=layers,
            jobs=jobs,
            keep=folder / POINTS,
            progress=report,
        )


def _judged(
    asked: studied.Asked,
    grid: Grid | None,
    layers: list[str] | None,
    folder: Path,
    jobs: int | None,
    quiet: bool,
) -> Sweep:
    from espalier.analysis.sensitivity import sensitivity

    network = asked.network(folder, quiet)
    evaluate, words = asked.judge(network)
    with console.work("Sweeping", quiet) as report:
        return sensitivity(
            network.model,
            evaluate,
            grid,
            layers=layers,
            metric=asked.metric,
            better=asked.better,
            data=words,
            jobs=jobs,
            keep=folder / POINTS,
            progress=report,
        )


def grid_of(density: str | None, bits: str | None, others: list[str] | None) -> Grid | None:
    """The grid that the options name, checked; None if they name none."""
    written = [("density", density), ("bits", bits)]
    for text in others or ():
        name, equals, values = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"--grid: {text!r} is not AXIS=VALUE,VALUE,...")
        written.append((name.strip(), values))
    named = [(name, text) for name, text in written if text is not None]
    if not named:
        return None

    from espalier.analysis.axis import AXES, check_grid

    grid: dict[str, list[Value]] = {}
    try:
        for name, text in named:
            axis = AXES.make(name)
            grid[name] = [axis.parse(part.strip()) for part in text.split(",") if part.strip()]
        return check_grid(grid)
    except InvalidArgument as error:
        raise typer.BadParameter(str(error)) from None


def print_sweep(sweep: Sweep) -> None:
    """A table for each axis: a row for each layer, a column for each value."""
    if sweep.baseline is not None:
        typer.echo(f"{sweep.metric} as it is: {sweep.baseline:.2f}")
    for axis in sweep.axes:
        values = sweep.grid(axis)
        judged = sweep.baseline is not None
        what = sweep.metric if judged else "SQNR dB"
        rows = []
        for layer in sweep.layers:
            found = {p.value: p for p in sweep.curve(layer.name, axis)}
            cells = [_cell(found.get(value), judged) for value in values]
            rows.append([layer.short, console.size(layer.elements), *cells])
        console.print_table(
            f"{what} by {axis}", ["layer", "weights", *(f"{v:g}" for v in values)], rows
        )


def _cell(point: Point | None, judged: bool) -> str:
    if point is None:
        return ""
    number = point.metric if judged else point.sqnr_db
    return "exact" if number is None else f"{number:.2f}" if judged else f"{number:.1f}"
