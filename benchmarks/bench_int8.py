"""8-bit integers against floats in ONNX Runtime, on the zoo's networks, timed in turn.

    python benchmarks/bench_int8.py

Writes ``benchmarks/results/int8.json``, and a table beside it. Weights are random: times do not
depend on them. Batch norms are folded, weights have 8 bits for each output channel, activations 8
bits. ``layers``: only what enters the layers is rounded; ``throughout``: sums and concatenations
too. The ratio is the float network's time by the integers': above 1 the integers are faster. Both
are the files that ``espalier.export_onnx`` writes, with all graph optimisations of the runtime.
Networks that are not asked for stay.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import espalier
from espalier import zoo
from espalier.analysis.machine import machine
from espalier.export.onnx_session import session
from espalier.timing import Clock, compare

SHAPES = {
    "lenet300": (1, 28, 28),
    "lenet5": (1, 28, 28),
    "resnet20": (3, 32, 32),
    "resnet56": (3, 32, 32),
    "vgg16_cifar": (3, 32, 32),
    "squeezenet": (3, 224, 224),
    "mobilenet_v2": (3, 224, 224),
    "alexnet": (3, 227, 227),
    "googlenet": (3, 224, 224),
    "resnet18": (3, 224, 224),
    "resnet50": (3, 224, 224),
}
CALIBRATION = 4


def files(name: str, folder: Path) -> tuple[dict[str, Path], Tensor]:
    """The network as ONNX files: float, and both ways of integers; and one input."""
    torch.manual_seed(0)
    model = getattr(zoo, name)().eval()
    x = torch.randn(CALIBRATION, *SHAPES[name])
    paths = {kind: folder / f"{kind}.onnx" for kind in ("float", "layers", "throughout")}
    espalier.fold_batch_norms(model)
    espalier.export_onnx(model, x[:1], paths["float"], weights="float")
    ranges = {"calibration": "minmax"}
    espalier.quantize(
        model,
        8,
        batches=[x],
        activations=8,
        activation_options=ranges,
        correct_bias=False,
        **ranges,
    )
    espalier.export_onnx(model, x[:1], paths["layers"], weights="int8")
    espalier.export_onnx(model, x[:1], paths["throughout"], weights="int8", batches=[x])
    return paths, x[:1]


def one(name: str, batches: list[int], repeats: int, seconds: float) -> dict[str, Any]:
    """Measure one network."""
    with TemporaryDirectory() as folder:
        paths, x = files(name, Path(folder))
        sizes = {kind: path.stat().st_size for kind, path in paths.items()}
        runs = {kind: session(path.read_bytes()) for kind, path in paths.items()}
    rows = []
    for batch in batches:
        feed = {"input": x.expand(batch, *x.shape[1:]).contiguous().numpy()}
        for kind in ("layers", "throughout"):
            found = compare(
                lambda: runs["float"].run(None, feed),  # noqa: B023
                lambda: runs[kind].run(None, feed),  # noqa: B023
                Clock(),
                repeats=repeats,
                warmup=3,
                seconds=seconds,
            )
            rows.append({"batch": batch, "kind": kind} | asdict(found))
            print(f"{name}, batch {batch}, {kind}: {found.ratio.median:.2f}x", flush=True)
    packages = ("espalier", "torch", "onnx", "onnxruntime")
    return {
        "network": name,
        "file_bytes": sizes,
        "rows": rows,
        "threads": torch.get_num_threads(),
        "machine": machine(packages),
    }


def table(networks: list[dict[str, Any]]) -> str:
    """All ratios in Markdown, with quartiles."""
    lines = ["| network | batch | float, ms | only layers in int8 | int8 throughout | bytes |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for network in networks:
        share = network["file_bytes"]["throughout"] / network["file_bytes"]["float"]
        for batch in sorted({row["batch"] for row in network["rows"]}):
            rows = {row["kind"]: row for row in network["rows"] if row["batch"] == batch}
            ratios = [
                "{median:.2f}x ({low:.2f} to {high:.2f})".format(**rows[kind]["ratio"])
                for kind in ("layers", "throughout")
            ]
            ms = rows["throughout"]["first"]["median"]
            cells = [network["network"], str(batch), f"{ms:.3f}", *ratios, f"{share:.0%}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=20.0, help="at most, for one comparison")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "int8.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kept = json.loads(arguments.out.read_text())["networks"] if arguments.out.exists() else []
    networks = {row["network"]: row for row in kept}
    for name in arguments.networks:
        networks[name] = one(name, arguments.batches, arguments.repeats, arguments.seconds)
        results = {"networks": [networks[n] for n in SHAPES if n in networks]}
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(table(results["networks"]))


if __name__ == "__main__":
    main()
