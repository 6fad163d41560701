"""DeepRebirth, table 1: the share of time that non-tensor layers take, on this machine.

    python repro/repro_profile.py

writes ``repro/results/profile.json`` and ``profile.md``. Weights are random: times do not depend on
them. Each network's operations are timed in turn with the network itself, whose time a pass over
all operations must agree with to within 10 percent. The sum of the operations' own medians is given
too: on a busy machine, where most passes are interrupted somewhere, it is less than any pass.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from espalier import profile, zoo
from espalier.analysis.machine import machine

HERE = Path(__file__).parent
PAPER = {"alexnet": 32.08, "googlenet": 62.03, "resnet50": 55.66}
"""Percent of the forward time on an Intel x86 CPU, at batch 1 in Caffe (section 1, table 1)."""
SIZES = {"alexnet": 227, "googlenet": 224, "resnet50": 224}
WITHIN = 0.10


def one(name: str, repeats: int, device: str) -> dict[str, Any]:
    """Profile a network at batch 1."""
    torch.manual_seed(0)
    network = getattr(zoo, name)().to(device)
    image = torch.randn(1, 3, SIZES[name], SIZES[name], device=device)
    found = profile(network, image, repeats=repeats, warmup=5).to_json()
    rows = found.pop("rows")
    ratio = found["pass_ms"] / found["end_to_end_ms"]
    return found | {
        "network": name,
        "operations": len(rows),
        "percent_non_tensor": 100 * found["share_non_tensor"],
        "paper_percent_non_tensor": PAPER[name],
        "pass_over_end_to_end": ratio,
        "sum_of_medians_over_end_to_end": found["total_ms"] / found["end_to_end_ms"],
        "within": abs(ratio - 1) <= WITHIN,
    }


def table(results: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| network | non-tensor % | paper % | pass over operations, ms | model, ms | ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {r['network']} | {r['percent_non_tensor']:.1f} | {r['paper_percent_non_tensor']} "
        f"| {r['pass_ms']:.1f} | {r['end_to_end_ms']:.1f} | {r['pass_over_end_to_end']:.3f} |"
        for r in results
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", default=list(PAPER))
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = [one(name, arguments.repeats, arguments.device) for name in arguments.names]
    where = machine() | {"threads": arguments.threads}
    suffix = "" if arguments.device == "cpu" else f"_{arguments.device}"
    out = HERE / "results" / f"profile{suffix}.json"
    out.write_text(json.dumps({"machine": where, "networks": results}, indent=1) + "\n")
    text = [
        "# Share of time in non-tensor layers (DeepRebirth, table 1)",
        "",
        f"Batch 1, {arguments.device}, {arguments.threads} threads, {where['cpu']}, load "
        f"{where['load_average']}. The paper measured Caffe on an Intel x86 CPU.",
        "",
        table(results),
    ]
    out.with_suffix(".md").write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
