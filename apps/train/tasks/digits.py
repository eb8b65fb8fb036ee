"""Handwritten digits of scikit-learn: 1,797 8x8 images, included in the package."""

from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from apps.train.tasks.task import Split, Task

TEST_EXAMPLES = 360
SPLIT_SEED = 0
"""The test set is the same whatever the seed of a run."""


def read(folder: Path) -> tuple[Split, Split]:
    """Return training and test examples; `folder` is ignored.

    Pixels are standardised by the mean and deviation of all training pixels. With pixels in
    [0, 1] all gradients share one large direction, which under staleness bounds the step size.
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
