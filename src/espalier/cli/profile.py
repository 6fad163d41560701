"""``espalier profile``: where the time of a forward pass goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from espalier.cli import console, networks

if TYPE_CHECKING:
    from espalier.analysis.profile import OperationTime, Profile


def command(
    model: networks.Model,
    input_shape: Annotated[
        str | None,
        typer.Option(metavar="C,H,W", help="Of one input, without the batch.", show_default=False),
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Inputs in one pass.")] = 1,
    inputs: Annotated[
        str | None,
        typer.Option(
            metavar="PKG.MOD:FUNCTION",
            help="Gives the inputs of one pass, in place of one random tensor of --input-shape.",
            show_default=False,
        ),
    ] = None,
    device: networks.Device = "cpu",
    threads: networks.Threads = None,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Measured passes.")] = 20,
    warmup: Annotated[int, typer.Option(metavar="N", min=0, help="Passes before.")] = 3,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw it, as .png or .svg.", show_default=False),
    ] = None,
    force: console.Force = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Time each operation of a network, with its multiply-accumulates, weights and outputs.

    Tensor operations multiply by weights; non-tensor ones (pooling, normalisation,
    activations) do not, and take a large share of the time all the same.

    [bold]Example[/]

    espalier profile --model espalier.zoo:googlenet --input-shape 3,224,224 --plot time.svg
    """
    import torch

    from espalier.analysis.profile import profile

    example = networks.example(input_shape, inputs, batch)
    if threads is not None:
        torch.set_num_threads(threads)
    place = networks.device(device)
    network = networks.network(model).to(place)
    given = [x.to(place) if torch.is_tensor(x) else x for x in example]
    with console.stages(quiet) as tell:

        def progress(done: int, total: int, _text: str) -> None:
            if tell:
                tell("profile", done, total, "")

        found = profile(network, *given, repeats=repeats, warmup=warmup, progress=progress)
    if plot is not None:
        found.figure(model.rpartition(":")[2]).write(plot, force=force)
    if as_json:
        console.print_json({"model": model} | found.to_json())
    elif not quiet:
        _print(found)


def _print(found: Profile) -> None:
    total = found.total_ms
    columns = ["layer", "operation", "kind", "ms", "share", "MACs"]
    columns += ["parameters", "weights, B", "output, B"]
    console.print_table("Layers", columns, [_row(row, total) for row in found.rows])
    rows = [
        [s.operation, s.kind, str(s.calls), f"{s.ms:.3f}", f"{100 * s.share:.1f}%", f"{s.macs:,}"]
        for s in found.by_operation()
    ]
    sums = ["total", "", str(len(found.rows)), f"{total:.3f}", "100.0%"]
    sums.append(f"{sum(row.macs for row in found.rows):,}")
    console.print_table(
        "Operations", ["operation", "kind", "calls", "ms", "share", "MACs"], rows, sums
    )
    share = 100 * found.share("non-tensor")
    typer.echo(f"{share:.1f}% of the time in non-tensor layers")
    typer.echo(
        f"Operations together {total:.2f} ms (pass by pass {found.pass_ms:.2f} ms), the model by "
        f"itself {found.end_to_end_ms:.2f} ms; medians of {found.repeats}, {found.device}, "
        f"{found.threads} threads"
    )
    if found.note:
        typer.echo(f"Timed by dispatched operators, since {found.note}")


def _row(row: OperationTime, total: float) -> list[str]:
    counts = (row.macs, row.parameters, row.weight_bytes, row.activation_bytes)
    share = f"{100 * row.ms / total:.1f}%"
    return [row.layer, row.operation, row.kind, f"{row.ms:.3f}", share, *(f"{n:,}" for n in counts)]
