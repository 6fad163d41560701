"""``espalier compress``: a checkpoint to an ``.esp`` file, without data."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from espalier.cli import console
from espalier.errors import EspalierError, InvalidArgument
from espalier.options import GLOBAL, Lookup, check_bits, check_density, check_lambda, parse

if TYPE_CHECKING:
    from espalier.compress import Summary
    from espalier.interop import Checkpoint

AUTO = "auto"


def command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT", help="Checkpoint: .safetensors, .pt, .pth, .npz, .onnx, or a folder."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE.esp", help="File to write.")
    ],
    density: Annotated[
        str | None,
        typer.Option(
            metavar="D",
            help="Fraction of weights to keep, in (0, 1]: one value, or by kind and name pattern.",
            show_default="all are kept",
        ),
    ] = None,
    bits: Annotated[
        str | None,
        typer.Option(
            metavar="B",
            help="Share 2^B values in each weight, B from 1 to 16, or none, or auto (fewest, at "
            "most 256, within a relative error of 2^-7): one value, or by kind and name pattern.",
            show_default=AUTO,
        ),
    ] = None,
    quantizer: Annotated[
        str,
        typer.Option(
            metavar="Q",
            help="Which values weights may take: kmeans (2^B shared ones), fixed (fixed point of "
            "2 to 16 bits), binary, binary_connect, ternary or trained_ternary: one name, or by "
            "kind and name pattern. Binary and ternary are for networks trained that way.",
        ),
    ] = "kmeans",
    group_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="With --quantizer: a scale for N inputs of each output channel.",
            show_default="one for each channel",
        ),
    ] = None,
    lam: Annotated[
        str | None,
        typer.Option(
            "--lambda",
            metavar="L",
            help="In place of --bits: a grid for each weight, of least distortion + L x bits: one "
            "value, or by kind and name pattern. About 0.01 from the weights alone, 1e-8 to 1e-7 "
            "with --data.",
            show_default=False,
        ),
    ] = None,
    target_loss: Annotated[
        str | None,
        typer.Option(
            "--target-loss",
            metavar="X",
            help="The largest lambda that loses no more than X. With --data: rise of the held-out "
            "loss in nats, or of the error in points if X ends in %. Without: relative error of "
            "each weight.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION", help="Builds the network of INPUT.", show_default=False
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Gives its data, as a recipe's does: (train, test).",
            show_default=False,
        ),
    ] = None,
    lossless: Annotated[
        bool, typer.Option("--lossless", help="Keep every tensor exactly, bit for bit.")
    ] = False,
    coder: console.Coder = AUTO,
    effort: console.Effort = "default",
    jobs: console.Jobs = None,
    force: console.Force = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Compress a checkpoint without data: share weights, and prune where asked to.

    The defaults are safe: at most 256 shared values in each weight (8 bits), no
    pruning; biases, norms and integers are kept exactly. Saves disk and
    transfer, not memory or time once loaded.

    [bold]Examples[/]

    espalier compress resnet20.safetensors -o resnet20.esp

    espalier compress lenet.pt -o lenet.esp --bits 'conv=8,linear=5,fc3*=6'

    espalier compress lenet.pt -o lenet.esp --density 'linear=0.1,fc3*=0.5'

    espalier compress folder/ -o model.esp --lossless --jobs 2

    espalier compress net.pt -o net.esp --quantizer fixed --bits 8 --group-size 32

    espalier compress net.safetensors -o net.esp --target-loss 0.05

    espalier compress net.pt -o net.esp --target-loss 0.5% --model my:net --data my:data

    A folder is one as Hugging Face has them: safetensors files, in shards or not,
    and others beside them, which are kept byte for byte.

    Keys are kinds ([bold]linear[/]: 2 dimensions, [bold]conv[/]: 3 to 5), or patterns on a
    tensor's name with or without .weight. A pattern overrides a kind, and of
    two patterns the later one counts.
    """
    _refuse_conflicts(lossless, density, bits, lam, target_loss, model, data)
    methods = _methods(quantizer, group_size, lossless or (lam or target_loss) is not None)
    densities, widths = _options(density, bits)
    widths = None if lossless or lam is not None or target_loss is not None else widths
    lams = _lambdas(lam)
    target = None if target_loss is None else _target(target_loss, model is not None)

    from espalier.compress import compress_checkpoint
    from espalier.interop import open_checkpoint
    from espalier.parallel import job_count

    checkpoint = open_checkpoint(source)
    if not quiet:
        for line in checkpoint.notes:
            console.note(f"{source}: {line}")
    prepared: dict[str, Any] = {}
    if model is not None and data is not None:
        with console.stages(quiet) as report:
            prepared = _quantized(checkpoint, model, data, lams, target, densities, report)
        densities = target = None
        lams = None
    total = sum(info.nbytes for info in checkpoint.infos.values())
    with console.progress(f"Compressing {source.name}", total, quiet) as advance:
        summary = compress_checkpoint(
            checkpoint,
            output,
            density=densities,
            bits=widths,
            lam=lams,
            limit=None if target is None else target[0],
            quantizer=methods,
            group_size=group_size,
            prepared=prepared,
            coder=coder,
            effort=effort,
            jobs=job_count(jobs),
            force=force,
            progress=lambda info: advance(info.nbytes),
        )
    for name, reason in summary.skipped.items():
        console.note(f"{source}: {name!r} is not in {output}: {reason}")
    if as_json:
        console.print_json(_as_json(checkpoint, output, summary))
    elif not quiet:
        _print(checkpoint, output, summary)


