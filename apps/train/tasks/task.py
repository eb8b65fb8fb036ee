"""What a task is: data, models and how both are cut for one node."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Split:
    """Examples and their labels, (n, ...) and (n,)."""

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
    load : callable
        ``data_dir -> (training, test)``; the same split every time.
    models : mapping of str to callable
        Value of the run-config key ``model`` -> a way to make it.
    """

    name: str
    classes: int
    load: Callable[[str], tuple[Split, Split]]
    models: Mapping[str, Callable[[], nn.Module]]

    def make_model(self, name: str, seed: int) -> nn.Module:
        """Return a model whose initial values follow from the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.models[name]()


def partition_iid(split: Split, partition: int, partitions: int, seed: int) -> Split:
    """Return one node's share of the examples: every `partitions`-th of a seeded shuffle.

    Parameters
    ----------
    split : Split
        All training examples.
    partition, partitions : int
        Which share of how many; sizes differ by one at most.
    seed : int
        Of the shuffle, the same for all nodes.
    """
    order = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(seed))
    mine = order[partition::partitions]
    return Split(split.inputs[mine], split.labels[mine])
