"""Pruning alone on LeNet-5: at most 2% of the weights, no more error than the reference network.

    python repro/repro_pruning.py

Three seeds of the recipe ``lenet5_pruning``; writes ``repro/results/lenet5_pruning.json``. Choices
were made on images held out of the training set; the test images decide nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from espalier.analysis.machine import machine
from espalier.recipe import run_recipe
from espalier.targets import find_targets

NAME = "lenet5_pruning"


def one_seed(seed: int, runs: Path) -> dict[str, Any]:
    """Run the recipe, or read a finished run."""
    result = run_recipe(NAME, runs / f"{NAME}-seed{seed}", resume=True, seed=seed)
    weights = {t.name: t.value for t in find_targets(result.model) if t.by_default}
    kept = {name: int(w.count_nonzero()) for name, w in weights.items()}
    elements = {name: w.numel() for name, w in weights.items()}
    return {
        "seed": seed,
        "seconds": round(sum(stage.seconds for stage in result.stages), 1),
        "keep_percent": {name: 100 * kept[name] / n for name, n in elements.items()},
        "keep_percent_total": 100 * sum(kept.values()) / sum(elements.values()),
        "errors": {s: result.evaluation(s)["error"] for s in ("reference", "pruned")},
        "held_out_errors": [
            stage.values["held_out_error"] for stage in result.stages if "epochs" in stage.values
        ],
        "bytes": result.saved()["ledger"]["file_bytes"],
        "recipe": result.recipe.to_json(),
        "data": result.split.source.partition(",")[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/repro"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    runs = [one_seed(seed, arguments.runs) for seed in arguments.seeds]
    errors = {s: [run["errors"][s] for run in runs] for s in ("reference", "pruned")}
    keep = max(run["keep_percent_total"] for run in runs)
    over = {
        "keep_percent": {"worst": keep, "bound": 2.0},
        "error": {s: {"mean": mean(e), "worst": max(e)} for s, e in errors.items()},
        "points_above_reference": {
            "mean": mean(p - r for p, r in zip(errors["pruned"], errors["reference"], strict=True)),
            "bound": 0.0,
        },
        "bytes": {"mean": mean(r["bytes"] for r in runs), "worst": max(r["bytes"] for r in runs)},
    }
    out = Path(__file__).parent / "results"
    out.mkdir(exist_ok=True)
    results = {"summary": over, "machine": machine() | {"threads": arguments.threads}, "runs": runs}
    (out / f"{NAME}.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(over, indent=1))


if __name__ == "__main__":
    main()
