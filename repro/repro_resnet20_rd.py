"""ResNet-20 for CIFAR-10, rate-distortion quantization without retraining: accuracy against bytes.

    python repro/repro_resnet20_rd.py

H and g come from 1,024 training images; lambda is judged on 5,000 other training images; the test
images are evaluated for every point of the curve and decide nothing. Files are whole ``.esp``
files. Each point is measured as it is, and with the batch norm statistics moved by what
quantization changed on those 1,024 images.
Writes ``repro/results/resnet20_rd.json``.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

import espalier
from espalier.analysis.machine import machine
from espalier.samples import batches
from espalier.training import evaluate
from espalier.zoo import cifar10, resnet20

LAMBDAS = (2.4e-8, 5e-8, 7e-8, 1e-7)


def original() -> nn.Module:
    """The published network."""
    model = resnet20()
    source = Path(os.environ["ESPALIER_DATA"]) / "resnet_cifar10" / "resnet20.safetensors"
    model.load_state_dict(load_file(source), strict=False)  # no batch counters in the file
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--lambdas", type=float, nargs="+", default=LAMBDAS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = cifar10()
    rest, held_out = data.train.split(5000, arguments.seed)
    seen, _ = rest.split(len(rest) - 1024, arguments.seed)

    def measure(model: nn.Module) -> dict[str, float]:
        parts = {"held_out": held_out, "test": data.test}
        found = {name: evaluate(model, part, batch_size=250) for name, part in parts.items()}
        errors = {f"{name}_error": m.error for name, m in found.items()}
        return errors | {f"{name}_loss": m.loss for name, m in found.items()}

    start = monotonic()
    curvature = espalier.collect_curvature(original(), batches(seen, 128), seed=arguments.seed)
    seconds = monotonic() - start
    points: list[dict[str, Any]] = []
    inputs = [x for x, _ in batches(seen, 128)]
    reference = measure(original())
    print(json.dumps(reference), flush=True)
    for lam in arguments.lambdas:
        model = original()
        start = monotonic()
        report = espalier.quantize_rd(model, lam, curvature=curvature)
        point: dict[str, Any] = {"lambda": lam, "bits_per_weight": report.bits_per_weight}
        point["as_it_is"] = measure(model)
        espalier.reestimate_batchnorm(model, inputs, like=original())
        point["batch_norms_moved"] = measure(model)
        with TemporaryDirectory() as folder:
            for effort in ("default", "max"):
                ledger = espalier.save(model, f"{folder}/{effort}.esp", effort=effort)
                point[f"bytes_{effort}"] = ledger.file_bytes
        point["seconds"] = round(monotonic() - start, 1)
        points.append(point)
        print(json.dumps(point), flush=True)
    results = {
        "data": data.source.partition(",")[0],
        "seed": arguments.seed,
        "curvature": {"samples": len(seen), "seconds": round(seconds, 1)},
        "original": reference,
        "points": points,
        "machine": machine() | {"threads": torch.get_num_threads()},
    }
    out = Path(__file__).parent / "results"
    out.mkdir(exist_ok=True)
    (out / "resnet20_rd.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
