"""A task: a data set and the models for it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from apps.train.tasks.files import Files


@dataclass(frozen=True)
class Split:
    """Examples and their labels, (n, ...) and (n,) int64.

    Inputs are floats, or uint8 pixels for models that begin with `Standardise`: each process of
    a simulation holds the data, and 60,000 images of 28x28 take 47 MB as uint8, 188 MB as float32.
    """

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Task:
    """A data set and the models for it.

    Parameters
    ----------
    name : str
        Value of the run-config key ``dataset``.
    classes : int
        Labels are 0 .. classes − 1.
    read : callable
        ``folder -> (training, test)``, always the same split.
    models : mapping of str to callable
        Value of the run-config key ``model`` -> constructor.
    files : Files, optional
        Files that the data directory must have; none if omitted.
    augment : callable, optional
        ``(inputs, generator) -> inputs`` of a training batch.
    """

    name: str
    classes: int
    read: Callable[[Path], tuple[Split, Split]]
    models: Mapping[str, Callable[[], nn.Module]]
    files: Files | None = None
    augment: Callable[[Tensor, Generator], Tensor] | None = None

    def check(self, data_dir: str, download: bool = False) -> None:
        """Check that the files exist, without reading them.

        Raises
        ------
        ConfigError
            If they are missing and must not be downloaded, with their names.
        """
        if self.files is not None:
            self.files.check(data_dir, download)

    def load(self, data_dir: str, download: bool = False) -> tuple[Split, Split]:
        """Return training and test examples.

        Parameters
        ----------
        data_dir : str
            Folder of the files. Only a download writes to it.
        download : bool, default False
            Whether missing files may be downloaded.

        Raises
        ------
        ConfigError
            If files are missing, damaged, or cannot be downloaded.
        """
        self.check(data_dir, download)
        return self.read(self.files.obtain(data_dir) if self.files else Path(data_dir))

    def make_model(self, name: str, seed: int) -> nn.Module:
        """Return a model whose initial values depend only on the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.models[name]()
