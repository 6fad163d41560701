"""``espalier``, again and again, each time in a process of its own that has torch loaded already.

    python forked.py < requests

A request is a JSON object in a line: ``args``, ``cwd``, ``env``, and the files ``out`` and ``err``.
The answer is a line with the exit status. To load torch and to leave it takes longer than most
commands; what a command loads is tested with processes that begin from nothing.
"""

import atexit
import importlib
import json
import os
import runpy
import sys
import threading
import traceback

LOADED = "torch", "numba", "espalier.cli", "espalier.recipe", "espalier.torch_io"


def command(args, cwd, env, out, err):
    """Run one command in this process: its exit status."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    sys.argv, sys.path[0] = ["espalier", *args], cwd
    try:
        runpy.run_module("espalier", run_name="__main__", alter_sys=True)
    except SystemExit as left:
        return int(left.code or 0)
    return 0


def main():
    for name in LOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child:
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
            continue
        status = 1
        try:
            status = command(**request)
            # What an interpreter does at its end, but for the modules, which take a second.
            threading._shutdown()
            atexit._run_exitfuncs()
        except Exception:  # noqa: BLE001 - it ends as an interpreter would
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
