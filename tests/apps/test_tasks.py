"""The reference app's data sets, on small generated files."""

import gzip
import os
import pickle
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn
from torch.nn import functional
from torchvision import datasets

from apps.train.client_app import gradient, partition_of
from apps.train.settings import Settings
from apps.train.tasks import discover
from apps.train.tasks.augmentation import crop_and_flip
from flwr_byzasync import ConfigError, Query
from tests.apps.image_files import IDX, NAMES, PARTS, idx_arrays, idx_bytes, write_cifar, write_idx

ROOT = Path(__file__).parents[2]
DEFAULTS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"][
    "app"
]["config"]


def below(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


@pytest.mark.parametrize("name", IDX)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("flat", [True, False])
def test_idx_files_are_read_packed_or_not_from_either_folder_and_nothing_is_written(
    name: str, packed: bool, flat: bool, tmp_path: Path
) -> None:
    write_idx(tmp_path if flat else tmp_path / IDX[name] / "raw", packed)
    before = below(tmp_path)
    for part, split in zip(PARTS, discover()[name].load(str(tmp_path)), strict=True):
        images, labels = (
            torch.tensor(idx_arrays()[f"{part}-{kind}-ubyte"])
            for kind in ("images-idx3", "labels-idx1")
        )
        assert split.inputs.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert split.inputs.shape == (PARTS[part], 1, 28, 28)
        assert torch.equal(split.inputs[:, 0], images) and torch.equal(split.labels, labels)
    assert below(tmp_path) == before


@pytest.mark.parametrize("name", IDX)
def test_idx_files_are_read_as_by_torchvision(name: str, tmp_path: Path) -> None:
    write_idx(tmp_path / IDX[name] / "raw", packed=False)
    for train, split in zip((True, False), discover()[name].load(str(tmp_path)), strict=True):
        theirs = getattr(datasets, IDX[name])(tmp_path, train=train)
        assert torch.equal(split.inputs[:, 0], theirs.data)
        assert torch.equal(split.labels, theirs.targets)


@pytest.mark.parametrize("name", [*IDX, "cifar10"])
def test_missing_files_are_named_with_the_way_to_get_them(name: str, tmp_path: Path) -> None:
    task = discover()[name]
    for data_dir in ("", str(tmp_path)):
        for call in (task.check, task.load):
            with pytest.raises(ConfigError, match=r"^data-dir=.*download=true") as refused:
                call(data_dir)
            assert task.files is not None
            assert all(f in str(refused.value) for f in (*task.files.names, *task.files.folders))
    assert list(tmp_path.iterdir()) == []


def test_a_data_set_s_own_folder_takes_precedence_over_files_beside_it(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / f"{NAMES[0]}.gz").write_bytes(b"images of another data set")
    write_idx(tmp_path / "MNIST" / "raw")
    assert len(discover()["mnist"].load(str(tmp_path))[0].labels) == PARTS["train"]
    with pytest.raises(ConfigError):
        discover()["fashion-mnist"].load(str(tmp_path))


def test_one_missing_file_is_enough_to_refuse(tmp_path: Path) -> None:
    write_idx(tmp_path)
    discover()["mnist"].check(str(tmp_path))
    (tmp_path / f"{NAMES[3]}.gz").unlink()
    with pytest.raises(ConfigError, match=r"^data-dir="):
        discover()["mnist"].check(str(tmp_path))


def test_a_download_needs_a_directory() -> None:
    with pytest.raises(ConfigError, match=r"^data-dir='' .* a directory to download to"):
        discover()["mnist"].check("", download=True)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: gzip.compress(gzip.decompress(data)[:-1]),
        lambda data: gzip.compress(gzip.decompress(data) + b"0"),
        lambda data: gzip.compress(b"\0\0\x0d" + gzip.decompress(data)[3:]),
        lambda data: gzip.compress(b""),
        lambda data: gzip.compress(b"<html>"),
        lambda data: b"<html>",
        lambda data: b"",
        lambda data: data[:10] + bytes(len(data) - 18) + data[-8:],
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_idx_file_is_refused_by_name(
    name: str, damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    write_idx(tmp_path)
    path = tmp_path / f"{name}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=rf"^data-dir=.*{name}.gz is a whole IDX file"):
        discover()["mnist"].load(str(tmp_path))


def test_as_many_labels_as_images_are_required(tmp_path: Path) -> None:
    write_idx(tmp_path)
    (tmp_path / f"{NAMES[1]}.gz").write_bytes(gzip.compress(idx_bytes(np.zeros(39))))
    with pytest.raises(ConfigError, match="as many images as labels"):
        discover()["mnist"].load(str(tmp_path))


def test_files_are_downloaded_only_if_allowed_and_only_if_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def download(self: Any) -> None:
        calls.append(self.root)
        write_idx(Path(self.raw_folder), packed=False)

    monkeypatch.setattr(datasets.MNIST, "download", download)
    task = discover()["mnist"]
    with pytest.raises(ConfigError):
        task.load(str(tmp_path))
    assert calls == []
    first, _ = task.load(str(tmp_path), download=True)
    again, _ = task.load(str(tmp_path), download=True)
    assert len(calls) == 1 and torch.equal(first.inputs, again.inputs)
    arrived = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert arrived == {f"MNIST/raw/{name}" for name in NAMES}
    assert {p.name for p in tmp_path.iterdir()} == {"MNIST"}


def test_a_download_that_fails_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(self: Any) -> None:
        write_idx(Path(self.raw_folder))
        raise RuntimeError("Error downloading:\nno network\n")

    monkeypatch.setattr(datasets.MNIST, "download", download)
    with pytest.raises(ConfigError, match=r"^download=True .*no network") as refused:
        discover()["mnist"].load(str(tmp_path), download=True)
    assert "\n" not in str(refused.value) and list(tmp_path.iterdir()) == []


def test_cifar10_is_read_with_channels_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = write_cifar(tmp_path, monkeypatch)
    before = below(tmp_path)
    training, test = discover()["cifar10"].load(str(tmp_path))
    assert training.inputs.shape == (40, 3, 32, 32) and test.inputs.shape == (8, 3, 32, 32)
    assert training.inputs.dtype == torch.uint8 and training.inputs.is_contiguous()
    second, labels = written["data_batch_2"]
    assert torch.equal(training.inputs[8:16].reshape(8, -1), torch.tensor(second))
    assert training.labels[8:16].tolist() == labels and training.labels.dtype == torch.int64
    assert test.labels.tolist() == written["test_batch"][1]
    assert below(tmp_path) == before


def test_a_pickle_that_is_not_the_original_is_refused_unopened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    write_cifar(tmp_path, monkeypatch)
    (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ConfigError, match=r"^data-dir=.*original files"):
        discover()["cifar10"].load(str(tmp_path))
    assert not (tmp_path / "sprung").exists()


def run_config(data_dir: Path, **changes: Any) -> dict[str, Any]:
    changed = {key.replace("_", "-"): value for key, value in changes.items()}
    return DEFAULTS | {"data-dir": str(data_dir)} | changed


@pytest.mark.parametrize("name", [*IDX, "cifar10"])
def test_a_data_set_without_its_files_is_refused_with_the_settings(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"^data-dir="):
        Settings.of(run_config(tmp_path, dataset=name))
    assert Settings.of(run_config(tmp_path, dataset=name, download=True)).download
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_one_is_refused_with_the_cnn(tmp_path: Path) -> None:
    write_idx(tmp_path)
    with pytest.raises(ConfigError, match=r"^batch-size=1 "):
        Settings.of(run_config(tmp_path, dataset="mnist", model="cnn", batch_size=1))


def query_of(model: nn.Module, config: dict[str, Any], seed: int) -> Query:
    context = Context(1, 2, {"partition-id": 1, "num-partitions": 2}, RecordDict(), config)
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    generator = torch.Generator().manual_seed(seed)
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
    return Query(parameters, buffers, generator, context, {})


def test_a_gradient_on_augmented_images_is_reproducible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cifar(tmp_path, monkeypatch)
    config = run_config(
        tmp_path, dataset="cifar10", model="cnn", attack="none", batch_size=6, partition="iid"
    )
    model = discover()["cifar10"].make_model("cnn", config["seed"])
    answer, again = (gradient(query_of(model, config, seed=3)) for _ in range(2))
    query = query_of(model, config, seed=3)
    examples = partition_of(query.context)
    batch = torch.randint(len(examples.labels), (6,), generator=query.generator)
    images = crop_and_flip(examples.inputs[batch], query.generator)
    assert not torch.equal(images, examples.inputs[batch])
    functional.cross_entropy(model.train()(images), examples.labels[batch]).backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(answer.gradients[key], parameter.grad)
        assert torch.equal(answer.gradients[key], again.gradients[key])
    for key, buffer in model.named_buffers():
        torch.testing.assert_close(answer.buffers[key], buffer)


@pytest.mark.parametrize("partition", ["iid", "dirichlet(0.5)"])
def test_nodes_share_the_training_images_of_a_file(partition: str, tmp_path: Path) -> None:
    write_idx(tmp_path)
    config = run_config(tmp_path, dataset="fashion-mnist", partition=partition, attack="none")
    nodes = [{"partition-id": node, "num-partitions": 3} for node in range(3)]
    parts = [partition_of(Context(1, 2, node, RecordDict(), config)) for node in nodes]
    training, _ = discover()["fashion-mnist"].load(str(tmp_path))
    assert all(len(part.labels) > 0 for part in parts)
    inputs = torch.cat([part.inputs for part in parts]).flatten(1)
    assert sorted(inputs.tolist()) == sorted(training.inputs.flatten(1).tolist())
    rows, labels = training.inputs.flatten(1).tolist(), training.labels.tolist()
    known = {tuple(row): label for row, label in zip(rows, labels, strict=True)}
    assigned = torch.cat([part.labels for part in parts]).tolist()
    assert assigned == [known[tuple(row)] for row in inputs.tolist()]
