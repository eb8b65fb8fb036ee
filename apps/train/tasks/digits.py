"""Handwritten digits of scikit-learn: 1,797 real 8x8 images inside the package, no download."""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from apps.train.tasks.task import Split, Task

TEST_EXAMPLES = 360
SPLIT_SEED = 0
"""The test set is the same whatever the seed of a run."""


def read(folder: Path) -> tuple[Split, Split]:
    """Return training and test examples; `folder` is not needed.

    Pixels are shifted and scaled by the mean and deviation of all training pixels. With pixels
    in [0, 1] the gradients of all examples share one large direction, and with stale gradients
    that direction decides how small the step must be.
    """
    del folder
    raw = load_digits()
    inputs = torch.tensor(raw.data, dtype=torch.float32)
    labels = torch.tensor(raw.target, dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, training = order[:TEST_EXAMPLES], order[TEST_EXAMPLES:]
    inputs = (inputs - inputs[training].mean()) / inputs[training].std()
    return Split(inputs[training], labels[training]), Split(inputs[test], labels[test])


def mlp() -> nn.Module:
    """Return 64 -> 32 -> 10 with ReLU: 2,410 parameters."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def mlp_bn() -> nn.Module:
    """Return the same with batch normalisation: a model with buffers."""
    return nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))


TASK = Task("digits", classes=10, read=read, models={"mlp": mlp, "mlp-bn": mlp_bn})
