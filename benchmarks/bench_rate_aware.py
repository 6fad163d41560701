"""What rate-aware training adds to a training step, and what a look at the symbols takes.

    python benchmarks/bench_rate_aware.py [--rounds 20] [--threads 1] [--output FILE.json]

Forward, backward and Adam on a batch of random images, plain and with :class:`espalier.RateAware`,
in turn, round by round, so that what else the machine does meets both. The ratio is of the medians.
Symbols are looked at every 50 steps by default: ``look`` is the share of a plain step that this
adds to each. A teacher's forward pass, which the recipes have, comes on top.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import espalier
from espalier.analysis.machine import machine
from espalier.zoo import lenet5, lenet300, resnet20

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "LeNet-300-100": (lenet300, (1, 28, 28), 256),
    "LeNet-5": (lenet5, (1, 28, 28), 256),
    "ResNet-20": (resnet20, (3, 32, 32), 128),
}
EVERY = 50
WARM_UP = 3


def stepper(
    model: nn.Module, rate: espalier.RateAware | None, x: Tensor, y: Tensor
) -> Callable[[], None]:
    """One training step of ``model``."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)

    def step() -> None:
        loss = functional.cross_entropy(model(x), y)
        if rate is not None:
            loss = loss + rate.loss()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def measured(name: str, rounds: int) -> dict[str, Any]:
    make, shape, batch = CASES[name]
    torch.manual_seed(0)
    x, y = torch.randn(batch, *shape), torch.randint(0, 10, (batch,))
    plain, gridded = make(), make()
    rate = espalier.RateAware(gridded, 1e-6, steps=100 * rounds, every=1)
    # Looking is a step of its own here, since only every fiftieth has one.
    parts = {
        "plain": stepper(plain, None, x, y),
        "rate_aware": stepper(gridded, rate, x, y),
        "look": rate.step,
    }
    times: dict[str, list[float]] = {part: [] for part in parts}
    for i in range(WARM_UP + rounds):
        for part, run in parts.items():
            start = time.perf_counter()
            run()
            if i >= WARM_UP:
                times[part].append(1e3 * (time.perf_counter() - start))
    middle = {part: median(found) for part, found in times.items()}
    return {
        "batch": batch,
        "plain_ms": round(middle["plain"], 2),
        "rate_aware_ms": round(middle["rate_aware"], 2),
        "ratio": round(middle["rate_aware"] / middle["plain"], 3),
        "look_ms": round(middle["look"], 2),
        "look": round(middle["look"] / EVERY / middle["plain"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/rate_aware.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = {name: measured(name, args.rounds) for name in CASES}
    for name, row in results.items():
        print(f"{name:14} {row['plain_ms']:7.1f} ms  x {row['ratio']:.2f}  + {row['look']:.1%}")
    report = {
        "machine": machine(),
        "threads": args.threads,
        "rounds": args.rounds,
        "results": results,
    }
    args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
