"""Layers from their compressed weights beside dense ones and sparse libraries, timed in turn.

    python benchmarks/bench_runtime.py

Writes ``benchmarks/results/runtime.json``. Weights are random: their values do not change times.
*Linear*: the layer of 4096 x 4096 with 9% of its weights, and fc6 to fc8 of AlexNet and VGG-16 with
the densities of Deep Compression (tables 4 and 5), 32 values each; straight from the codes
(``packed``, and ``skipping`` zeros of the input), ``torch.sparse_csr`` with int32 indices, and
SciPy's CSR, each in turn with PyTorch's dense layer. *Convolutions*: AlexNet's with the paper's
densities and 256 values. *Networks*: whole ones before and after ``espalier.accelerate``, which is
free to leave layers dense; these as they are, not laid out anew (``prepack=False``). *Prepacked*:
networks without a zero, and sparse ones, where they may be. The bars are for batch 1 and two
threads. Parts not asked for stay.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import scipy.sparse
import torch
from torch import Tensor, nn

import espalier
from espalier import zoo
from espalier.analysis.machine import machine
from espalier.modes import evaluating
from espalier.runtime.candidates import LAYERS
from espalier.runtime.convolution import PackedConv
from espalier.runtime.layers import EXPANDED, PACKED, SKIPPING, PackedLayer, PackedLinear
from espalier.runtime.packed import PackedMatrix
from espalier.timing import Clock, Comparison, compare

MOST_BYTES = 4_000_000
NONZERO_INPUTS = 0.35
"""Share of nonzeros in the input of ``skipping``, as behind a ReLU; others have no zero."""
PAPER = {1: "3x on average (figure 9, CPU)", 64: "mostly slower (figure 9, CPU)"}


@dataclass(frozen=True)
class Linear:
    """A layer of the table. ``bars``: times as fast as dense, at batch 1."""

    outputs: int
    inputs: int
    density: float
    bars: tuple[tuple[str, float], ...] = ()


LINEAR = {
    "4096": Linear(4096, 4096, 0.09, ((PACKED, 2.5), ("torch.sparse_csr", 4.0))),
    "alexnet fc6": Linear(4096, 9216, 0.09),
    "alexnet fc7": Linear(4096, 4096, 0.09),
    "alexnet fc8": Linear(1000, 4096, 0.25),
    "vgg16 fc6": Linear(4096, 25088, 0.04),
    "vgg16 fc7": Linear(4096, 4096, 0.04),
    "vgg16 fc8": Linear(1000, 4096, 0.23),
}

ALEXNET = {"conv1": 0.84, "conv2": 0.38, "conv3": 0.35, "conv4": 0.37, "conv5": 0.37}
ALEXNET_LINEAR = {"fc6": 0.09, "fc7": 0.09, "fc8": 0.25}


@dataclass(frozen=True)
class Network:
    """A whole network: how it is built, its input, and the densities of its layers."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    density: Any = None
    bits: Any = None


CODES = {"conv": 8, "linear": 5}
NETWORKS = {
    "alexnet": Network(zoo.alexnet, (3, 227, 227), ALEXNET | ALEXNET_LINEAR, CODES),
    "lenet300": Network(zoo.lenet300, (1, 28, 28), {"fc1": 0.08, "fc2": 0.09, "fc3": 0.26}, 6),
    "lenet5": Network(
        zoo.lenet5, (1, 28, 28), {"conv1": 0.66, "conv2": 0.12, "fc1": 0.08, "fc2": 0.19}, CODES
    ),
    "resnet20": Network(zoo.resnet20, (3, 32, 32), 0.2, 5),
    "resnet50": Network(zoo.resnet50, (3, 224, 224), 0.2, 6),
    "vgg16_cifar": Network(zoo.vgg16_cifar, (3, 32, 32), 0.1, 6),
}


