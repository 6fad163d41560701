"""Run code in a process where of all installed packages NumPy, numba and Espalier can be imported.

python benchmarks/alone.py CODE [ARGUMENTS]
"""

import sys
from importlib.machinery import PathFinder

ALLOWED = {"espalier", "llvmlite", "numba", "numpy"}
INSTALLED = ("site-packages", "dist-packages")


class OnlyThose(PathFinder):
    """Finds what :class:`PathFinder` finds, but no other installed package."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        found = PathFinder.find_spec(name, path, target)
        where = found.origin or "" if found else ""
        if name.partition(".")[0] not in ALLOWED and any(part in where for part in INSTALLED):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found


if __name__ == "__main__":
    sys.meta_path[:] = [OnlyThose if f is PathFinder else f for f in sys.meta_path]
    code, sys.argv = sys.argv[1], ["-c", *sys.argv[2:]]
    exec(compile(code, "<code>", "exec"), {"__name__": "__main__"})
