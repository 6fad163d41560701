"""``espalier convert``: networks from one program's format to another's."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from espalier.cli import console, networks
from espalier.errors import InvalidArgument

if TYPE_CHECKING:
    from espalier.interop import Checkpoint

ESP, ONNX, COREML = ".esp", ".onnx", ".mlpackage"
INT8 = "int8"


def command(
    source: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="An .esp file, a checkpoint, a folder, or .net."),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUTPUT",
            help=".onnx, .mlpackage, .safetensors, .pt, .npz, or a folder; from .net: .esp.",
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="KIND", help="In .onnx: codebook, float or int8.", show_default="codebook"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PKG.MOD:FUNCTION",
            help="Builds the network.",
            show_default="the graph in the file",
        ),
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(metavar="C,H,W", help="Of one input, without the batch; --data gives it too."),
    ] = None,
    inputs: Annotated[
        str | None,
        typer.Option(metavar="PKG.MOD:FUNCTION", help="Gives inputs; in place of --input-shape."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PKG.MOD:FUNCTION",
            help="For int8: gives data, as a recipe's does; of the training samples some are used.",
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many of --data are used.")
    ] = 512,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of .mlpackage: the oldest system, iOS18 or iOS16.",
            show_default="iOS18",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of .mlpackage: float32, or float16 for the Neural Engine.",
            show_default="float32",
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write such a folder: its shards, config, tokenizer."),
    ] = None,
    prototxt: Annotated[
        Path | None,
        typer.Option(metavar="FILE.prototxt", help="Of .net: its Caffe description."),
    ] = None,
    coder: console.Coder = "auto",
    effort: console.Effort = "default",
    jobs: console.Jobs = None,
    force: console.Force = False,
    as_json: console.Json = False,
    quiet: console.Quiet = False,
) -> None:
    """Convert a network for another program, or from one.

    To .onnx, with weights as small integers that any runtime expands when it loads
    the file: from an .esp file that was made from .onnx, or with --model. With
    --weights int8 and --data the network computes with 8-bit integers.
    To .mlpackage (Core ML), with --model: masks and codebooks as they are.
    To a plain checkpoint: from an .esp file or any checkpoint.
    From .net, the original Deep Compression, to .esp: codes and codebooks stay as they are.

    [bold]Example[/]

    espalier convert resnet20.esp -o resnet20.onnx --model espalier.zoo:resnet20
    --input-shape 3,32,32

    espalier convert compressed_SqueezeNet.net --prototxt SqueezeNet_deploy.prototxt
    -o squeezenet.esp
    """
    suffix = output.suffix.lower()
    _refuse(suffix, ONNX, {"--weights": weights, "--data": data})
    _refuse(suffix, COREML, {"--target": target, "--precision": precision})
    if suffix not in (ONNX, COREML):
        given = {"--model": model, "--input-shape": input_shape, "--inputs": inputs}
        _refuse(suffix, f"{ONNX} and {COREML}", given)
    if suffix:
        _refuse(suffix, "a folder", {"--like": None if like is None else str(like)})
    if prototxt is not None or source.suffix.lower() == ".net":
        if prototxt is None:
            raise typer.BadParameter("a file of the original Deep Compression needs --prototxt")
        found = _from_deep_compression(source, prototxt, output, coder, effort, force)
    elif suffix == ESP:
        raise InvalidArgument(f"{output}: an .esp file is made by 'espalier compress {source}'")
    elif suffix == COREML:
        if model is None:
            raise typer.BadParameter("Core ML is made from the network in PyTorch: give --model")
        example = networks.example(input_shape, inputs)
        how = {"target": target or "iOS18", "precision": precision or "float32"}
        found = _to_coreml(source, output, model, example, how, force)
    elif suffix == ONNX and (source.suffix.lower() == ESP or model is not None):
        kind = "codebook" if weights is None else weights
        if data is not None and kind != INT8:
            raise typer.BadParameter("--data goes with --weights int8")
        batches = None if data is None else networks.batches(data, samples)
        if model is None:
            if input_shape or inputs:
                raise typer.BadParameter("--input-shape and --inputs go with --model")
            found = _from_graph(source, output, kind, batches, force)
        else:
            shaped = bool(input_shape or inputs)
            if batches and not shaped:
                example = [batches[0][:1]]
            elif kind == INT8 and not shaped:
                raise typer.BadParameter(
                    "int8 needs samples: give --data; where activations are quantized in the file"
                    " already, --input-shape or --inputs"
                )
            else:
                example = networks.example(input_shape, inputs)
            found = _from_network(source, output, kind, model, example, batches, force)
    else:
        found = _to_checkpoint(source, output, like, jobs, force, quiet)
    _show(source, output, found, as_json, quiet)


def _refuse(suffix: str, wanted: str, given: dict[str, str | None]) -> None:
    """Refuse options that would do nothing for an output of this suffix."""
    for name, value in given.items():
        if value is not None and suffix != wanted:
            raise typer.BadParameter(f"{name} is for {wanted}, not for {suffix or 'a folder'}")


def _from_deep_compression(
    source: Path, prototxt: Path, output: Path, coder: str, effort: str, force: bool
) -> dict[str, Any]:
    from espalier.container import write
    from espalier.interop.deep_compression import read_deep_compression

    found = read_deep_compression(source, prototxt)
    ledger = write(found.model, output, coder=coder, effort=effort, force=force)
    return {
        "ratio": source.stat().st_size / ledger.file_bytes,
        "original_bytes": ledger.original_bytes,
        "tensors": len(ledger),
        "entries": found.entries,
        "fillers": found.fillers,
    }


def _from_graph(
    source: Path, output: Path, kind: str, batches: list[Any] | None, force: bool
) -> dict[str, Any]:
    """By the ONNX graph that is in the file."""
    from espalier.container import Reader
    from espalier.export.onnx import convert_graph

    with Reader(source) as reader:
        found = convert_graph(reader, output, weights=kind, batches=batches, force=force)
    return {"weights": dict(found.forms)}


def _from_network(
    source: Path,
    output: Path,
    kind: str,
    model: str,
    example: list[Any],
    batches: list[Any] | None,
    force: bool,
) -> dict[str, Any]:
    """By the network in PyTorch; one that is not quantized is so first, where it has to be."""
    from espalier.export.onnx import export_onnx
    from espalier.quantization.quantize import quantize
    from espalier.quantized_inputs import input_grids
    from espalier.structure.fold import fold_batch_norms

    network = networks.loaded(model, source)
    if kind == INT8 and not input_grids(network):
        if batches is None:
            raise InvalidArgument(
                "int8 needs samples to see the ranges of activations: give --data"
            )
        fold_batch_norms(network.eval())
        quantize(network, bits=8, activations=8, batches=batches)
    found = export_onnx(network, example, output, weights=kind, batches=batches, force=force)
    return {"weights": dict(found.forms)}


def _to_coreml(
    source: Path, output: Path, model: str, example: list[Any], how: dict[str, str], force: bool
) -> dict[str, Any]:
    from espalier.export.coreml import export_coreml

    network = networks.loaded(model, source)
    found = export_coreml(network, example, output, force=force, **how)
    return {"weights": dict(found.forms)}


def _to_checkpoint(
    source: Path, output: Path, like: Path | None, jobs: int | None, force: bool, quiet: bool
) -> dict[str, Any]:
    from espalier.container import Reader
    from espalier.interop import content_of, content_of_checkpoint, open_checkpoint
    from espalier.interop import like as written_like
    from espalier.parallel import job_count

    what, threads = f"Converting {console.short(str(source))}", job_count(jobs)
    with contextlib.ExitStack() as stack:
        if source.suffix.lower() == ESP:
            content = content_of(stack.enter_context(Reader(source)), jobs=threads)
        else:
            checkpoint = stack.enter_context(open_checkpoint(source))
            content = content_of_checkpoint(checkpoint, jobs=threads)
            for name, reason in checkpoint.skipped.items():
                console.note(f"{name!r} is left out: {reason}")
        if like is not None:
            content = written_like(content, stack.enter_context(_folder(like)))
        console.save(what, content, output, force, quiet)
    return {"tensors": len(content.infos) + len(content.aliases)}


def _folder(path: Path) -> Checkpoint:
    from espalier.interop import open_checkpoint

    if not path.is_dir():
        raise InvalidArgument(f"--like: {path} is no folder")
    return open_checkpoint(path)


def _show(source: Path, output: Path, found: dict[str, Any], as_json: bool, quiet: bool) -> None:
    before, after = console.bytes_of(source), console.bytes_of(output)
    if as_json:
        said = {
            "input": str(source),
            "output": str(output),
            "input_bytes": before,
            "output_bytes": after,
        }
        console.print_json(said | found)
    elif not quiet:
        typer.echo(
            f"{source}: {console.size(before)} bytes{_input_said(found)}\n"
            f"{output}: {console.size(after)} bytes{_output_said(found, before, after)}"
        )


def _input_said(found: dict[str, Any]) -> str:
    if "fillers" not in found:
        return ""
    return (
        f"; of {console.size(found['entries'])} entries {console.size(found['fillers'])} were "
        "fillers, which disappear"
    )


def _output_said(found: dict[str, Any], before: int, after: int) -> str:
    said = f", {console.percent(after, before)} of it" if "fillers" in found else ""
    if "tensors" in found:
        said += f", {found['tensors']} tensors"
    if "weights" in found:
        kinds = list(found["weights"].values())
        each = [f"{kinds.count(kind)} by {kind}" for kind in sorted(set(kinds))]
        said += f", weights: {', '.join(each) or 'all plain'}"
    return said
