"""Partitions of the examples among the nodes, the same on every node.

flwr-datasets has such partitioners, but would add pyarrow, pandas and datasets to the environment
that every `flwr run` builds.
"""

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from flwr_byzasync import ConfigError

Partition = Callable[[Tensor, int, int], list[Tensor]]
"""``(labels, nodes, seed) -> indices of each node's examples``."""

FIX = "pass 'iid', or for example 'dirichlet(0.5)'"
LARGEST = 1e12
"""Above it shares are equal to a millionth, and far above sums overflow."""


def build(text: str) -> Partition:
    """Return the partition for a run-config value.

    Raises
    ------
    ConfigError
        If it is neither ``iid`` nor ``dirichlet(ALPHA)`` with ALPHA in (0, inf).

    Examples
    --------
    >>> [len(part) for part in build("iid")(torch.zeros(7), 3, 1)]
    [3, 2, 2]
    """
    if text == "iid":
        return iid
    match = re.fullmatch(r"dirichlet\((.*)\)", text)
    try:
        alpha = float(match[1]) if match else 0.0
    except ValueError:
        alpha = 0.0
    if not 0 < alpha < np.inf:
        raise ConfigError("partition", text, "iid, or dirichlet(ALPHA) with ALPHA in (0, inf)", FIX)
    return partial(dirichlet, alpha)


def iid(labels: Tensor, nodes: int, seed: int) -> list[Tensor]:
    """Deal a seeded shuffle round-robin; sizes differ by at most one.

    Parameters
    ----------
    labels : Tensor
        (n,), of all training examples.
    nodes : int
        Number of parts, in [1, n].
    seed : int
        Of the shuffle.

    Raises
    ------
    ConfigError
        If there are more nodes than examples.
    """
    _check_enough(labels, nodes)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return [order[node::nodes] for node in range(nodes)]


def dirichlet(alpha: float, labels: Tensor, nodes: int, seed: int) -> list[Tensor]:
    """Split each class in proportions drawn from a symmetric Dirichlet distribution.

    A small `alpha` concentrates a class on few nodes, a large one spreads it evenly. An empty node
    takes one example from the largest.

    Parameters
    ----------
    alpha : float
        Concentration, in (0, inf).
    labels, nodes, seed
        As for `iid`.

    Raises
    ------
    ConfigError
        If there are more nodes than examples.

    References
    ----------
    Yurochkin et al., Bayesian Nonparametric Federated Learning of Neural Networks, ICML 2019,
    arXiv 1905.12022.
    """
    _check_enough(labels, nodes)
    generator = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(nodes)]
    classes = labels.numpy()
    for label in np.unique(classes):
        members = generator.permutation(np.flatnonzero(classes == label))
        shares = generator.dirichlet([min(alpha, LARGEST)] * nodes)
        cuts = (np.cumsum(shares)[:-1] * len(members)).round().astype(int)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.extend(piece.tolist())
    for part in parts:
        if not part:
            part.append(max(parts, key=len).pop())
    return [torch.tensor(part) for part in parts]


def _check_enough(labels: Tensor, nodes: int) -> None:
    if nodes > len(labels):
        legal = f"at most the {len(labels)} training examples"
        raise ConfigError("num-partitions", nodes, legal, "start fewer nodes")