def folded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The same network with its batch norms folded."""

    def made() -> nn.Module:
        model = make().eval()
        espalier.fold_batch_norms(model)
        return model

    return made


SPARSE_TOO = ("vgg16_cifar",)
"""Of the sparse networks: measured with their dense layers laid out too."""
DENSE_NETWORKS = {
    "alexnet, dense": Network(zoo.alexnet, (3, 227, 227)),
    "mobilenet_v2, dense, folded": Network(folded(zoo.mobilenet_v2), (3, 224, 224)),
    "resnet20, dense, folded": Network(folded(zoo.resnet20), (3, 32, 32)),
    "resnet50, dense": Network(zoo.resnet50, (3, 224, 224)),
    "resnet50, dense, folded": Network(folded(zoo.resnet50), (3, 224, 224)),
    "vgg16_cifar, dense, folded": Network(folded(zoo.vgg16_cifar), (3, 32, 32)),
}


def sparse(layer: nn.Module, density: float, levels: int) -> nn.Module:
    """``layer`` with that share of nonzeros, of so many values."""
    weight = layer.weight.data
    values = torch.randn(levels) * weight.std()
    kept = torch.rand(weight.shape) < density
    layer.weight.data = values[torch.randint(levels, weight.shape)] * kept
    return layer.eval()


def beside(dense: Callable[[], object], ours: Callable[[], object], seconds: float) -> Comparison:
    return compare(dense, ours, Clock(), repeats=200, warmup=5, seconds=seconds)


def linear_row(name: str, batch: int, threads: int, seconds: float) -> dict[str, Any]:
    work = LINEAR[name]
    layer = sparse(nn.Linear(work.inputs, work.outputs), work.density, 32)
    packed = PackedLinear(PackedMatrix.of(layer.weight), layer)
    packed.expand()
    packed.skip()
    theirs = scipy.sparse.csr_matrix(layer.weight.detach().numpy())
    bias = layer.bias.detach().numpy()
    x = torch.randn(batch, work.inputs)
    flat = x.numpy()

    def scipy_csr() -> object:
        return theirs @ flat[0] + bias if batch == 1 else (theirs @ flat.T).T + bias

    ways: dict[str, tuple[Tensor, Callable[[], object]]] = {
        PACKED: (x, lambda: packed.compute(x, PACKED)),
        "torch.sparse_csr": (x, lambda: packed.compute(x, EXPANDED)),
        "scipy.sparse.csr": (x, scipy_csr),
    }
    if batch == 1:
        zeros = x * (torch.rand(x.shape) < NONZERO_INPUTS)
        ways[SKIPPING] = zeros, lambda: packed.compute(zeros, SKIPPING)
    held = packed.held()
    size = {
        PACKED: held[id(packed.forms[PACKED])],
        SKIPPING: held[id(packed.forms[SKIPPING])],
        "torch.sparse_csr": held[id(packed.forms[EXPANDED])],
        "scipy.sparse.csr": theirs.data.nbytes + theirs.indices.nbytes + theirs.indptr.nbytes,
    }
    row: dict[str, Any] = {
        "layer": name,
        "shape": [work.outputs, work.inputs],
        "density": work.density,
        "batch": batch,
        "threads": threads,
        "dense_bytes": layer.weight.nbytes,
        "paper": PAPER.get(batch) if " fc" in name else None,
        "ways": {},
    }
    for way, (given, call) in ways.items():
        error = float((torch.as_tensor(call()) - layer(given)).abs().max())
        found = beside(lambda: layer(given), call, seconds)  # noqa: B023
        row["ways"][way] = asdict(found) | {"weight_bytes": size[way], "largest_error": error}
    row["bars"] = [
        {"way": way, "bar": bar, "reached": row["ways"][way]["ratio"]["median"] >= bar}
        for way, bar in work.bars
        if batch == 1 and threads == 2
    ]
    if work.bars:
        row["within_memory"] = size[PACKED] < MOST_BYTES
    return row


def convolution_rows(batch: int, threads: int, seconds: float) -> list[dict[str, Any]]:
    """AlexNet's convolutions, with what goes into them."""
    model = zoo.alexnet().eval()
    seen: dict[str, Tensor] = {}
    for name in ALEXNET:
        layer = model.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, x, name=name: seen.__setitem__(name, x[0]))
    model(torch.randn(batch, 3, 227, 227))
    rows = []
    for name, density in ALEXNET.items():
        layer = sparse(model.get_submodule(name), density, 256)
        layer._forward_pre_hooks.clear()
        packed = PackedConv(
            PackedMatrix.of(PackedConv.rows(layer.weight.detach(), layer.groups)), layer
        )
        x = seen[name]
        found = beside(lambda: layer(x), lambda: packed.compute(x, PACKED), seconds)  # noqa: B023
        rows.append(
            {
                "layer": f"alexnet {name}",
                "density": density,
                "batch": batch,
                "threads": threads,
                "dense_bytes": layer.weight.nbytes,
                "weight_bytes": packed.weight_bytes,
                **asdict(found),
            }
        )
    return rows


