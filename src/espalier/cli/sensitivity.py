"""``espalier sensitivity``: one layer at a time, over a grid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from espalier import __version__
from espalier.cli import console, studied
from espalier.errors import InvalidArgument

if TYPE_CHECKING:
    from espalier.analysis.axis import Grid, Value
    from espalier.analysis.figures import Figure
    from espalier.analysis.sensitivity import Sweep


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
    written = _written_grid(density, bits, grid)
    wanted = studied.patterns(layers)
    folder = asked.folder(out, "sensitivity")
    digest = studied.digest_of(source)
    question = {
        "version": __version__,
        "network": asked.to_json(),
        "digest": digest,
        "grid": [list(entry) for entry in written],
        "layers": wanted,
    }
    plain = None if force or digest is None else _answered(folder, question)
    if plain is None:
        plain = _sweep(asked, written, wanted, folder, force, jobs, quiet)
        studied.write_json(folder / studied.ASKED, question)
    if as_json:
        console.print_json(plain)
    elif not quiet:
        print_sweep(plain)
        typer.echo(f"Results in {folder}")


def _answered(folder: Path, question: dict[str, Any]) -> dict[str, Any] | None:
    """The sweep in ``folder``, if it is whole and just this was asked. Imports nothing heavy."""
    try:
        if json.loads((folder / studied.ASKED).read_text()) != question:
            return None
        return dict(json.loads((folder / studied.SWEEP).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _sweep(
    asked: studied.Asked,
    written: list[tuple[str, str]],
    layers: list[str] | None,
    folder: Path,
    force: bool,
    jobs: int | None,
    quiet: bool,
) -> dict[str, Any]:
    """Sweep what is not kept, and write the sweep and its figures."""
    grid = _grid_of(written)
    if force:
        (folder / studied.POINTS).unlink(missing_ok=True)
    # Until the sweep is whole, the folder does not say that it is.
    for name in (studied.ASKED, studied.SWEEP):
        (folder / name).unlink(missing_ok=True)
    if asked.source is not None and studied.is_checkpoint(asked.source):
        sweep = _bare(asked.source, grid, layers, folder, jobs, quiet)
    else:
        sweep = _judged(asked, grid, layers, folder, jobs, quiet)
    studied.write_json(folder / studied.SWEEP, sweep.to_json())
    studied.save_figures(lambda: _figures(sweep), folder, quiet)
    return sweep.to_json()


def _figures(sweep: Sweep) -> list[Figure]:
    from espalier.analysis.sweep_figures import sweep_figures

    return sweep_figures(sweep)


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
            keep=folder / studied.POINTS,
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
            keep=folder / studied.POINTS,
            progress=report,
        )


def _written_grid(
    density: str | None, bits: str | None, others: list[str] | None
) -> list[tuple[str, str]]:
    """The axes and values that the options name, as text."""
    written = [("density", density), ("bits", bits)]
    for text in others or ():
        name, equals, values = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"--grid: {text!r} is not AXIS=VALUE,VALUE,...")
        written.append((name.strip(), values))
    return [(name, text) for name, text in written if text is not None]


def _grid_of(written: list[tuple[str, str]]) -> Grid | None:
    """The grid, checked; None if nothing is named."""
    if not written:
        return None

    from espalier.analysis.axis import AXES, check_grid

    grid: dict[str, list[Value]] = {}
    try:
        for name, text in written:
            axis = AXES.make(name)
            grid[name] = [axis.parse(part.strip()) for part in text.split(",") if part.strip()]
        return check_grid(grid)
    except InvalidArgument as error:
        raise typer.BadParameter(str(error)) from None


def print_sweep(sweep: dict[str, Any]) -> None:
    """A table for each axis: a row for each layer, a column for each value."""
    judged = sweep["baseline"] is not None
    what = sweep["metric"] if judged else "SQNR dB"
    field = "metric" if judged else "sqnr_db"
    if judged:
        typer.echo(f"{what} as it is: {sweep['baseline']:.2f}")
    for axis in dict.fromkeys(point["axis"] for point in sweep["points"]):
        points = [point for point in sweep["points"] if point["axis"] == axis]
        values = sorted({point["value"] for point in points})
        found = {(point["layer"], point["value"]): point[field] for point in points}
        rows = [
            [
                layer["name"].removesuffix(".weight"),
                console.size(layer["elements"]),
                *(_cell(found, (layer["name"], value), judged) for value in values),
            ]
            for layer in sweep["layers"]
        ]
        columns = ["layer", "weights", *(f"{value:g}" for value in values)]
        console.print_table(f"{what} by {axis}", columns, rows)


def _cell(found: dict[tuple[str, Any], float | None], key: tuple[str, Any], judged: bool) -> str:
    if key not in found:
        return ""
    number = found[key]
    return "exact" if number is None else f"{number:.2f}" if judged else f"{number:.1f}"
