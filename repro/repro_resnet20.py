"""ResNet-20 for CIFAR-10 without data: 8-bit sharing and Huffman coding, from the command line.

    python repro/repro_resnet20.py

runs ``espalier compress resnet20.safetensors -o resnet20.esp`` and back as a user would, and
compares the accuracy of both networks on the same test images. Nothing is drawn at random. Writes
``repro/results/resnet20_no_data.json``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

from machine import machine
from safetensors.torch import load_file

from espalier.training import evaluate
from espalier.zoo import cifar10, resnet20


def main() -> None:
    source = Path(os.environ["ESPALIER_DATA"]) / "resnet_cifar10" / "resnet20.safetensors"
    data = cifar10()
    with TemporaryDirectory() as folder:
        packed, back = Path(folder) / "resnet20.esp", Path(folder) / "resnet20.safetensors"
        seconds = []
        for command in (["compress", source, "-o", packed], ["decompress", packed, "-o", back]):
            start = monotonic()
            subprocess.run([sys.executable, "-m", "espalier", *map(str, command), "-q"], check=True)
            seconds.append(round(monotonic() - start, 2))
        errors = {}
        for label, path in (("original", source), ("compressed", back)):
            model = resnet20()
            model.load_state_dict(load_file(path), strict=False)  # no batch counters in the file
            errors[label] = evaluate(model, data.test, batch_size=250).error
        sizes = {"original": source.stat().st_size, "compressed": packed.stat().st_size}
    lost = errors["compressed"] - errors["original"]
    results = {
        "data": data.source.partition(",")[0],
        "bytes": sizes,
        "share_of_original": sizes["compressed"] / sizes["original"],
        "error": errors,
        "points_lost": round(lost, 2),
        "seconds": {"compress": seconds[0], "decompress": seconds[1]},
        "bounds": {"share_of_original": 0.25, "points_lost": 0.3, "seconds": 5},
        "within": sizes["compressed"] * 4 <= sizes["original"] and lost <= 0.3 and seconds[0] <= 5,
        "machine": machine(),
    }
    out = Path(__file__).parent / "results"
    out.mkdir(exist_ok=True)
    (out / "resnet20_no_data.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
