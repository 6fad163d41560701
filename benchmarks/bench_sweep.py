"""`espalier sensitivity` on LeNet-5: 4 layers x 10 densities on MNIST's 10,000 test images.

    python benchmarks/bench_sweep.py

Whole processes, from their start to their end: the sweep from nothing, and the same command again
when all points are kept. Writes ``benchmarks/results/sweep.json``. The network is the recipe
``lenet5``'s reference, trained where ``--runs`` does not hold it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import monotonic

from espalier.analysis.machine import machine
from espalier.recipe import load_recipe, run_recipe
from espalier.recipe.network import reference_recipe

DENSITIES = "0.01,0.02,0.03,0.05,0.08,0.12,0.2,0.3,0.5,0.7"


def seconds(network: Path, out: str) -> float:
    """How long one process takes."""
    command = [sys.executable, "-m", "espalier", "sensitivity", str(network), "--out", out]
    command += ["--density", DENSITIES, "--split", "test", "--quiet"]
    start = monotonic()
    subprocess.run(command, check=True)
    return monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs/repro"))
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    network = arguments.runs / "lenet5-reference-seed0"
    run_recipe(reference_recipe(load_recipe("lenet5")), network, resume=True)
    first, second = [], []
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as out:
            first.append(seconds(network, out))
            second.append(seconds(network, out))
            points = len(json.loads((Path(out) / "sweep.json").read_text())["points"])
    results = {
        "points": points,
        "sweep_seconds": {"median": median(first), "all": first, "bound": 60},
        "kept_seconds": {"median": median(second), "all": second, "bound": 2},
        "machine": machine(("espalier", "torch", "joblib")),
    }
    path = Path(__file__).parent / "results" / "sweep.json"
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
