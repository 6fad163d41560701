"""Structural edits: networks before and after, timed in turn.

    python benchmarks/bench_structure.py

Writes ``benchmarks/results/structure.json``. Weights are random: times do not depend on them.
GoogLeNet is merged (streamline and branch, all blocks), with as many outputs as before and with
so many of the merged branches' that it is as small as the paper's, and then factored too (Tucker-2,
and SVD where there is no kernel): the first to the share of its parameters that the paper keeps,
the second to half of its multiply-accumulates, which takes a little more. AlexNet and ResNet-50
have streamline merging. ResNet-50 with its batch norms folded alone; filters of ResNet-20 and
VGG-16 removed; VGG-16 factored. Each result is timed in turn with the original, in eager PyTorch,
``torch.compile`` and ONNX Runtime, at batch 1 and 32. With ``--runtimes packed`` among them both
run after ``espalier.accelerate`` as well, and the original as it is beside the result after that.
Rows of work that is not asked for stay.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espalier import (
    accelerate,
    compare_speed,
    edits_of,
    factorize,
    fold_batch_norms,
    merge,
    prune_filters,
    zoo,
)
from espalier.analysis.machine import machine
from espalier.structure.cost import cost
from espalier.timing import Clock, compare

SIZES = {"alexnet": 227, "googlenet": 224, "resnet50": 224, "resnet20": 32, "vgg16_cifar": 32}
ALL, STREAMLINE = ("exact", "streamline", "branch"), ("exact", "streamline")
NARROW = 0.417
"""Leaves 89 % of GoogLeNet's parameters: as the paper's merged network has, 23.77 of 26.72 MB."""
TUCKER = 11.99 / 23.77
"""MB of the paper's merged network with Tucker-2 over those without."""
HALF = 0.5
"""Of the merged network's multiply-accumulates; a little under the paper's share of the MB."""

Change = Callable[[nn.Module, Tensor], object]


@dataclass(frozen=True)
class Work:
    """A row of the table: what is done to a network, and what is asked of it.

    ``bar``: times as fast, in eager PyTorch at batch 1. ``paper``: Li, Wang and Kong 2018, tables
    2, 4 and 5, on a Galaxy S5.
    """

    network: str
    change: Change
    bar: float | None = None
    paper: float | None = None


def merged(parts: tuple[str, ...], width: float = 1.0, **budget: float) -> Change:
    """``width``: share of the outputs of merged branches that stay. ``budget``: of the factors that
    the merged network is then written as, if it is."""

    def change(model: nn.Module, x: Tensor) -> None:
        merge(model, x, parts=parts, start="random", width=width)
        if budget:
            factorize(model, example=x, **budget)

    return change


WORK = {
    "alexnet": Work("alexnet", merged(STREAMLINE), 1.5, 1.63),
    "resnet50": Work("resnet50", merged(STREAMLINE), 1.3, 1.82),
    "resnet50-folded": Work("resnet50", lambda model, _: fold_batch_norms(model)),
    "googlenet": Work("googlenet", merged(ALL), 3.09, 3.09),
    "googlenet-narrow": Work("googlenet", merged(ALL, NARROW), 3.09, 3.09),
    "googlenet-tucker": Work("googlenet", merged(ALL, parameters=TUCKER), 5.0, 6.13),
    "googlenet-narrow-tucker": Work("googlenet", merged(ALL, NARROW, macs=HALF), 5.0, 6.13),
    "resnet20-filters": Work("resnet20", lambda m, x: prune_filters(m, macs=0.75, example=x)),
    "vgg16-filters": Work("vgg16_cifar", lambda m, x: prune_filters(m, macs=0.5, example=x)),
    "vgg16-factors": Work("vgg16_cifar", lambda m, x: factorize(m, macs=0.5, example=x)),
}


@torch.no_grad()
def accelerated(
    original: nn.Module, result: nn.Module, x: Tensor, batches: list[int], repeats: int
) -> list[dict[str, Any]]:
    """The original as PyTorch runs it beside the result after ``espalier.accelerate``."""
    rows = []
    for batch in batches:
        images = x.repeat(batch, 1, 1, 1)
        quick = copy.deepcopy(result)
        accelerate(quick, images, batches=[batch])
        found = compare(
            lambda: original(images),  # noqa: B023
            lambda: quick(images),  # noqa: B023
            Clock(),
            repeats=repeats,
            warmup=2,
            seconds=20.0,
        )
        rows.append({"batch": batch, **asdict(found)})
    return rows


def one(name: str, runtimes: list[str], batches: list[int], repeats: int) -> dict[str, Any]:
    """Measure one row of the table."""
    work = WORK[name]
    torch.manual_seed(0)
    original = getattr(zoo, work.network)().eval()
    x = torch.randn(1, 3, SIZES[work.network], SIZES[work.network])
    result = copy.deepcopy(original)
    work.change(result, x)
    before, after = cost(original, x), cost(result, x)
    speed = compare_speed(
        original, result, x, runtimes=runtimes, batches=batches, repeats=repeats
    ).to_json()
    eager = [row for row in speed["rows"] if (row["runtime"], row["batch"]) == ("eager", 1)]
    ratio = eager[0]["ratio"]["median"] if eager and eager[0]["ratio"] else None
    return {
        "work": name,
        "bar": work.bar,
        "paper": work.paper,
        "eager_batch_1": ratio,
        "within": None if ratio is None or work.bar is None else ratio >= work.bar,
        "macs": [before.macs, after.macs],
        "parameters": [before.parameters, after.parameters],
        "speed": speed,
        "accelerated": accelerated(original, result, x, batches, repeats)
        if "packed" in runtimes
        else None,
        "machine": machine(),
        "edits": [line for edit in edits_of(result) for line in edit.describe()],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", nargs="+", default=list(WORK), choices=list(WORK))
    parser.add_argument("--runtimes", nargs="+", default=["eager", "compile", "onnxruntime"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "structure.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kept = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else []
    rows = {row["work"]: row for row in kept}
    for name in arguments.work:
        rows[name] = one(name, arguments.runtimes, arguments.batches, arguments.repeats)
        for row in rows[name]["speed"]["rows"]:
            ratio = row["ratio"] or {"median": float("nan"), "low": 0, "high": 0}
            print(
                f"{name}, {row['runtime']}, batch {row['batch']}: {ratio['median']:.2f}x "
                f"({ratio['low']:.2f} to {ratio['high']:.2f}) {row['verdict']} {row['note']}",
                flush=True,
            )
        results = {"rows": [rows[name] for name in WORK if name in rows]}
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
