"""Images and labels in IDX files, the format of MNIST and Fashion-MNIST.

torchvision reads only unpacked files in a folder of its own, and importing it takes longer than
reading 70,000 images. This reader accepts files packed or not.
"""

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from apps.train.tasks.files import Files, find
from apps.train.tasks.task import Split
from flwr_byzasync import ConfigError

PARTS = ("train", "t10k")
IMAGES, LABELS = "{}-images-idx3-ubyte", "{}-labels-idx1-ubyte"
SUFFIXES = ("", ".gz")
UNSIGNED_BYTES = 8


def files(dataset: str) -> Files:
    """Return the files of a data set in this format, by its class in torchvision.

    Examples
    --------
    >>> files("MNIST").folders
    ('MNIST/raw', '')
    """
    # Its own folder first: all data sets in this format have the same file names.
    names = tuple(name.format(part) for part in PARTS for name in (IMAGES, LABELS))
    return Files(dataset, names, (f"{dataset}/raw", ""), SUFFIXES)


def read(folder: Path) -> tuple[Split, Split]:
    """Return training and test examples: (n, 1, height, width) uint8 and (n,) int64.

    Raises
    ------
    ConfigError
        If a file is damaged, or has fewer or more labels than images.
    """
    training, test = (_split(folder, part) for part in PARTS)
    return training, test


def _split(folder: Path, part: str) -> Split:
    images = _tensor(folder, IMAGES.format(part), dimensions=3)
    labels = _tensor(folder, LABELS.format(part), dimensions=1)
    if len(images) != len(labels):
        legal = f"a directory whose {part} files hold as many images as labels"
        raise ConfigError("data-dir", str(folder), legal, "fetch the files again")
    return Split(images.unsqueeze(1), labels.long())


def _tensor(folder: Path, name: str, dimensions: int) -> Tensor:
    """Read one file: two zero bytes, type, number of dimensions, sizes, values."""
    path = find(folder, name, SUFFIXES)
    assert path is not None, f"Files found {name} in {folder}"
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            data = bytearray(file.read())
        head = 4 + 4 * dimensions
        shape = np.frombuffer(data, ">u4", count=dimensions, offset=4).tolist()
        if data[:4] != bytes((0, 0, UNSIGNED_BYTES, dimensions)):
            raise ValueError("wrong header")
        return torch.frombuffer(data, dtype=torch.uint8, offset=head).reshape(shape)
    except (ValueError, RuntimeError, OSError, EOFError, zlib.error) as error:
        legal = f"a directory whose {path.name} is a whole IDX file of bytes ({error})"
        raise ConfigError("data-dir", str(folder), legal, "fetch the file again") from error
