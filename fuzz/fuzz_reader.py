"""Coverage-guided fuzzing of the reader, with atheris (libFuzzer).

    python fuzz/fuzz_reader.py --seed DIR        # write the first files of a corpus
    NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=build/numba-boundscheck \\
        python fuzz/fuzz_reader.py DIR -max_total_time=3600 -max_len=8192
    python fuzz/fuzz_reader.py --pack DIR        # the smallest corpus, into corpus.zip

What is instrumented is the Python of the container and of entropy coding; the kernels run compiled,
with every index checked. A finding is whatever is not a ``FormatError``: another exception, more
than a few seconds of the processor, more than 256 MiB beyond what the process has before the file
(libFuzzer itself grows by some 80 bytes an input). It is left as a file ``crash-...`` beside.
Options behind the folder are libFuzzer's.
"""

import argparse
import importlib
import random
import resource
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "tests" / "hostile" / "corpus.zip"
sys.path.insert(0, str(CORPUS.parent))

# What is imported already is not instrumented: numba could not compile it.
for _path in sorted(ROOT.joinpath("src/espalier/kernels").glob("[a-z]*.py")):
    importlib.import_module(f"espalier.kernels.{_path.stem}")
with atheris.instrument_imports(include=["espalier"]):
    import structured

SECONDS = 4.0
"""Of a file; checked indices make the kernels a few times slower."""
MEMORY = 256 << 20


def custom_mutator(data, max_size, seed):
    rng = random.Random(seed)

    def change(body, most):
        return atheris.Mutate(body, most)

    return structured.mutate(data, rng, change)[:max_size]


def custom_crossover(first, second, max_size, seed):
    rng = random.Random(seed)
    return structured.mutate(first, rng, structured.change_bytes(rng), second)[:max_size]


def exercise(data):
    """A file, within what it may take."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))
    structured.exercise_within(data, SECONDS)


def seed(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in structured.seeds():
        (folder / f"{name}.esp").write_bytes(data)
    for path in sorted(ROOT.joinpath("tests/golden").glob("*.esp")):
        # A golden file tensor by tensor: small files are changed sooner.
        for part in structured.take_apart(path.read_bytes()):
            if sum(len(body) for _, body in part.streams) < 2000:
                name = part.name.decode().replace("/", "_")
                (folder / f"{path.stem}-{name}.esp").write_bytes(structured.assemble([part]))
    if CORPUS.exists():
        with zipfile.ZipFile(CORPUS) as archive:
            archive.extractall(folder)


def pack(folder):
    """The files that libFuzzer keeps of a corpus, in the order of their names."""
    with tempfile.TemporaryDirectory() as small:
        command = [sys.executable, __file__, "-merge=1", small, str(folder)]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(CORPUS, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(Path(small).iterdir()):
                archive.writestr(zipfile.ZipInfo(path.name), path.read_bytes())
    print(f"{CORPUS}: {CORPUS.stat().st_size} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=Path)
    parser.add_argument("--pack", type=Path)
    args, rest = parser.parse_known_args()
    if args.seed:
        return seed(args.seed)
    if args.pack:
        return pack(args.pack)
    for _, data in structured.seeds():  # kernels are compiled before memory is limited
        structured.exercise(data)
    atheris.Setup(
        [f"{sys.executable} {__file__}", *rest],  # what libFuzzer starts again to merge
        exercise,
        custom_mutator=custom_mutator,
        custom_crossover=custom_crossover,
    )
    return atheris.Fuzz()


if __name__ == "__main__":
    main()
