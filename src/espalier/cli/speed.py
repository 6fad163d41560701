"""``espalier speed``: a network before and after, timed in turn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from espalier.cli import console, networks

if TYPE_CHECKING:
    from espalier.analysis.speed import Speed, SpeedRow
    from espalier.timing import Spread


def command(
    source: Annotated[Path, typer.Argument(metavar="FILE.esp", help="The network as it became.")],
    model: networks.Model,
    input_shape: Annotated[
        str, typer.Option(metavar="C,H,W", help="Of one input, without the batch.")
    ],
    runtimes: Annotated[
        str,
        typer.Option(metavar="NAMES", help="Of eager, compile, onnxruntime, packed; with commas."),
    ] = "eager,compile,onnxruntime",
    batches: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Samples in a pass; with commas.")
    ] = "1,32",
    device: networks.Device = "cpu",
    threads: networks.Threads = None,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Measured rounds.")] = 30,
    warmup: Annotated[int, typer.Option(metavar="N", min=0, help="Rounds before.")] = 3,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Time a compressed network beside the original, on several runtimes.

    --model builds the original; the structural edits of the file are made on a second one.
    Both run in turn; the ratio is the original's time by the result's, with its quartiles.
    Zeros and codebooks make a network faster with --runtimes packed alone; fewer filters, layers
    or factors do everywhere.

    [bold]Example[/]

    espalier speed pruned.esp --model espalier.zoo:resnet20_cifar --input-shape 3,32,32
    """
    import torch

    from espalier.analysis.speed import compare_speed
    from espalier.torch_io import load

    if threads is not None:
        torch.set_num_threads(threads)
    place = networks.device(device)
    original, result = networks.network(model).to(place), networks.network(model).to(place)
    load(source, into=result)
    with console.stages(quiet) as tell:

        def progress(done: int, total: int, text: str) -> None:
            if tell:
                tell("speed", done, total, text)

        found = compare_speed(
            original,
            result,
            networks.random_input(input_shape, 1).to(place),
            runtimes=[name.strip() for name in runtimes.split(",")],
            batches=_numbers(batches),
            repeats=repeats,
            warmup=warmup,
            progress=progress,
        )
    if as_json:
        console.print_json({"model": model, "file": str(source)} | found.to_json())
    elif not quiet:
        _print(found)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--batches {text!r} must be numbers, as in 1,32") from None


def _print(found: Speed) -> None:
    columns = ["runtime", "batch", "original, ms", "result, ms", "ratio", "quartiles", ""]
    console.print_table("Speed", columns, [_row(row) for row in found.rows])
    typer.echo(f"Medians, {found.device}, {found.threads} threads")


def _row(row: SpeedRow) -> list[str]:
    def ms(spread: Spread | None) -> str:
        return "" if spread is None else f"{spread.median:.3f}"

    ratio, between = "", ""
    if row.ratio is not None:
        ratio = f"{row.ratio.median:.2f}"
        between = f"{row.ratio.low:.2f} to {row.ratio.high:.2f}"
    times = [ms(row.original_ms), ms(row.result_ms)]
    return [row.runtime, str(row.batch), *times, ratio, between, row.note or row.verdict]
