"""ResNet-20 for CIFAR-10 without data: 8-bit sharing and Huffman coding, from the command line.

    python repro/repro_resnet20.py

runs ``espalier compress`` and ``espalier decompress`` on the file as a user would, and
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
from typing import Any

from safetensors.torch import load_file

from espalier.analysis.machine import machine
from espalier.training import evaluate
from espalier.zoo import DataSet, cifar10, resnet20


def run(source: Path, coder: str, data: DataSet, original: float) -> dict[str, Any]:
    """Compress and decompress from the command line, and evaluate what comes back."""
    with TemporaryDirectory() as folder:
        packed, back = Path(folder) / "resnet20.esp", Path(folder) / "resnet20.safetensors"
        seconds = []
        for command in (
            ["compress", source, "-o", packed, "--coder", coder],
            ["decompress", packed, "-o", back],
        ):
            start = monotonic()
            subprocess.run([sys.executable, "-m", "espalier", *map(str, command), "-q"], check=True)
            seconds.append(round(monotonic() - start, 2))
        model = resnet20()
        model.load_state_dict(load_file(back), strict=False)
        error = evaluate(model, data.test, batch_size=250).error
        size = packed.stat().st_size
    share, lost = size / source.stat().st_size, error - original
    return {
        "bytes": size,
        "share_of_original": share,
        "error": error,
        "points_lost": round(lost, 2),
        "seconds": {"compress": seconds[0], "decompress": seconds[1]},
        "within": share <= 0.25 and lost <= 0.3 and seconds[0] <= 5,
    }


def main() -> None:
    source = Path(os.environ["ESPALIER_DATA"]) / "resnet_cifar10" / "resnet20.safetensors"
    data = cifar10()
    model = resnet20()
    model.load_state_dict(load_file(source), strict=False)  # no batch counters in the file
    error = evaluate(model, data.test, batch_size=250).error
    results = {
        "data": data.source.partition(",")[0],
        "original": {"bytes": source.stat().st_size, "error": error},
        "bounds": {"share_of_original": 0.25, "points_lost": 0.3, "seconds": 5},
        "coders": {coder: run(source, coder, data, error) for coder in ("huffman", "auto")},
        "machine": machine(),
    }
    out = Path(__file__).parent / "results"
    out.mkdir(exist_ok=True)
    (out / "resnet20_no_data.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
