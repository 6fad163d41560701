"""``espalier choose``: from a sweep to a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from espalier.cli import console, studied

if TYPE_CHECKING:
    from espalier.analysis.choose import Proposal

PROPOSAL = "proposal.json"


def command(
    sweep: studied.SweepFolder,
    max_loss: studied.MaxLoss = None,
    max_bytes: studied.MaxBytes = None,
    evaluations: Annotated[
        int, typer.Option(metavar="N", min=1, help="Of the whole network, at most.")
    ] = 120,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for results.", show_default="DIR")
    ] = None,
    data_dir: studied.DataDir = None,
    jobs: studied.Jobs = None,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Propose densities and bits for every layer, from a sweep, as a recipe that runs.

    Sizes are true coded sizes, and the loss is that of the real network with all
    layers changed, on the data that the sweep was made with. Nothing is
    retrained; add a retrain stage to the recipe to win back what was lost.

    [bold]Examples[/]

    espalier choose runs/sensitivity-lenet5 --max-loss 0.1

    espalier choose runs/sensitivity-lenet5 --max-bytes 60000

    espalier run runs/sensitivity-lenet5/recipe.yaml --out runs/chosen
    """
    if (max_loss is None) == (max_bytes is None):
        raise typer.BadParameter("give either --max-loss or --max-bytes")
    asked = studied.Asked.of_sweep(sweep, data_dir)
    swept = studied.read_sweep(sweep)

    from espalier.analysis.choose import choose

    network = asked.network(sweep, quiet)
    evaluate, words = asked.judge(network)
    with console.work("Choosing", quiet) as report:
        proposal = choose(
            network.model,
            evaluate,
            swept,
            max_loss=max_loss,
            max_bytes=max_bytes,
            evaluations=evaluations,
            data=words,
            jobs=jobs,
            keep=sweep / studied.POINTS,
            progress=report,
        )
    folder = asked.folder(out or sweep, "choose")
    studied.write_json(folder / PROPOSAL, proposal.to_json())
    recipe = studied.write_recipe(network, proposal.stages(), folder, quiet)
    if as_json:
        console.print_json(proposal.to_json())
    elif not quiet:
        print_proposal(proposal)
        if recipe:
            typer.echo(f"espalier run {recipe} makes the file")


def print_proposal(proposal: Proposal) -> None:
    """A row for each layer, and what it comes to."""
    axes = sorted({axis for values in proposal.setting.values() for axis in values}, reverse=True)
    rows = [
        [layer.removesuffix(".weight"), *(f"{values[a]:g}" if a in values else "" for a in axes)]
        for layer, values in proposal.setting.items()
    ]
    if rows:
        console.print_table("Proposal", ["layer", *axes], rows)
    typer.echo(
        f"{console.size(proposal.baseline_bytes)} -> {console.size(proposal.file_bytes)} bytes, "
        f"metric {proposal.baseline:.2f} -> {proposal.metric:.2f}, "
        f"{proposal.evaluations} evaluations"
    )
