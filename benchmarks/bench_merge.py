"""Layer merging (DeepRebirth): AlexNet, GoogLeNet and ResNet-50 before and after, timed in turn.

    python benchmarks/bench_merge.py

Writes ``benchmarks/results/merge.json``. Weights are random: times do not depend on them. GoogLeNet
is merged (streamline and branch, all blocks), and then factored too (Tucker-2) to the share of its
parameters that the paper keeps; AlexNet and ResNet-50 have streamline merging. Each result is timed
in turn with the original, in eager PyTorch, ``torch.compile`` and ONNX Runtime.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espalier import compare_speed, edits_of, factorize, merge, zoo
from espalier.analysis.machine import machine
from espalier.structure.cost import cost

SIZES = {"alexnet": 227, "googlenet": 224, "resnet50": 224}
WORK: dict[str, tuple[str, tuple[str, ...], float | None, float, float]] = {
    # network, parts, share of parameters that Tucker-2 leaves, bar in eager PyTorch, paper's figure
    "alexnet streamline": ("alexnet", ("exact", "streamline"), None, 1.5, 1.63),
    "resnet50 streamline": ("resnet50", ("exact", "streamline"), None, 1.3, 1.82),
    "googlenet merged": ("googlenet", ("exact", "streamline", "branch"), None, 3.09, 3.09),
    "googlenet merged, Tucker-2": (
        "googlenet",
        ("exact", "streamline", "branch"),
        11.99 / 23.77,
        5.0,
        6.13,
    ),
}
"""Li, Wang and Kong 2018, tables 2, 4 and 5; times on a Galaxy S5, sizes in MB."""


def changed(original: nn.Module, x: Tensor, parts: tuple[str, ...], kept: float | None) -> Any:
    """A copy of ``original`` with its layers merged, and factored too where ``kept`` is given."""
    result = copy.deepcopy(original)
    merge(result, x, parts=parts, start="random")
    if kept is not None:
        factorize(result, parameters=kept, method={"*": None, "conv": "tucker2"}, example=x)
    return result


def one(name: str, runtimes: list[str], batches: list[int], repeats: int) -> dict[str, Any]:
    """Measure one row of the table."""
    network, parts, kept, bar, paper = WORK[name]
    torch.manual_seed(0)
    original = getattr(zoo, network)().eval()
    x = torch.randn(1, 3, SIZES[network], SIZES[network])
    result = changed(original, x, parts, kept)
    before, after = cost(original, x), cost(result, x)
    speed = compare_speed(
        original, result, x, runtimes=runtimes, batches=batches, repeats=repeats
    ).to_json()
    eager = [row for row in speed["rows"] if (row["runtime"], row["batch"]) == ("eager", 1)]
    ratio = eager[0]["ratio"]["median"] if eager and eager[0]["ratio"] else None
    return {
        "work": name,
        "parts": parts,
        "bar": bar,
        "paper": paper,
        "eager_batch_1": ratio,
        "within": None if ratio is None else ratio >= bar,
        "macs": [before.macs, after.macs],
        "parameters": [before.parameters, after.parameters],
        "speed": speed,
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
        "--out", type=Path, default=Path(__file__).parent / "results" / "merge.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for name in arguments.work:
        rows.append(one(name, arguments.runtimes, arguments.batches, arguments.repeats))
        for row in rows[-1]["speed"]["rows"]:
            ratio = row["ratio"] or {"median": float("nan"), "low": 0, "high": 0}
            print(
                f"{name}, {row['runtime']}, batch {row['batch']}: {ratio['median']:.2f}x "
                f"({ratio['low']:.2f} to {ratio['high']:.2f}) {row['verdict']} {row['note']}",
                flush=True,
            )
    results = {"machine": machine(), "threads": arguments.threads, "rows": rows}
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
