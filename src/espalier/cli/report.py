"""``espalier report``: one page about runs and files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from espalier.cli import console


def command(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of finished runs, or .esp files."),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.html", help="The page.")] = Path(
        "report.html"
    ),
    figures: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The same figures as PNG and SVG.", show_default=False),
    ] = None,
    sweep: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="What espalier sensitivity left, to be shown.",
            show_default="sweep.json in the run, if it is there",
        ),
    ] = None,
    title: Annotated[
        str, typer.Option(metavar="TEXT", help="Heading.", show_default="the run's name")
    ] = "",
    force: console.Force = False,
    quiet: console.Quiet = False,
) -> None:
    """Write one self-contained page: sizes, ledger, weights and codes of each layer, training.

    It opens offline, on a phone and on a wide screen. Several runs stand side by side.
    Needs the extra: pip install 'espalier\\[report]'.

    [bold]Examples[/]

    espalier report runs/lenet5 -o lenet5.html

    espalier report seed0/model.esp seed1/model.esp --figures figures/
    """
    from espalier.analysis.report import write_report

    with console.stages(quiet or figures is None) as tell:
        written = write_report(
            runs,
            out,
            figures=figures,
            sweep=sweep,
            title=title,
            force=force,
            progress=tell and (lambda done, total: tell("figures", done, total, "")),
        )
    if not quiet:
        more = f", and {len(written) - 1} files in {figures}" if figures else ""
        typer.echo(f"{out}: {written[0].stat().st_size:,} bytes{more}")
