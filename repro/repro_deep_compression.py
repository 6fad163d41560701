"""Deep Compression, tables 1 to 3: both LeNets on MNIST, three seeds, mean and worst.

    python repro/repro_deep_compression.py lenet300 lenet5

writes ``repro/results/NAME.json`` and ``NAME.md``. Runs are kept in ``runs/`` and resumed. Every
choice was made on 5,000 images held out of the training set; test images are evaluated once at the
end of a stage and decide nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from time import monotonic
from typing import Any

import torch

from espalier.analysis.machine import machine
from espalier.analysis.paper import PAPER, PaperNetwork
from espalier.analysis.tables import layer_table, markdown, stage_table
from espalier.recipe import run_recipe

HERE = Path(__file__).parent
BOUNDS = {"lenet300": (27_000, 1.58), "lenet5": (44_000, 0.74)}


def one_seed(name: str, seed: int, runs: Path) -> dict[str, Any]:
    """Run a recipe, or read a finished run."""
    start = monotonic()
    result = run_recipe(name, runs / f"{name}-seed{seed}", resume=True, seed=seed)
    files = {"pruned": "pruned.esp", "shared": "shared.esp", "coded": "model.esp"}
    sizes = {stage: result.saved(path)["ledger"]["file_bytes"] for stage, path in files.items()}
    ledger = result.saved("model.esp")["ledger"]
    stages = ("reference", "pruned", "compressed")
    print(f"{name} seed {seed}: {monotonic() - start:.0f} s this time", file=sys.stderr)
    return {
        "seed": seed,
        "seconds": round(sum(stage.seconds for stage in result.stages), 1),
        "sizes": {"original": ledger["original_bytes"]} | sizes,
        "errors": {stage: result.evaluation(stage)["error"] for stage in stages},
        "ledger": ledger,
        "recipe": result.recipe.to_json(),
        "data": result.split.source.partition(",")[0],
    }


def summary(runs: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Mean and worst over the seeds, and whether the worst is within the bound."""
    sizes = [run["sizes"]["coded"] for run in runs]
    errors = {s: [run["errors"][s] for run in runs] for s in ("reference", "pruned", "compressed")}
    size_bound, error_bound = BOUNDS[name]
    return {
        "bytes": {"mean": mean(sizes), "worst": max(sizes), "bound": size_bound},
        "ratio": {"worst": min(r["sizes"]["original"] / r["sizes"]["coded"] for r in runs)},
        "error": {s: {"mean": mean(e), "worst": max(e)} for s, e in errors.items()},
        "error_bound": error_bound,
        "seconds": {
            "mean": mean(r["seconds"] for r in runs),
            "worst": max(r["seconds"] for r in runs),
        },
        "within": max(sizes) <= size_bound and max(errors["compressed"]) <= error_bound,
    }


def report(name: str, runs: list[dict[str, Any]], over: dict[str, Any], paper: PaperNetwork) -> str:
    """The tables in Markdown: the seeds together, and the first one in detail."""
    e, b = over["error"], over["bytes"]
    first = runs[0]
    lines = [
        f"# {paper.name} on MNIST: Deep Compression",
        "",
        f"Seeds {', '.join(str(r['seed']) for r in runs)}; mean (worst). Made by "
        f"`python repro/repro_deep_compression.py {name}`.",
        "",
        "| | ours | paper |",
        "| --- | ---: | ---: |",
        f"| reference error % | {e['reference']['mean']:.2f} ({e['reference']['worst']:.2f}) "
        f"| {paper.reference_error} |",
        f"| compressed error % | {e['compressed']['mean']:.2f} ({e['compressed']['worst']:.2f}) "
        f"| {paper.compressed_error} |",
        f"| file, bytes | {b['mean']:,.0f} ({b['worst']:,}) | {paper.compressed_kb * 1000:,.0f} |",
        f"| ratio | ({over['ratio']['worst']:.1f}x) | {paper.ratio_pqh}x |",
        f"| seconds | {over['seconds']['mean']:.0f} ({over['seconds']['worst']:.0f}) | |",
        "",
        f"## Seed {first['seed']}, stage by stage",
        "",
        markdown(stage_table(first["sizes"], first["errors"], paper)),
        f"## Seed {first['seed']}, layer by layer (the paper's in brackets)",
        "",
        markdown(layer_table(first["ledger"], paper)),
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", default=["lenet300", "lenet5"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/repro"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.names:
        runs = [one_seed(name, seed, arguments.runs) for seed in arguments.seeds]
        over = summary(runs, name)
        out = HERE / "results"
        out.mkdir(exist_ok=True)
        results = {
            "summary": over,
            "machine": machine() | {"threads": arguments.threads},
            "runs": runs,
        }
        (out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
        (out / f"{name}.md").write_text(report(name, runs, over, PAPER[name]))
        print(json.dumps(over, indent=1))


if __name__ == "__main__":
    main()
