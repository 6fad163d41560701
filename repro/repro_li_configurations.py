"""The configurations A and B of Li et al. 2017: multiply-accumulates and parameters, no training.

    python repro/repro_li_configurations.py

VGG-16 for CIFAR-10 with conv1 and conv8 to conv13 halved; ResNet-56 and 110 with filters removed
from the first layers of the residual blocks, a share for each stage and some layers left alone
(arXiv 1608.08710, table 1 and section 4.2; layers are counted from the first convolution, 1). Of n
filters the floor of n (1 - share) stay. Which filters go does not matter here: weights are random.
Writes ``repro/results/li_configurations.json``. The bar: 0.5 points from each published cut.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import floor
from pathlib import Path
from typing import Any

import torch
from torch import nn

import espalier
from espalier import zoo
from espalier.analysis.machine import machine

BAR = 0.5


@dataclass(frozen=True)
class Configuration:
    """Shares of filters to remove from each of three stages, and the layers left alone."""

    network: str
    name: str
    shares: tuple[float, float, float]
    skipped: tuple[int, ...]
    macs_cut: float
    parameters_cut: float

    def keep(self) -> dict[str, float | None]:
        """For each layer the share of filters that stay."""
        blocks = {"resnet56": 9, "resnet110": 18}[self.network]
        found: dict[str, float | None] = {"*": None}
        for stage, share in enumerate(self.shares):
            width = 16 * 2**stage
            for block in range(blocks):
                if share and 2 * (stage * blocks + block + 1) not in self.skipped:
                    kept = floor(width * (1 - share) + 1e-9) / width
                    found[f"layer{stage + 1}.{block}.conv1"] = kept
        return found


RESNETS = (
    Configuration("resnet56", "A", (0.1, 0.1, 0.1), (16, 20, 38, 54), 10.4, 9.4),
    Configuration("resnet56", "B", (0.6, 0.3, 0.1), (16, 18, 20, 34, 38, 54), 27.6, 13.7),
    Configuration("resnet110", "A", (0.5, 0.0, 0.0), (36,), 15.9, 2.3),
    Configuration("resnet110", "B", (0.5, 0.4, 0.3), (36, 38, 74), 38.6, 32.4),
)


def measured(model: nn.Module, keep: Any, published: tuple[float, float]) -> dict[str, Any]:
    """What the cut takes from ``model``, in percent, beside what the paper says."""
    report = espalier.prune_filters(model, keep, example=torch.zeros(1, 3, 32, 32))
    cuts = {
        what: 100 * (1 - getattr(report.after, what) / getattr(report.before, what))
        for what in ("macs", "parameters")
    }
    return {
        what: {
            "before": getattr(report.before, what),
            "after": getattr(report.after, what),
            "cut_percent": round(cut, 2),
            "published_percent": paper,
            "within_bar": abs(cut - paper) <= BAR,
        }
        for (what, cut), paper in zip(cuts.items(), published, strict=True)
    }


def main() -> None:
    model = zoo.vgg16_cifar()
    convolutions = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    halved = {"*": None} | {convolutions[i]: 0.5 for i in (0, *range(7, 13))}
    rows = {"vgg16_cifar A": measured(model, halved, (34.2, 64.0))}
    for c in RESNETS:
        build = {"resnet56": zoo.resnet56, "resnet110": zoo.resnet110}[c.network]
        rows[f"{c.network} {c.name}"] = measured(build(), c.keep(), (c.macs_cut, c.parameters_cut))
    path = Path(__file__).parent / "results" / "li_configurations.json"
    path.write_text(
        json.dumps({"bar_points": BAR, "cuts": rows, "machine": machine()}, indent=1) + "\n"
    )
    for name, row in rows.items():
        shown = [f"{w} {r['cut_percent']:.2f} ({r['published_percent']})" for w, r in row.items()]
        print(f"{name}: {', '.join(shown)}")


if __name__ == "__main__":
    main()
