"""What a task is: data, and the models that fit it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from apps.train.tasks.files import Files


@dataclass(frozen=True)
class Split:
    """Examples and their labels, (n, ...) and (n,) int64.

    Inputs are what the task's models take: floats, or uint8 pixels for models that begin with
    `Standardise`. Several processes of a simulation each hold the data, and 60,000 images of
    28x28 are 47 MB in bytes, 188 MB in float32.
    """

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Task:
    """A data set and the models that fit it.

    Parameters
    ----------
    name : str
        Value of the run-config key ``dataset``.
    classes : int
        Labels are 0 .. classes − 1.
    read : callable
        ``folder -> (training, test)``; the same split every time.
    models : mapping of str to callable
        Value of the run-config key ``model`` -> a way to make it.
    files : Files, optional
        What must lie in the data directory; a task without it needs none.
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
        """Look whether the files are there, without reading them.

        Raises
        ------
        ConfigError
            If they are not and may not be downloaded, naming those that are looked for.
        """
        if self.files is not None:
            self.files.check(data_dir, download)

    def load(self, data_dir: str, download: bool = False) -> tuple[Split, Split]:
        """Return training and test examples.

        Parameters
        ----------
        data_dir : str
            Where the files lie. Nothing is written there but a download.
        download : bool, default False
            Whether files that are missing may be downloaded.

        Raises
        ------
        ConfigError
            If files are missing, damaged, or cannot be downloaded.
        """
        self.check(data_dir, download)
        return self.read(self.files.obtain(data_dir) if self.files else Path(data_dir))

    def make_model(self, name: str, seed: int) -> nn.Module:
        """Return a model whose initial values follow from the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.models[name]()