def _options(density: str | None, bits: str | None) -> tuple[Any, Any]:
    """The two options parsed and checked, before anything heavy is imported."""
    try:
        densities = None if density is None else parse(density, float, "density")
        widths: Any = AUTO if bits is None else parse(bits, _width, "bits")
        if densities is not None:
            Lookup(densities, "density", check_density)
        if isinstance(widths, dict):
            widths = {GLOBAL: AUTO} | widths
        Lookup(widths, "bits", lambda value: AUTO if value == AUTO else check_bits(value))
    except InvalidArgument as error:
        raise typer.BadParameter(str(error)) from None
    return densities, widths


def _refuse_conflicts(
    lossless: bool,
    density: str | None,
    bits: str | None,
    lam: str | None,
    target_loss: str | None,
    model: str | None,
    data: str | None,
) -> None:
    """Options that cannot stand together, or not alone."""
    if lossless:
        given = {"--density": density, "--bits": bits, "--lambda": lam}
        given |= {"--target-loss": target_loss}
        if any(value is not None for value in given.values()):
            raise typer.BadParameter(f"--lossless excludes {', '.join(given)}")
    one_of = {"--bits": bits, "--lambda": lam, "--target-loss": target_loss}
    found = [name for name, value in one_of.items() if value is not None]
    if len(found) > 1:
        raise typer.BadParameter(f"{' and '.join(found)} exclude each other")
    if (model is None) != (data is None):
        raise typer.BadParameter("--model and --data belong together: give both or neither")
    if model is not None and lam is None and target_loss is None:
        raise typer.BadParameter("--model and --data need --lambda or --target-loss")


def _methods(quantizer: str, group_size: int | None, others: bool) -> Any:
    """The quantizers parsed and checked; ``others``: an option is there that excludes them."""
    if quantizer != "kmeans" and others:
        raise typer.BadParameter("--quantizer excludes --lossless, --lambda and --target-loss")
    if quantizer == "kmeans" and group_size is not None:
        raise typer.BadParameter("--group-size needs --quantizer: shared values have no scales")
    try:
        methods = parse(quantizer, str, "quantizer")
        from espalier.compress.plan import check_quantizer

        Lookup(methods, "quantizer", check_quantizer)
    except EspalierError as error:
        raise typer.BadParameter(str(error)) from None
    return {GLOBAL: "kmeans"} | methods if isinstance(methods, dict) else methods


def _lambdas(text: str | None) -> Any:
    if text is None:
        return None
    try:
        values = parse(text, float, "lambda")
        Lookup(values, "lambda", check_lambda)
    except InvalidArgument as error:
        raise typer.BadParameter(str(error)) from None
    return values


