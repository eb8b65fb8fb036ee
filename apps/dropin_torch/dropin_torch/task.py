"""Model, data, training and evaluation on one node: plain PyTorch, no Flower."""

from functools import lru_cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

HELD_OUT = 360
"""Images held out for the server's evaluation."""


class Net(nn.Module):
    """Two convolutions with batch norm, and a linear layer, for 8x8 images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16 * 2 * 2, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the ten digits."""
        x = nn.functional.max_pool2d(nn.functional.relu(self.norm1(self.conv1(images))), 2)
        x = nn.functional.max_pool2d(nn.functional.relu(self.norm2(self.conv2(x))), 2)
        logits: Tensor = self.head(x.flatten(1))
        return logits


@lru_cache
def digits() -> TensorDataset:
    """Return all images in one fixed random order."""
    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16.0
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return TensorDataset(images[order], torch.tensor(raw.target)[order])


def held_out() -> DataLoader[tuple[Tensor, ...]]:
    """Return the server's held-out images."""
    images, labels = digits().tensors
    return DataLoader(TensorDataset(images[:HELD_OUT], labels[:HELD_OUT]), batch_size=HELD_OUT)


def partition(
    partition_id: int, num_partitions: int, batch_size: int, seed: int
) -> tuple[DataLoader[tuple[Tensor, ...]], DataLoader[tuple[Tensor, ...]]]:
    """Return one node's images: four fifths for training, one fifth for evaluation."""
    images, labels = (part[HELD_OUT:][partition_id::num_partitions] for part in digits().tensors)
    cut = len(images) * 4 // 5
    generator = torch.Generator().manual_seed(seed)
    examples = TensorDataset(images[:cut], labels[:cut])
    rest = TensorDataset(images[cut:], labels[cut:])
    # Batch norm cannot train on a batch of one.
    train = DataLoader(examples, batch_size, shuffle=True, drop_last=True, generator=generator)
    return train, DataLoader(rest, batch_size=HELD_OUT)


def train(
    net: nn.Module, loader: DataLoader[tuple[Tensor, ...]], epochs: int, lr: float
) -> list[float]:
    """Train in place; return the mean loss of each epoch."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    losses = []
    for _ in range(epochs):
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(loader))
    return losses


@torch.no_grad()
def evaluate(net: nn.Module, loader: DataLoader[tuple[Tensor, ...]]) -> tuple[float, float]:
    """Return mean loss and accuracy."""
    net.eval()
    loss, correct, count = 0.0, 0, 0
    for images, labels in loader:
        logits = net(images)
        loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        correct += int((logits.argmax(dim=1) == labels).sum())
        count += len(labels)
    return loss / count, correct / count
