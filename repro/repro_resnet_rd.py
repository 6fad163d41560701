"""ResNets for CIFAR-10, rate-distortion quantization without retraining: error within a budget.

    python repro/repro_resnet_rd.py resnet20 resnet32

H and G come from 2,048 training images. Lambda is the smallest of 2^(1/8) apart whose whole
``.esp`` file, at effort max, is within the budget of bytes: no image decides it. The divergence
from the original network's predictions is measured on 2,000 other training images; the test
images are evaluated once for each file. Files are read back before they are evaluated. Three
seeds, of the split, the images and the targets drawn. Writes ``repro/results/NETWORK_rd.json``,
and with ``--quantizer ecsq``, levels that are free, ``NETWORK_rd_ecsq.json``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, process_time
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import espalier
from espalier.analysis.machine import machine
from espalier.quantization.rd import QUANTIZERS
from espalier.samples import Samples, batches
from espalier.training import evaluate
from espalier.zoo import DataSet, cifar10, resnet20, resnet32

NETWORKS = {"resnet20": resnet20, "resnet32": resnet32}
BUDGETS = {"resnet20": (103_000, 90_000), "resnet32": (160_000, 140_000)}
START = 2.0**-24.25  # 5e-8
STEP = 1 / 8
SHRINKS = 0.019
"""Roughly by how much a file shrinks from one lambda to the next: where the search looks first."""
HELD_OUT = 2000


def original(name: str) -> nn.Module:
    """The published network."""
    model = NETWORKS[name]()
    source = Path(os.environ["ESPALIER_DATA"]) / "resnet_cifar10" / f"{name}.safetensors"
    model.load_state_dict(load_file(source), strict=False)  # no batch counters in the file
    return model.eval()


@torch.no_grad()
def predictions(model: nn.Module, data: Samples) -> Tensor:
    """Logarithms of the probabilities."""
    return torch.cat([model(x) for x, _ in batches(data, 250)]).log_softmax(1)


class Quantizer:
    """One network with what one seed shows of it."""

    def __init__(self, name: str, data: DataSet, samples: int, seed: int, kind: str) -> None:
        self.name, self.seed, self.kind = name, seed, kind
        rest, self.held_out = data.train.split(HELD_OUT, seed)
        _, seen = rest.split(samples, seed + 1)
        self.model = original(name)
        start, cpu = monotonic(), process_time()
        self.curvature = espalier.collect_curvature(self.model, batches(seen, 64), seed=seed)
        self.seconds = {"wall": monotonic() - start, "cpu": process_time() - cpu}
        self.inputs = [x for x, _ in batches(seen, 512)][:2]
        self.wanted = predictions(self.model, self.held_out)

    def quantized(self, lam: float) -> tuple[nn.Module, dict[str, Any]]:
        """The network, and how it did on the images held out."""
        model = copy.deepcopy(self.model)
        start, cpu = monotonic(), process_time()
        report = espalier.quantize_rd(
            model, lam, quantizer=self.kind, curvature=self.curvature, batches=self.inputs
        )
        seconds = {"wall": monotonic() - start, "cpu": process_time() - cpu}
        found = predictions(model, self.held_out)
        divergence = (self.wanted.exp() * (self.wanted - found)).sum(1).mean()
        labels = self.held_out.y
        errors = [100 * float((p.argmax(1) != labels).float().mean()) for p in (found, self.wanted)]
        measured = {
            "lambda": lam,
            "bits_per_weight": report.bits_per_weight,
            "held_out_divergence": float(divergence),
            "held_out_error_rise": errors[0] - errors[1],
            "seconds": seconds,
        }
        print(json.dumps({"network": self.name, "seed": self.seed} | measured), flush=True)
        return model, measured

    def within(self, budget: int) -> tuple[float, int]:
        """The smallest lambda whose file is within ``budget``, and how many were tried."""
        sizes: dict[int, int] = {}

        def fits(k: int) -> bool:
            if k not in sizes:
                model, _ = self.quantized(START * 2.0 ** (k * STEP))
                sizes[k] = self.file(model, "max")[0]
            return sizes[k] <= budget

        fits(0)
        k = round(math.log(sizes[0] / budget) / SHRINKS)
        while not fits(k):
            k += 1
        while fits(k - 1):
            k -= 1
        return START * 2.0 ** (k * STEP), len(sizes)

    def file(self, model: nn.Module, effort: str) -> tuple[int, nn.Module]:
        """Bytes of the file, and the network that it gives back."""
        with TemporaryDirectory() as folder:
            ledger = espalier.save(model, f"{folder}/m.esp", effort=effort)
            return ledger.file_bytes, espalier.load(f"{folder}/m.esp", into=NETWORKS[self.name]())

    def final(self, budget: int, test: Samples, before: float) -> dict[str, Any]:
        """The file within ``budget``, shown the test images."""
        lam, tried = self.within(budget)
        model, measured = self.quantized(lam)
        measured["bytes_default"] = self.file(model, "default")[0]
        measured["bytes_max"], loaded = self.file(model, "max")
        error = evaluate(loaded, test, batch_size=250).error
        measured |= {"tried": tried, "test_error": error, "test_error_rise": error - before}
        print(json.dumps(measured), flush=True)
        return {"seed": self.seed} | measured


def summary(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and worst of the seeds."""
    columns = {key: [p[key] for p in points] for key in ("bytes_max", "test_error_rise")}
    return {
        key: {"mean": math.fsum(values) / len(values), "worst": max(values)}
        for key, values in columns.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(NETWORKS)}; all by default")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=2048, help="for the curvature")
    parser.add_argument("--quantizer", default="uniform", choices=QUANTIZERS)
    arguments = parser.parse_args()
    kind = arguments.quantizer
    names = arguments.networks or list(NETWORKS)
    if not set(names) <= set(NETWORKS):
        parser.error(f"networks are {', '.join(NETWORKS)}")
    data = cifar10()
    for name in names:
        reference = evaluate(original(name), data.test, batch_size=250).error
        results: dict[str, Any] = {
            "data": data.source.partition(",")[0],
            "original_test_error": reference,
            "quantizer": kind,
            "samples": arguments.samples,
            "held_out": HELD_OUT,
        }
        points: dict[int, list[dict[str, Any]]] = {budget: [] for budget in BUDGETS[name]}
        seconds = []
        for seed in arguments.seeds:
            quantizer = Quantizer(name, data, arguments.samples, seed, kind)
            seconds.append(quantizer.seconds)
            for budget, found in points.items():
                found.append(quantizer.final(budget, data.test, reference))
            results["curvature_seconds"] = seconds
            results["budgets"] = [
                {"bytes": budget, **summary(found), "seeds": found}
                for budget, found in points.items()
            ]
            results["machine"] = machine() | {"threads": torch.get_num_threads()}
            out = Path(__file__).parent / "results"
            out.mkdir(exist_ok=True)
            of = "rd" if kind == "uniform" else f"rd_{kind}"
            (out / f"{name}_{of}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
