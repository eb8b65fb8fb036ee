"""Strategies ready to use: the paper's algorithm, and its plain relatives.

A preset is a function of `AsyncRobust`'s arguments, as optax's aliases are chains of its parts.
"""

from typing import Any

from flwr_byzasync.aggregators import CTMA, GeometricMedian
from flwr_byzasync.optimizers import SGD, AnyTimeSGD
from flwr_byzasync.strategy import AsyncRobust


def mu2_sgd(
    byz_fraction: float, lr: float = 0.01, gamma: float = 0.1, **settings: Any
) -> AsyncRobust:
    """Return asynchronous Byzantine-robust μ²-SGD, the paper's algorithm.

    w-CTMA over the weighted geometric median, AnyTime-SGD on the server, and the vectors of a
    ``client_app(..., estimator=mu2())``.

    Parameters
    ----------
    byz_fraction : float
        λ in [0, 1/2): the largest share of the weight that Byzantine nodes may hold.
    lr : float, default 0.01
        η in (0, inf).
    gamma : float, default 0.1
        γ in (0, 1].
    **settings
        Further arguments of `AsyncRobust`.

    Raises
    ------
    ConfigError
        If a setting is out of range.

    Examples
    --------
    >>> mu2_sgd(byz_fraction=0.4, min_available_nodes=10).aggregator
    CTMA(base=GeometricMedian(), byz_fraction=0.4)
    """
    rule = CTMA(GeometricMedian(), byz_fraction=byz_fraction)
    return AsyncRobust(rule, AnyTimeSGD(lr=lr, gamma=gamma), **settings)


def momentum_sgd(byz_fraction: float, lr: float = 0.01, **settings: Any) -> AsyncRobust:
    """Return asynchronous Byzantine-robust SGD with momentum on the nodes.

    w-CTMA over the weighted geometric median, plain SGD on the server, and the vectors of a
    ``client_app(..., estimator=momentum())``.

    Parameters
    ----------
    byz_fraction : float
        λ in [0, 1/2): the largest share of the weight that Byzantine nodes may hold.
    lr : float, default 0.01
        η in (0, inf).
    **settings
        Further arguments of `AsyncRobust`.

    Raises
    ------
    ConfigError
        If a setting is out of range.

    Examples
    --------
    >>> momentum_sgd(byz_fraction=0.4).min_available_nodes
    2
    """
    rule = CTMA(GeometricMedian(), byz_fraction=byz_fraction)
    return AsyncRobust(rule, SGD(lr=lr), **settings)
