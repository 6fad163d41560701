"""MNIST, CIFAR-10 and scikit-learn's digits as tensors in memory.

Where a file is looked for: ``data_dir``, then ``$ESPALIER_DATA``, then the user's cache folder,
then the data set's public mirrors (:mod:`espalier.zoo.download`), always with a SHA-256 check.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from espalier.cache import cache_dir
from espalier.errors import CorruptFile, DataUnavailable, MissingDependency
from espalier.samples import Samples
from espalier.zoo.download import download


@dataclass(frozen=True)
class DataSet:
    """Training and test samples. ``source``: which bytes these are, and where they were found."""

    name: str
    train: Samples
    test: Samples
    source: str


MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
# Of the unpacked files, so that any gzip of the original bytes is accepted.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CIFAR10_JPEG_SHA256 = {
    "train": "573f4d46bc21669516353c66506c22f368e1b19fa82e92bb9fde0c2abbe38dce",
    "test": "0754569f5bf30b82c358ca59179d33a7702eea18d8c54cc9dfdb051bd0df8e7c",
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _folders(name: str, data_dir: str | os.PathLike[str] | None) -> list[Path]:
    roots = [data_dir, os.environ.get("ESPALIER_DATA"), cache_dir()]
    return [Path(root) / name for root in roots if root]


def mnist(data_dir: str | os.PathLike[str] | None = None, *, offline: bool = False) -> DataSet:
    """MNIST (LeCun, Cortes and Burges): 60,000 and 10,000 grey images of 28 x 28.

    Parameters
    ----------
    data_dir : path, optional
        Folder that holds ``mnist/``, looked at first.
    offline : bool
        Do not try to download.

    Returns
    -------
    DataSet
        ``x`` float32 (N, 1, 28, 28), (pixel / 255 - 0.1307) / 0.3081; ``y`` int64.

    Raises
    ------
    DataUnavailable
        On no disk, and no mirror answered within 10 s.
    CorruptFile
        A file is there, and its bytes are not MNIST's.
    """
    folders = _folders("mnist", data_dir)
    files = [_mnist_file(name, folders, offline) for name in MNIST_SHA256]
    parts = []
    for (_, images), (_, labels) in (files[0:2], files[2:4]):
        x = torch.from_numpy(
            np.frombuffer(images, np.uint8, offset=16).reshape(-1, 1, 28, 28).copy()
        )
        y = torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64))
        parts.append(Samples((x.float() / 255 - MNIST_MEAN) / MNIST_STD, y))
    return DataSet("mnist", parts[0], parts[1], f"MNIST, {files[0][0].parent}")


def _mnist_file(name: str, folders: list[Path], offline: bool) -> tuple[Path, bytes]:
    for folder in folders:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                return path, _checked_mnist(path, path.read_bytes())
    path = folders[-1] / f"{name}.gz"
    if offline:
        raise DataUnavailable(_not_found("MNIST", folders, "and downloads are off"))
    urls = [f"{mirror}{name}.gz" for mirror in MNIST_MIRRORS]
    download(urls, path, check=lambda data: _checked_mnist(path, data))
    return path, _checked_mnist(path, path.read_bytes())


def _checked_mnist(path: Path, data: bytes) -> bytes:
    try:
        raw = gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        raise CorruptFile(f"{path}: not a gzip file ({error})") from None
    want, got = MNIST_SHA256[path.name.removesuffix(".gz")], hashlib.sha256(raw).hexdigest()
    if got != want:
        raise CorruptFile(f"{path}: SHA-256 of the unpacked file is {got}, MNIST's is {want}")
    return raw


def _not_found(what: str, folders: list[Path], why: str) -> str:
    looked = ", ".join(str(folder) for folder in folders)
    return f"{what} was not found in {looked}, {why}; set ESPALIER_DATA or --data-dir"


def cifar10(
    data_dir: str | os.PathLike[str] | None = None,
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    offline: bool = False,
) -> DataSet:
    """CIFAR-10 (Krizhevsky 2009): 50,000 and 10,000 colour images of 32 x 32.

    Two forms are read, and ``source`` says which: the original pixels
    (``cifar-10-binary.tar.gz``), or ``train.npz`` and ``test.npz`` with the images as JPEG. The
    second is lossy: networks lose about ten points on it, so compare only with the same images.

    Returns
    -------
    DataSet
        ``x`` float32 (N, 3, 32, 32), (pixel / 255 - mean) / std; ``y`` int64. The default mean and
        standard deviation are those that the ResNets of :mod:`espalier.zoo` were trained with.
    """
    folders = _folders("cifar10", data_dir)
    for folder in folders:
        archive = folder / "cifar-10-binary.tar.gz"
        if archive.is_file():
            arrays, source = _cifar10_binary(archive), f"CIFAR-10, {archive}"
            break
        if (folder / "train.npz").is_file() and (folder / "test.npz").is_file():
            arrays = [_cifar10_jpeg(folder / f"{part}.npz") for part in ("train", "test")]
            source = f"CIFAR-10 as JPEG (lossy), {folder}"
            break
    else:
        if offline:
            raise DataUnavailable(_not_found("CIFAR-10", folders, "and downloads are off"))
        archive = folders[-1] / "cifar-10-binary.tar.gz"
        download([CIFAR10_URL], archive, check=partial(_check_sha256, archive))
        arrays, source = _cifar10_binary(archive), f"CIFAR-10, {archive}"
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    parts = [
        Samples((torch.from_numpy(x).float() / 255 - shift) / scale, torch.from_numpy(y))
        for x, y in arrays
    ]
    return DataSet("cifar10", parts[0], parts[1], source)


def _check_sha256(path: Path, data: bytes) -> None:
    got = hashlib.sha256(data).hexdigest()
    if got != CIFAR10_SHA256:
        raise CorruptFile(f"{path}: SHA-256 is {got}, CIFAR-10's is {CIFAR10_SHA256}")


def _cifar10_binary(path: Path) -> list[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    data = path.read_bytes()
    _check_sha256(path, data)
    names = [[f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = {Path(m.name).name: m for m in archive.getmembers() if m.isfile()}
        parts = []
        for part in names:
            streams = [archive.extractfile(members[name]) for name in part]
            raw = b"".join(stream.read() for stream in streams if stream is not None)
            rows = np.frombuffer(raw, np.uint8).reshape(-1, 1 + 3072)
            parts.append((rows[:, 1:].reshape(-1, 3, 32, 32).copy(), rows[:, 0].astype(np.int64)))
    return parts


def _cifar10_jpeg(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        from PIL import Image
    except ImportError:
        raise MissingDependency(
            f"{path} holds JPEG images, and Pillow is not installed: pip install 'espalier[data]'"
        ) from None
    got, want = hashlib.sha256(path.read_bytes()).hexdigest(), CIFAR10_JPEG_SHA256[path.stem]
    if got != want:
        raise CorruptFile(f"{path}: SHA-256 is {got}, should be {want}")
    with np.load(path, allow_pickle=False) as arrays:
        head, body = arrays["header"].tobytes(), arrays["body"].tobytes()
        lengths, labels = arrays["lengths"].astype(np.int64), arrays["labels"].astype(np.int64)
    ends = np.cumsum(lengths)
    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    for i, (start, end) in enumerate(zip(ends - lengths, ends, strict=True)):
        images[i] = np.asarray(Image.open(io.BytesIO(head + body[start:end])))
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), labels


def digits(data_dir: str | os.PathLike[str] | None = None) -> DataSet:
    """scikit-learn's bundled digits, enlarged to MNIST's shape: 1,438 and 359 images.

    A stand-in for MNIST where there is neither network nor data: the 8 x 8 images of Alpaydin and
    Kaynak (1998), scaled bilinearly to 20 x 20 and padded to 28 x 28 as MNIST's are. Errors on it
    say nothing about MNIST. ``data_dir`` is not used; it is there so that all readers are alike.

    Returns
    -------
    DataSet
        ``x`` float32 (N, 1, 28, 28), normalised as :func:`mnist`; ``y`` int64. Every fifth image
        is a test image.
    """
    del data_dir
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingDependency(
            "the bundled digits need scikit-learn: pip install 'espalier[data]'"
        ) from None
    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels.reshape(-1, 1, 8, 8) / 16).float()
    x = torch.nn.functional.interpolate(x, size=(20, 20), mode="bilinear", align_corners=False)
    x = (torch.nn.functional.pad(x, (4, 4, 4, 4)) - MNIST_MEAN) / MNIST_STD
    y = torch.from_numpy(labels.astype(np.int64))
    test = torch.arange(len(y)) % 5 == 4
    return DataSet(
        "digits", Samples(x[~test], y[~test]), Samples(x[test], y[test]), "scikit-learn's digits"
    )
