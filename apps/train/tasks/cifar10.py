"""CIFAR-10: 50,000 and 10,000 colour photographs of ten kinds of things, 32x32.

Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from apps.train.tasks.augmentation import crop_and_flip
from apps.train.tasks.files import Files
from apps.train.tasks.networks import Standardise, cnn, mlp
from apps.train.tasks.task import Split, Task
from flwr_byzasync import ConfigError

PIXELS = Standardise(mean=(0.4914, 0.4822, 0.4465), deviation=(0.2470, 0.2435, 0.2616))


def read(folder: Path) -> tuple[Split, Split]:
    """Return training and test examples: (n, 3, 32, 32) uint8 and (n,) int64.

    The files are pickles; torchvision loads only those with the original's checksum, so no
    foreign code is executed.

    Raises
    ------
    ConfigError
        If a file is not the original.
    """
    # Imported late: torchvision takes a second or two, and other tasks do not need it.
    from torchvision.datasets import CIFAR10

    try:
        training, test = (CIFAR10(folder.parent, train=train) for train in (True, False))
    except RuntimeError as error:
        legal = f"a directory whose {folder.name} holds the original files"
        fix = "fetch them again, for example into an empty directory with download=true"
        raise ConfigError("data-dir", str(folder.parent), legal, fix) from error
    return _split(training.data, training.targets), _split(test.data, test.targets)


def _split(images: NDArray[np.uint8], labels: list[int]) -> Split:
    channels_first = torch.from_numpy(images.transpose(0, 3, 1, 2)).contiguous()
    return Split(channels_first, torch.tensor(labels))


TASK = Task(
    "cifar10",
    classes=10,
    read=read,
    files=Files(
        "CIFAR10",
        names=(*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"),
        folders=("cifar-10-batches-py",),
    ),
    models={"cnn": partial(cnn, PIXELS, side=32), "mlp": partial(mlp, PIXELS, side=32)},
    augment=crop_and_flip,
)
