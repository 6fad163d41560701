"""The report of a ResNet-56-sized run: bytes of the page, and seconds to make it.

    python benchmarks/bench_report.py

runs a short recipe on ResNet-56 (random images: sizes and times of a report do not depend on them),
then ``espalier report`` as a user would, in a process of its own: with nothing in the cache folder,
and again. Writes ``benchmarks/results/report.json``. The bars: 3 MB, 10 s.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from espalier.analysis.machine import machine
from espalier.recipe import run_recipe
from espalier.recipe.schema import Recipe

HERE = Path(__file__).parent
MOST_BYTES, MOST_SECONDS = 3_000_000, 10.0
STAGES = [
    {"train": {"epochs": 1, "batch_size": 16}},
    {"evaluate": {"split": "test", "name": "reference"}},
    {"prune": {"density": 0.3}},
    {"retrain": {"epochs": 1, "batch_size": 16}},
    {"share": {"bits": 5}},
    {"fine_tune": {"epochs": 1, "batch_size": 16}},
    {"save": {"path": "model.esp"}},
    {"evaluate": {"split": "test", "name": "compressed"}},
]


def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """48 random images to train on, 16 to test on."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, 32, 32, generator=generator)
    y = torch.arange(64) % 10
    return (x[:48], y[:48]), (x[48:], y[48:])


def one(run: Path, page: Path, cache: Path) -> dict[str, float]:
    """Make the page once; wall time, and processor time of the process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = monotonic()
    subprocess.run(
        [sys.executable, "-m", "espalier", "report", run, "-o", page, "--force", "-q"],
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        check=True,
    )
    seconds = monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(seconds, 2), "cpu_seconds": round(used, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    sys.path.insert(0, str(HERE))
    plain = {"model": "espalier.zoo:resnet56", "data": "bench_report:data", "stages": STAGES}
    with TemporaryDirectory() as name:
        folder = Path(name)
        run_recipe(Recipe.model_validate(plain), folder / "run")
        first = one(folder / "run", folder / "page.html", folder / "cache")
        again = [
            one(folder / "run", folder / "page.html", folder / "cache")
            for _ in range(arguments.repeats)
        ]
        size = (folder / "page.html").stat().st_size
    seconds = median(r["seconds"] for r in again)
    results: dict[str, Any] = {
        "machine": machine(),
        "network": "ResNet-56",
        "page_bytes": size,
        "first": first,
        "again": again,
        "again_median_seconds": seconds,
        "bars": {"page_bytes": MOST_BYTES, "seconds": MOST_SECONDS},
        "within": size <= MOST_BYTES and max(seconds, first["seconds"]) <= MOST_SECONDS,
    }
    out = HERE / "results" / "report.json"
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
