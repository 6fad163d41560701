"""Cold start: ``espalier decompress`` and ``espalier.load`` of a small file in fresh processes.

    python benchmarks/bench_cold_start.py [--rounds 5] [--output FILE.json]

The file: twenty layers of 64 x 64 x 3 x 3, a third of the weights kept, with 8 bits, biases exact.
First with an empty cache of compiled kernels (each round a new one), then again with what the first
process left there. ``load`` runs where NumPy and numba alone can be imported. Seconds of the
whole process by the clock, and of the processor (with all its threads): medians; and of ``load``
those that import and decoding take inside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

SEED = 0
COMMAND = "import sys; from espalier.cli import main; sys.exit(main())"
LOAD = (
    "import sys, time; start = time.perf_counter(); import espalier; espalier.load(sys.argv[1]); "
    "print(time.perf_counter() - start)"
)
ALONE = Path(__file__).with_name("alone.py")


def make(folder: Path) -> Path:
    """A small ``.esp`` file with sparse codebooks and exact tensors."""
    rng = np.random.default_rng(SEED)
    tensors = {}
    for i in range(20):
        tensors[f"{i}.weight"] = rng.normal(0, 0.05, (64, 64, 3, 3)).astype(np.float32)
        tensors[f"{i}.bias"] = rng.normal(0, 0.05, 64).astype(np.float32)
    np.savez(folder / "model.npz", **tensors)
    source, esp = folder / "model.npz", folder / "model.esp"
    _run(None, "-c", COMMAND, "compress", source, "-o", esp, "--density=0.33", "--bits=8", "-q")
    return esp


def _run(cache: Path | None, *args: object) -> tuple[float, float, float | None]:
    """Seconds of a process by the clock and of the processor, and those that it prints, if any."""
    environment = dict(os.environ)
    if cache is not None:
        environment["NUMBA_CACHE_DIR"] = str(cache)
    start, before = time.perf_counter(), os.times()
    command = [sys.executable, *map(str, args)]
    printed = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE).stdout
    clock, after = time.perf_counter() - start, os.times()
    return clock, sum(after[2:4]) - sum(before[2:4]), float(printed) if printed else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/cold_start.json"))
    args = parser.parse_args()
    times: dict[str, list[tuple[float, float, float | None]]] = defaultdict(list)
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        esp = make(folder)
        commands = {
            "decompress": ("-c", COMMAND, "decompress", esp, "-o", folder / "x.safetensors", "-fq"),
            "load": (ALONE, LOAD, esp),
        }
        for i in range(args.rounds):
            for name, command in commands.items():
                for kind in ("first", "again"):
                    cache = folder / f"cache-{name}-{i}"
                    times[f"{name}, {kind}"].append(_run(cache, *command))
            load.append(os.getloadavg()[0])
        size = esp.stat().st_size
    results = {
        kind: {
            "seconds": round(statistics.median(clock for clock, _, _ in found), 2),
            "processor_seconds": round(statistics.median(used for _, used, _ in found), 2),
            "fastest_seconds": round(min(clock for clock, _, _ in found), 2),
        }
        | ({"inside_seconds": round(statistics.median(inside), 2)} if inside else {})
        for kind, found in times.items()
        if (inside := [own for *_, own in found if own is not None]) is not None
    }
    for kind, row in results.items():
        print(f"{kind:17} {row['seconds']:6.2f} s  ({row['processor_seconds']:.2f} of processor)")
    report = {
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average": [round(x, 2) for x in load],
        },
        "file_bytes": size,
        "rounds": args.rounds,
        "results": results,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
