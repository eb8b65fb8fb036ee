"""Gradient estimators: the vector that a node sends, as pure (init, update) pairs.

An estimator never accesses data. It gets the gradient on the batch of this query as a function
of the point, because μ² needs the same batch at two points.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from flwr_byzasync._checks import check_number
from flwr_byzasync.errors import ConfigError

Memory = tuple[Tensor, ...]
"""State of a node between two queries; empty before the first and after a restart."""

Gradient = Callable[[Tensor], Tensor]
"""``∇f(·; z)`` at one fixed batch z: (d,) -> (d,)."""


class Estimator(NamedTuple):
    """A pure pair of functions; all state is in the `Memory`.

    Parameters
    ----------
    init : callable
        ``() -> Memory``: the memory of a node that has not replied yet.
    update : callable
        ``(memory, point, gradient, count) -> (vector, memory)`` with `point` the (d,) query,
        `gradient` at this query's batch and `count` the replies accepted from this node.
    """

    init: Callable[[], Memory]
    update: Callable[[Memory, Tensor, Gradient, int], tuple[Tensor, Memory]]


def _nothing() -> Memory:
    return ()


def sgd() -> Estimator:
    """Plain stochastic gradient ``d = ∇f(x_t; z)``.

    Examples
    --------
    >>> import torch
    >>> estimator = sgd()
    >>> estimator.update(estimator.init(), torch.tensor([3.0]), lambda x: 2 * x, 0)[0]
    tensor([6.])
    """

    def update(
        memory: Memory, point: Tensor, gradient: Gradient, count: int
    ) -> tuple[Tensor, Memory]:
        del memory, count
        return gradient(point), ()

    return Estimator(_nothing, update)


def momentum(beta: float = 0.9) -> Estimator:
    """Exponential average ``d = β d_prev + (1 − β) ∇f(x_t; z)``; first ``d = ∇f``.

    Parameters
    ----------
    beta : float, default 0.9
        Weight of the previous vector, in [0, 1).

    Raises
    ------
    ConfigError
        If `beta` is out of range.
    """
    check_number("beta", beta, low=0, high=1, closed="left", fix="pass for example beta=0.9")

    def update(
        memory: Memory, point: Tensor, gradient: Gradient, count: int
    ) -> tuple[Tensor, Memory]:
        del count
        fresh = gradient(point)
        vector = beta * memory[0] + (1 - beta) * fresh if memory else fresh
        return vector, (vector,)

    return Estimator(_nothing, update)


def mu2(beta: float | None = 0.25) -> Estimator:
    """μ²-SGD's corrected momentum (STORM): the same batch at this query and at the last.

    ``d = ∇f(x_t; z) + (1 − β)(d_prev − ∇f(x_prev; z))``; first ``d = ∇f(x_t; z)``.

    Parameters
    ----------
    beta : float or None, default 0.25
        Weight of the new gradient, in (0, 1]; 0.25 in the paper's experiments. None is the
        theory's ``β = 1/(s_i + 1)``, s_i the smaller of the count sent with the query and the
        node's replies since its memory began.

    Raises
    ------
    ConfigError
        If `beta` is out of range.

    Notes
    -----
    The count alone would be wrong for a node that lost its memory: with s_i = 999 its next vector
    would keep 999 parts in 1000 of one noisy gradient, for about a thousand replies. The average
    holds only the replies since the memory began; if nothing was lost, these are s_i.

    Two gradients per query, except for the first. Dahan and Levy 2024, arXiv 2501.09621,
    algorithm 2; the correction is from Cutkosky and Orabona 2019.

    Examples
    --------
    >>> import torch
    >>> estimator = mu2(beta=0.25)
    >>> d, memory = estimator.update((), torch.tensor([2.0]), lambda x: x, 0)
    >>> d, memory = estimator.update(memory, torch.tensor([1.0]), lambda x: x + 4, 1)
    >>> d  # (1 + 4) + 0.75 (2 − (2 + 4))
    tensor([2.])
    """
    if beta is not None:
        fix = "pass for example beta=0.25, or None for the theory's 1/(s+1)"
        check_number("beta", beta, low=0, high=1, closed="right", fix=fix)

    def update(
        memory: Memory, point: Tensor, gradient: Gradient, count: int
    ) -> tuple[Tensor, Memory]:
        fresh = gradient(point)
        vector, made = fresh, 0
        if memory:
            last_point, last_vector, *counter = memory
            made = int(counter[0]) if counter else 0
            weight = 1 / (min(made, count) + 1) if beta is None else beta
            vector = fresh + (1 - weight) * (last_vector - gradient(last_point))
        counted = (torch.tensor(made + 1),) if beta is None else ()
        return vector, (point, vector, *counted)

    return Estimator(_nothing, update)


ESTIMATORS: dict[str, Callable[..., Estimator]] = {"mu2": mu2, "momentum": momentum, "sgd": sgd}


def build(name: str, beta: float | None = None) -> Estimator:
    """Build an estimator from its name.

    Parameters
    ----------
    name : {"mu2", "momentum", "sgd"}
        The estimator.
    beta : float, optional
        The estimator's β; None means its default. Plain SGD has none.

    Raises
    ------
    ConfigError
        If the name is unknown or β is out of range.
    """
    if name not in ESTIMATORS:
        legal = f"one of {', '.join(ESTIMATORS)}"
        raise ConfigError("optimizer", name, legal, "write for example 'mu2'")
    if beta is None or name == "sgd":
        return ESTIMATORS[name]()
    return ESTIMATORS[name](beta)
