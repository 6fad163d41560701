"""What the results were measured on, without names of hosts."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import numba
import numpy
import torch

import espalier


def machine() -> dict[str, Any]:
    """Processor, cores and versions."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].partition(":")[2].strip() if lines else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "numba": numba.__version__,
        "espalier": espalier.__version__,
    }
