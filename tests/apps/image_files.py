"""Small generated files in the formats of MNIST and CIFAR-10."""

import gzip
import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

IDX = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
PARTS = {"train": 40, "t10k": 12}
NAMES = [f"{part}-{kind}-ubyte" for part in PARTS for kind in ("images-idx3", "labels-idx1")]


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def idx_arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    arrays = {}
    for part, n in PARTS.items():
        arrays[f"{part}-images-idx3-ubyte"] = draw.integers(0, 256, (n, 28, 28))
        arrays[f"{part}-labels-idx1-ubyte"] = draw.permutation(np.arange(n) % 10)
    return arrays


def write_idx(folder: Path, packed: bool = True) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in idx_arrays().items():
        data = idx_bytes(array)
        path, data = (f"{name}.gz", gzip.compress(data)) if packed else (name, data)
        (folder / path).write_bytes(data)


def write_cifar(root: Path, patch: pytest.MonkeyPatch) -> dict[str, tuple[np.ndarray, list[int]]]:
    """Write pickled batches like the original's, and make torchvision accept their checksums."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    written, sums = {}, {}
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"):
        images = draw.integers(0, 256, (8, 3072), dtype=np.uint8)
        labels = draw.integers(0, 10, 8).tolist()
        batch: dict[str, Any] = {"data": images, "labels": labels}
        content = pickle.dumps({"label_names": list("abcdefghij")} if "." in name else batch)
        (folder / name).write_bytes(content)
        written[name], sums[name] = (images, labels), hashlib.md5(content).hexdigest()
    training = [[name, sums[name]] for name in written if name.startswith("data")]
    patch.setattr(datasets.CIFAR10, "train_list", training)
    patch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {**datasets.CIFAR10.meta, "md5": sums["batches.meta"]}
    patch.setattr(datasets.CIFAR10, "meta", meta)
    return written
