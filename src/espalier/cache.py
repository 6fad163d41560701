"""Where things are kept between runs that can be had again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The user's cache folder: ``$XDG_CACHE_HOME/espalier`` or ``~/.cache/espalier``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "espalier"
