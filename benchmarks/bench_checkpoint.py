"""A checkpoint larger than memory should need: four safetensors shards, lossless, there and back.

    python benchmarks/bench_checkpoint.py [--gigabytes 3] [--jobs 2] [--output FILE.json]

Random layers (normal, 0.02, float32; of 4096 x 4096 and 1024 x 4096 in turn) in four shards with an
index, made in a temporary folder (``--folder`` says where), compressed with ``--lossless`` and
decompressed by the command line, each in a process of its own. Throughput is of the folder's bytes,
by the clock from the start of the process to its end; peak memory is VmHWM of that process. The
folder that comes back is compared file by file.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from espalier.interop.safetensors_file import write_array

SEED = 0
SHARDS = 4
SHAPES = ((4096, 4096), (1024, 4096))

# Not ru_maxrss, which on Linux begins with that of the process that started this one.
MEASURED = """
import re, sys
from espalier.cli import main
status = main(sys.argv[1:])
print("peak", re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read()).group(1))
sys.exit(status)
"""


def make(path: Path, nbytes: int) -> int:
    """Write the folder, a layer at a time; the bytes of all its files."""
    rng = np.random.default_rng(SEED)
    path.mkdir()
    weight_map: dict[str, str] = {}
    number = 0
    for shard in range(SHARDS):
        name = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        layers: list[tuple[int, int]] = []
        at = 0
        while at < nbytes // SHARDS:
            shape = SHAPES[number % len(SHAPES)]
            size = 4 * shape[0] * shape[1]
            tensor = f"layers.{number}.weight"
            span = [at, at + size]
            header[tensor] = {"dtype": "F32", "shape": list(shape), "data_offsets": span}
            weight_map[tensor] = name
            layers.append(shape)
            at += size
            number += 1
        text = json.dumps(header, separators=(",", ":")).encode()
        with (path / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for shape in layers:
                layer = 0.02 * rng.standard_normal(shape, np.float32)
                write_array(file, layer, "float32")
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return sum(file.stat().st_size for file in path.iterdir())


def run(nbytes: int, *args: object) -> dict[str, float]:
    """Run the command line in a process of its own: seconds, MB/s, peak bytes."""
    start = time.perf_counter()
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, args)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    seconds = time.perf_counter() - start
    after = os.times()
    used = sum(after[2:4]) - sum(before[2:4])
    peak = int(done.stdout.split("peak")[-1]) * 1024
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(used, 2),
        "mb_per_s": round(nbytes / seconds / 1e6, 1),
        "mb_per_processor_s": round(nbytes / used / 1e6, 1),
        "peak_bytes": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="default: the system's temporary folder")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/checkpoint.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder, esp, back = (Path(temporary) / name for name in ("model", "model.esp", "back"))
        nbytes = make(folder, int(args.gigabytes * 1e9))
        jobs = ("--jobs", args.jobs, "--quiet")
        load = [os.getloadavg()[0]]
        results = {"compress": run(nbytes, "compress", folder, "-o", esp, "--lossless", *jobs)}
        load.append(os.getloadavg()[0])
        results["decompress"] = run(nbytes, "decompress", esp, "-o", back, *jobs)
        load.append(os.getloadavg()[0])
        esp_bytes = esp.stat().st_size
        names = [file.name for file in folder.iterdir()]
        same, *_ = filecmp.cmpfiles(folder, back, names, shallow=False)
        if sorted(same) != sorted(names):
            raise SystemExit("the folder that came back is another one")
    report = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average": [round(x, 2) for x in load],
        },
        "seed": SEED,
        "jobs": args.jobs,
        "shards": SHARDS,
        "folder_bytes": nbytes,
        "esp_bytes": esp_bytes,
        "results": results,
    }
    for name, row in results.items():
        print(
            f"{name:10} {row['seconds']:7.1f} s  {row['mb_per_s']:6.0f} MB/s"
            f" ({row['mb_per_processor_s']:.0f} a processor second)"
            f"  peak {row['peak_bytes'] / 1e6:,.0f} MB"
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
