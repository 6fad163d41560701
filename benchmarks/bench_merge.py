"""Layer merging (DeepRebirth): AlexNet, GoogLeNet and ResNet-50 before and after, timed in turn.

    python benchmarks/bench_merge.py

Writes ``benchmarks/results/merge.json``. Weights are random: times do not depend on them. GoogLeNet
is merged (streamline and branch, all blocks), with as many outputs as before and with half of those
of the merged branches, and then factored too (Tucker-2, and SVD where there is no kernel) to the
share of its parameters that the paper keeps; AlexNet and ResNet-50 have streamline merging. Each
result is timed in turn with the original, in eager PyTorch, ``torch.compile`` and ONNX Runtime.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from espalier import compare_speed, edits_of, factorize, merge, zoo
from espalier.analysis.machine import machine
from espalier.structure.cost import cost

SIZES = {"alexnet": 227, "googlenet": 224, "resnet50": 224}
ALL, STREAMLINE = ("exact", "streamline", "branch"), ("exact", "streamline")


@dataclass(frozen=True)
class Work:
    """A row of the table: what is done to a network, and what is asked of it.

    ``width``: share of the outputs of merged branches that stay. ``kept``: share of the merged
    network's parameters that Tucker-2 leaves. ``bar``: times as fast, in eager PyTorch at batch 1.
    ``paper``: Li, Wang and Kong 2018, tables 2, 4 and 5, on a Galaxy S5.
    """

    network: str
    parts: tuple[str, ...]
    bar: float
    paper: float
    width: float = 1.0
    kept: float | None = None


TUCKER = 11.99 / 23.77
"""MB of the paper's merged network with Tucker-2 over those without."""
WORK = {
    "alexnet": Work("alexnet", STREAMLINE, 1.5, 1.63),
    "resnet50": Work("resnet50", STREAMLINE, 1.3, 1.82),
    "googlenet": Work("googlenet", ALL, 3.09, 3.09),
    "googlenet-narrow": Work("googlenet", ALL, 3.09, 3.09, width=0.5),
    "googlenet-tucker": Work("googlenet", ALL, 5.0, 6.13, kept=TUCKER),
    "googlenet-narrow-tucker": Work("googlenet", ALL, 5.0, 6.13, width=0.5, kept=TUCKER),
}


def changed(original: nn.Module, x: Tensor, work: Work) -> nn.Module:
    """A copy of ``original`` with its layers merged, and factored too where that is asked for."""
    result = copy.deepcopy(original)
    merge(result, x, parts=work.parts, start="random", width=work.width)
    if work.kept is not None:
        factorize(result, parameters=work.kept, example=x)
    return result


def one(name: str, runtimes: list[str], batches: list[int], repeats: int) -> dict[str, Any]:
    """Measure one row of the table."""
    work = WORK[name]
    torch.manual_seed(0)
    original = getattr(zoo, work.network)().eval()
    x = torch.randn(1, 3, SIZES[work.network], SIZES[work.network])
    result = changed(original, x, work)
    before, after = cost(original, x), cost(result, x)
    speed = compare_speed(
        original, result, x, runtimes=runtimes, batches=batches, repeats=repeats
    ).to_json()
    eager = [row for row in speed["rows"] if (row["runtime"], row["batch"]) == ("eager", 1)]
    ratio = eager[0]["ratio"]["median"] if eager and eager[0]["ratio"] else None
    return {
        "work": name,
        **asdict(work),
        "eager_batch_1": ratio,
        "within": None if ratio is None else ratio >= work.bar,
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
