"""DeepRebirth on a small inception network: at most 0.5 points lost at twice the speed.

    python repro/repro_merge.py

Three seeds of the recipe ``small_inception_merged`` on MNIST; writes
``repro/results/small_inception_merged.json``. What is interrupted goes on where it was. Epochs and
learning rates were chosen on images held out of the training set; the test images decide nothing.
Both networks are timed in turn in the same process, on one thread.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from espalier import compare_speed, edits_of, zoo
from espalier.analysis.machine import machine
from espalier.recipe import run_recipe
from espalier.structure.cost import cost

HERE = Path(__file__).parent
NAME = "small_inception_merged"
STEPS = ("reference", "merged", "fine_tuned")


def one_seed(seed: int, runs: Path, repeats: int) -> dict[str, Any]:
    """Run the recipe, or read a finished run; and time the result beside the original."""
    result = run_recipe(NAME, runs / f"{NAME}-seed{seed}", resume=True, seed=seed)
    merged, original = result.model.eval(), zoo.small_inception().eval()
    errors = {step: result.evaluation(step)["error"] for step in STEPS}
    x = torch.randn(1, 1, 28, 28)
    speed = compare_speed(original, merged, x, repeats=repeats).to_json()
    (report,) = [stage.values for stage in result.stages if stage.kind == "merge"]
    return {
        "seed": seed,
        "seconds": round(sum(stage.seconds for stage in result.stages), 1),
        "errors": errors,
        "points_lost": errors["fine_tuned"] - errors["reference"],
        "speed": speed,
        "macs": [cost(original, x).macs, cost(merged, x).macs],
        "parameters": report["parameters"],
        "fit_errors": {m["name"]: m["error"] for m in report["layers"]},
        "bytes": result.saved()["ledger"]["file_bytes"],
        "edits": [line for edit in edits_of(merged) for line in edit.describe()],
        "recipe": result.recipe.to_json(),
        "data": result.split.source.partition(",")[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/repro"))
    parser.add_argument("--repeats", type=int, default=50)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = [one_seed(seed, arguments.runs, arguments.repeats) for seed in arguments.seeds]
    lost = [run["points_lost"] for run in runs]
    ratios: dict[str, list[float]] = {}
    for row in (row for run in runs for row in run["speed"]["rows"] if row["ratio"]):
        ratios.setdefault(f"{row['runtime']}, batch {row['batch']}", []).append(
            row["ratio"]["median"]
        )
    results = {
        "bounds": {"points_lost": 0.5, "times_as_fast": 2.0},
        "over_seeds": {
            "errors": {step: [run["errors"][step] for run in runs] for step in STEPS},
            "points_lost": {"mean": mean(lost), "worst": max(lost)},
            "times_as_fast": {
                where: {"mean": mean(r), "worst": min(r)} for where, r in ratios.items()
            },
            "within": max(lost) <= 0.5 and min(ratios["eager, batch 1"]) >= 2.0,
        },
        "machine": machine(),
        "threads": 1,
        "runs": runs,
    }
    out = HERE / "results"
    out.mkdir(exist_ok=True)
    (out / f"{NAME}.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results["over_seeds"], indent=1))


if __name__ == "__main__":
    main()
