"""``espalier study``: the figures of Deep Compression on the user's network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from espalier.cli import console, studied

if TYPE_CHECKING:
    from espalier.analysis.study import Study

RESULT, PAGE, POINTS = "study.json", "study.md", "study-points.jsonl"


def command(
    source: studied.Source = None,
    model: studied.Model = None,
    data: studied.DataFunction = None,
    weights: studied.Weights = None,
    split: studied.SplitName = "held_out",
    holdout: studied.Holdout = None,
    figures: Annotated[
        str,
        typer.Option(
            metavar="F,F,...", help="Of compression (6), bits (7), initialisation (8) and table."
        ),
    ] = "compression,bits,initialisation,table",
    series: Annotated[
        str | None,
        typer.Option(
            metavar="S,S,...", help="Lines of the figures to measure.", show_default="all"
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option(metavar="N", min=0, help="Of training after each cut; 0 for none.")
    ] = 1,
    lr: Annotated[float, typer.Option(metavar="R", help="Learning rate of that training.")] = 5e-4,
    samples: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Training samples of an epoch.", show_default="all"),
    ] = None,
    density: Annotated[
        float, typer.Option(metavar="D", help="Of the pruned network of figures 7 and 8.")
    ] = 0.1,
    out: studied.Out = None,
    data_dir: studied.DataDir = None,
    jobs: studied.Jobs = None,
    force: Annotated[
        bool, typer.Option("--force", "-f", help="Forget the points that DIR holds.")
    ] = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """The studies of Deep Compression, on a network of your own.

    Accuracy against size for pruning, sharing, both, truncated SVD and Tucker-2
    (figure 6); against bits, conv and fc layers apart, pruned and not (figure 7); the
    initialisations of k-means, with and without fine-tuning (figure 8); and
    three pairs of bits (table 6). Finished points are kept in DIR.

    [bold]Examples[/]

    espalier study runs/lenet5 --figures bits,table

    espalier study runs/lenet5 --figures compression --series pruning,Tucker-2

    espalier study --model mine:model --weights mine.pt --data mine:data --holdout 5000 --epochs 0
    """
    asked = studied.Asked(
        source, model, data, weights, None, "accuracy", False, split, holdout, data_dir
    )
    folder = asked.folder(out, "study")
    if force:
        (folder / POINTS).unlink(missing_ok=True)

    from espalier.analysis.study import study
    from espalier.analysis.study_cases import Tuning

    network = asked.network(folder, quiet)
    evaluate, words = asked.judge(network)
    with console.work("Studying", quiet) as report:
        found = study(
            network.model,
            evaluate,
            network.split.train if epochs else None,
            figures=_parts(figures),
            series=None if series is None else _parts(series),
            density=density,
            tuning=Tuning(epochs=epochs, lr=lr, samples=samples) if epochs else None,
            data=words,
            jobs=jobs,
            keep=folder / POINTS,
            progress=report,
        )
    studied.write_json(folder / RESULT, found.to_json())
    _write_page(found, folder, quiet)
    if as_json:
        console.print_json(found.to_json())
    elif not quiet:
        _print(found)
        typer.echo(f"Results in {folder}")


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _write_page(found: Study, folder: Path, quiet: bool) -> None:
    from espalier.analysis.study_report import study_figures, study_tables
    from espalier.container.atomic import atomic_write

    with atomic_write(folder / PAGE, force=True) as file:
        file.write(study_tables(found).encode())
    studied.save_figures(lambda: study_figures(found), folder, quiet)


def _print(found: Study) -> None:
    rows = [
        [
            p.case.series,
            f"{p.case.x:g}",
            console.size(p.file_bytes),
            f"{100 * p.share:.2f}%",
            f"{p.metric:.2f}",
        ]
        for p in found.points
    ]
    typer.echo(f"{found.metric} {found.baseline:.2f}, of the pruned network {found.pruned:.2f}")
    columns = ["", "density, bits or energy", "bytes", "size", found.metric]
    console.print_table("Studies", columns, rows)
    from espalier.analysis.study_report import findings

    shown = [[f.figure, "holds" if f.holds else "no", f.paper, f.here] for f in findings(found)]
    console.print_table("What the paper finds", ["figure", "here", "", ""], shown)