def network_row(
    name: str, batches: list[int], threads: int, seconds: float, prepack: bool
) -> dict[str, Any]:
    """A network as it was beside what ``accelerate`` makes of it, timed anew after its choices."""
    work = (NETWORKS | DENSE_NETWORKS)[name]
    original = work.make()
    if work.density is not None:
        for module in original.modules():
            if type(module) in LAYERS:
                nn.init.normal_(module.weight, std=0.05)
        espalier.prune(original, density=work.density)
        espalier.share(original, bits=work.bits)
        espalier.finalize(original)
    result = work.make()
    result.load_state_dict(original.state_dict())
    example = torch.randn(1, *work.shape)
    report = espalier.accelerate(result, example, batches=batches, prepack=prepack)
    times = []
    with evaluating(original):
        for batch in batches:
            x = torch.randn(batch, *work.shape)
            error = float((result(x) - original(x)).abs().max())
            found = beside(lambda: original(x), lambda: result(x), seconds)  # noqa: B023
            times.append(
                {
                    "batch": batch,
                    **asdict(found),
                    "largest_error": error,
                    "largest_output": float(original(x).abs().max()),
                    "within_1.05": found.ratio.median >= 1 / 1.05,
                }
            )
    packed = [m for m in result.modules() if isinstance(m, PackedLayer)]
    return {
        "network": name,
        "threads": threads,
        "times": times,
        "dense_bytes": report.dense_bytes,
        "weight_bytes": report.weight_bytes,
        "packed_layers": len(packed),
        "dense_layers": len(report.skipped),
        "prepacked_layers": len(report.prepacked),
        "with_activation": sum(row.after != "" for row in report.prepacked),
        "layers": [
            {
                "name": row.name,
                "density": row.density,
                "dense_bytes": row.dense_bytes,
                "weight_bytes": row.weight_bytes,
                "choices": {c.batch: [c.form, round(c.ratio, 3)] for c in row.choices},
            }
            for row in report.layers
        ],
        "skipped": {skipped.name: skipped.reason for skipped in report.skipped},
    }


def measured(part: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one part, told as they come."""
    rows: list[dict[str, Any]] = []

    def tell(row: dict[str, Any], label: str, ratios: dict[str, float]) -> None:
        shown = ", ".join(f"{way} {ratio:.2f}x" for way, ratio in ratios.items())
        print(f"{label}, {row['threads']} threads: {shown}", flush=True)
        rows.append(row)

    for threads in arguments.threads:
        torch.set_num_threads(threads)
        if part == "linear":
            for name in LINEAR:
                for batch in (1, 64):
                    row = linear_row(name, batch, threads, arguments.seconds)
                    ways = {way: found["ratio"]["median"] for way, found in row["ways"].items()}
                    tell(row, f"{name}, batch {batch}", ways)
        elif part == "convolutions":
            for batch in (1, 8):
                for row in convolution_rows(batch, threads, arguments.seconds):
                    label = f"{row['layer']}, batch {batch}"
                    tell(row, label, {PACKED: row["ratio"]["median"]})
        else:
            prepack = part == "prepacked"
            for name in [*DENSE_NETWORKS, *SPARSE_TOO] if prepack else arguments.networks:
                row = network_row(name, arguments.batches, threads, arguments.seconds, prepack)
                ratios = {f"batch {t['batch']}": t["ratio"]["median"] for t in row["times"]}
                tell(row, f"{name}, {row['packed_layers']} layers packed", ratios)
    return rows


def line(*cells: object) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def shown(spread: dict[str, float] | None) -> str:
    return "" if spread is None else f"{spread['median']:.2f}x"


def table(results: dict[str, Any], threads: int) -> str:
    """The results of so many threads as tables of Markdown."""

    def rows(part: str) -> list[dict[str, Any]]:
        found = results.get(part, {"rows": []})["rows"]
        return [row for row in found if row["threads"] == threads]

    ways = (PACKED, SKIPPING, "torch.sparse_csr", "scipy.sparse.csr")
    lines = [line("layer", "kept", "batch", "dense, ms", *ways), line(*["---"] * 8)]
    for row in rows("linear"):
        dense = row["ways"][PACKED]["first"]["median"]
        ratios = [shown(row["ways"].get(way, {}).get("ratio")) for way in ways]
        kept = f"{100 * row['density']:.0f}%"
        lines.append(line(row["layer"], kept, row["batch"], f"{dense:.2f}", *ratios))
    lines += ["", line("layer", "kept", "batch", "dense, ms", PACKED), line(*["---"] * 5)]
    for row in rows("convolutions"):
        kept, dense = f"{100 * row['density']:.0f}%", f"{row['first']['median']:.2f}"
        lines.append(line(row["layer"], kept, row["batch"], dense, shown(row["ratio"])))
    lines += ["", line("network", "batch", "ms", "accelerated", "weights, MB"), line(*["---"] * 5)]
    for row in [*rows("networks"), *rows("prepacked")]:
        size = f"{row['dense_bytes'] / 1e6:.2f} → {row['weight_bytes'] / 1e6:.2f}"
        for time in row["times"]:
            before = f"{time['first']['median']:.2f}"
            lines.append(line(row["network"], time["batch"], before, shown(time["ratio"]), size))
    return "\n".join(lines)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parts = ["linear", "convolutions", "networks", "prepacked"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16], help="of networks")
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--seconds", type=float, default=1.0, help="of one comparison")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "runtime.json"
    )
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if arguments.table:
        print(*(table(results, n) for n in arguments.threads), sep="\n\n")
        return
    for part in arguments.parts:
        results[part] = {"rows": measured(part, arguments), "machine": machine()}
        results = {name: results[name] for name in parts if name in results}
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