def _target(text: str, with_data: bool) -> tuple[float, bool]:
    """A limit, and whether it was written in percent."""
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    limit = value / 100 if percent and not with_data else value
    if not (0 < limit < math.inf):
        raise typer.BadParameter(f"--target-loss: {text!r} is not a number above 0, or percents")
    if not with_data and limit >= 1:
        raise typer.BadParameter(
            f"--target-loss: {text!r} is no relative error below 1; without --model and --data "
            "it limits the relative error of each weight"
        )
    return limit, percent


def _quantized(
    checkpoint: Checkpoint,
    model: str,
    data: str,
    lams: Any,
    target: tuple[float, bool] | None,
    densities: Any,
    report: Any,
) -> dict[str, Any]:
    """The tensors of the network that the checkpoint belongs to, quantized with its data."""
    from espalier.recipe.one_stage import quantize_checkpoint

    options: dict[str, Any] = {"lambda": lams}
    if target is not None:
        limit, percent = target
        options = {"max_error_rise" if percent else "max_loss_rise": limit}

    def progress(done: int, total: int, text: str) -> None:
        if report is not None:
            report("quantize", done, total, text)

    tensors, measured = quantize_checkpoint(
        checkpoint, model, data, options, density=densities, progress=progress
    )
    if report is not None and target is not None:
        console.note(f"lambda {measured['lambda']:.4g}, in {measured['evaluations']} evaluations")
    return tensors


def _width(text: str) -> int | str:
    return AUTO if text == AUTO else int(text)


def _as_json(checkpoint: Checkpoint, output: Path, summary: Summary) -> dict[str, Any]:
    return {
        "input": str(checkpoint.path),
        "output": str(output),
        "input_bytes": checkpoint.file_bytes,
        "output_bytes": summary.ledger.file_bytes,
        "ratio": checkpoint.file_bytes / summary.ledger.file_bytes,
        "tensors": [
            {
                "name": outcome.info.name,
                "shape": list(outcome.info.shape),
                "dtype": outcome.info.dtype,
                "density": outcome.density,
                "bits": outcome.bits,
                "lambda": outcome.lam,
                "values": row.levels or None,
                "kept_exactly_because": outcome.reason or None,
                "original_bytes": outcome.info.nbytes,
                "bytes": row.total_bytes,
                "relative_error": outcome.error.relative,
                "sqnr_db": outcome.error.sqnr_db,
                "max_abs_error": outcome.error.max_abs,
            }
            for outcome, row in zip(summary.outcomes, summary.ledger.rows, strict=True)
        ],
        "skipped": dict(summary.skipped),
    }


def _print(checkpoint: Checkpoint, output: Path, summary: Summary) -> None:
    rows = []
    exact = []
    for outcome, row in zip(summary.outcomes, summary.ledger.rows, strict=True):
        if outcome.exact:
            exact.append((outcome, row))
            continue
        error = outcome.error
        rows.append(
            [
                outcome.info.name,
                "x".join(map(str, outcome.info.shape)),
                f"{100 * row.stored / max(row.elements, 1):.1f}",
                str(row.levels or "exact"),
                console.size(outcome.info.nbytes),
                console.size(row.total_bytes),
                f"{error.relative:.2e}",
                "-" if math.isinf(error.sqnr_db) else f"{error.sqnr_db:.1f}",
                f"{error.max_abs:.2e}",
            ]
        )
    columns = ["tensor", "shape", "keep %", "values", "bytes before", "after"]
    columns += ["relative error", "SQNR dB", "max error"]
    if rows:
        console.print_table("Pruned or shared", columns, rows)
    if exact:
        console.print_table(
            "Kept exactly",
            ["tensor", "shape", "bytes before", "after", ""],
            [
                [
                    outcome.info.name,
                    "x".join(map(str, outcome.info.shape)) or "scalar",
                    console.size(outcome.info.nbytes),
                    console.size(row.total_bytes),
                    outcome.reason,
                ]
                for outcome, row in exact
            ],
        )
    before, after = checkpoint.file_bytes, summary.ledger.file_bytes
    typer.echo(
        f"{checkpoint.path}: {console.size(before)} bytes\n{output}: {console.size(after)} bytes, "
        f"{console.percent(after, before)} of it, {console.ratio(before, after)} smaller"
    )
