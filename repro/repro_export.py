"""Exported networks beside the ones that they were exported from.

    python repro/repro_export.py [--parts int8 coreml]

``int8``: ResNet-20 for CIFAR-10 with its published weights, batch norms folded, 8 bits for each
output channel and for activations, after training, without retraining; how many of the test images
ONNX Runtime, with the exported file, puts into the class that the quantized model in PyTorch does.
Calibrated on 1,024 training images. How activations are calibrated is chosen on 4,000 others of
them: where PyTorch and ONNX Runtime agree most, in integers throughout.

``coreml``: LeNet-5, trained for an epoch, pruned and shared as in Deep Compression (table 4 of the
paper; not retrained, which changes no byte's way), exported to Core ML; every weight is read back
out of the package and compared with the model's, bit for bit.

Writes ``repro/results/export.json``; parts that are not asked for stay.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import espalier
from espalier.analysis.machine import machine
from espalier.export.coreml_read import read_weights
from espalier.export.onnx_session import session
from espalier.zoo import cifar10, lenet5, mnist, resnet20

CALIBRATION, HELD_OUT, SIZE = 1024, 4000, 250
CALIBRATIONS = ("percentile", "minmax", "mse")
DENSITY = {"conv1": 0.66, "conv2": 0.12, "fc1": 0.08, "fc2": 0.19}
BITS = {"conv*": 8, "fc*": 5}
BAR = 0.995


def published() -> nn.Module:
    """ResNet-20 with its batch norms folded."""
    source = Path(os.environ["ESPALIER_DATA"]) / "resnet_cifar10" / "resnet20.safetensors"
    model = resnet20()
    model.load_state_dict(load_file(source), strict=False)  # no batch counters in the file
    espalier.fold_batch_norms(model.eval())
    return model


@torch.no_grad()
def classes(model: nn.Module, x: Tensor) -> Tensor:
    """The class of each image, by PyTorch."""
    return torch.cat([model(part).argmax(1) for part in x.split(SIZE)])


def exported(model: nn.Module, seen: list[Tensor] | None, x: Tensor) -> tuple[Tensor, int]:
    """The class of each image, by ONNX Runtime, and the bytes of the file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "resnet20.onnx"
        found = espalier.export_onnx(model, x[:2], path, weights="int8", batches=seen)
        run = session(path.read_bytes())
    parts = [run.run(None, {"input": part.numpy()})[0].argmax(1) for part in x.split(SIZE)]
    return torch.from_numpy(np.concatenate(parts)), found.file_bytes


def share(a: Tensor, b: Tensor) -> float:
    """How many are equal."""
    return round(float((a == b).double().mean()), 5)


def int8() -> dict[str, Any]:
    data = cifar10()
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    seen = list(data.train.x[order[:CALIBRATION]].split(128))
    held_out = data.train.x[order[CALIBRATION : CALIBRATION + HELD_OUT]]
    models, agreed = {}, {}
    for calibration in CALIBRATIONS:
        model = models[calibration] = published()
        how = {"calibration": calibration}
        espalier.quantize(model, 8, batches=seen, activations=8, activation_options=how)
        agreed[calibration] = share(classes(model, held_out), exported(model, seen, held_out)[0])
        print(f"{calibration}: {agreed[calibration]:.2%} of held-out images agree", flush=True)
    chosen = max(CALIBRATIONS, key=agreed.__getitem__)
    model, x, y = models[chosen], data.test.x, data.test.y
    ours, original = classes(model, x), classes(published(), x)
    rows = {}
    for name, batches in (("layers", None), ("throughout", seen)):
        theirs, size = exported(model, batches, x)
        rows[name] = {
            "agreement": share(theirs, ours),
            "error": round(100 - 100 * share(theirs, y), 2),
            "file_bytes": size,
            "within": share(theirs, ours) >= BAR,
        }
    return {
        "calibration": chosen,
        "agreement_on_held_out_training_images": agreed,
        "error_of_the_original": round(100 - 100 * share(original, y), 2),
        "error_of_the_quantized_model": round(100 - 100 * share(ours, y), 2),
        "onnx": rows,
        "bar": BAR,
        "machine": machine(("espalier", "torch", "onnx", "onnxruntime")),
    }


def coreml() -> dict[str, Any]:
    torch.manual_seed(0)
    model = lenet5()
    espalier.train(model, mnist().train, epochs=1, batch_size=64)
    espalier.prune(model, density=DENSITY)
    espalier.share(model, bits=BITS)
    esp_bytes = 0
    rows = {}
    with TemporaryDirectory() as folder:
        esp_bytes = espalier.save(model, f"{folder}/lenet5.esp").file_bytes
        for target in ("iOS18", "iOS16"):
            path = f"{folder}/{target}.mlpackage"
            found = espalier.export_coreml(model, torch.randn(1, 1, 28, 28), path, target=target)
            read = read_weights(path)
            equal = {
                name: read[name.replace(".", "_")].tobytes()
                == weight.contiguous().numpy().tobytes()
                for name, weight in espalier.load(f"{folder}/lenet5.esp").items()
                if name.replace(".", "_") in read
            }
            rows[target] = {
                "package_bytes": found.file_bytes,
                "forms": dict(found.forms),
                "equal": equal,
                "within": all(equal.values()) and set(found.forms) <= set(equal),
            }
    return {
        "density": DENSITY,
        "bits": BITS,
        "original_bytes": 4 * sum(p.numel() for p in lenet5().parameters()),
        "esp_bytes": esp_bytes,
        "targets": rows,
        "machine": machine(("espalier", "torch", "coremltools")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--parts", nargs="+", default=["int8", "coreml"], choices=["int8", "coreml"]
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "export.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for part in arguments.parts:
        results[part] = {"int8": int8, "coreml": coreml}[part]()
        print(json.dumps(results[part], indent=1), flush=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
