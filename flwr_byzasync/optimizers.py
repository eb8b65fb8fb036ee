"""Server optimizers: one step on the server-side state, as pure (init, step) pairs."""

from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from flwr_byzasync._checks import check_choice, check_number, coerce_numbers
from flwr_byzasync.errors import ConfigError

LR_FIX = "pass for example lr=0.01"


@dataclass(frozen=True)
class Iterates:
    """State of an optimizer. Tensors are (d,), of one dtype and device, and never written.

    Parameters
    ----------
    start : Tensor
        Set once: the initial model, the centre of the projection.
    w : Tensor
        Every step: the iterate that the step moves.
    x : Tensor
        Every step: the query point, sent to nodes and evaluated.
    step : int
        Every step: number of server steps.
    """

    start: Tensor
    w: Tensor
    x: Tensor
    step: int = 0


@runtime_checkable
class Optimizer(Protocol):
    """Anything with these two methods steps the server.

    If its attribute ``per_node`` is true, directions are divided by the number of nodes that have
    a row, or by its ``lr`` if that is larger: see `divisor_of`.
    """

    def init(self, start: Tensor) -> Iterates:
        """Return the state at the initial model."""
        ...

    def step(self, state: Iterates, direction: Tensor) -> Iterates:
        """Return the state after one step against `direction`; write no tensor."""
        ...


@dataclass(frozen=True)
class SGD:
    """Plain server step ``w <- Π_K(w − η v)``, ``x = w``; with `per_node` v/m instead of v.

    Parameters
    ----------
    lr : float
        η in (0, inf).
    radius : float, optional
        Radius of the L2 ball around the start that Π_K projects on, in (0, inf); None for none.
    per_node : bool, default False
        Whether v is divided by the number m of nodes that have a row. Every reply makes a step
        with the vectors of all m nodes: with ``lr=1`` and pseudo-gradients, m replies move the
        model as far as one round of FedAvg; undivided steps would move it m times as far. With
        fewer than η nodes v is divided by η, so that no step exceeds v.

    Raises
    ------
    ConfigError
        If a setting is out of range.

    Examples
    --------
    >>> optimizer = SGD(lr=0.5)
    >>> optimizer.step(optimizer.init(torch.tensor([1.0])), torch.tensor([2.0])).x
    tensor([0.])
    """

    lr: float
    radius: float | None = None
    per_node: bool = False

    def __post_init__(self) -> None:
        coerce_numbers(self)
        _check_lr_and_radius(self.lr, self.radius)
        if not isinstance(self.per_node, bool):
            raise ConfigError("per_node", self.per_node, "True or False", "leave it out")

    def init(self, start: Tensor) -> Iterates:
        """Return the state at the initial model."""
        return Iterates(start, start, start)

    def step(self, state: Iterates, direction: Tensor) -> Iterates:
        """Return the state after one step."""
        w = _project(state.w - self.lr * direction, state.start, self.radius)
        return replace(state, w=w, x=w, step=state.step + 1)


@dataclass(frozen=True)
class AnyTimeSGD:
    """AnyTime-SGD: steps on w, queries at an average x of its past.

    Practice schedule (the paper's experiments): ``w <- Π_K(w − η v)``,
    ``x <- γ w + (1 − γ) x``.
    Theory schedule (the convex analysis): ``α_t = t``, ``w <- Π_K(w − η α_t v)``,
    ``x <- x + (α_{t+1} / α_{1:t+1}) (w − x)``, so that x is the average of the w weighted by α,
    with α_1 on the start.

    Parameters
    ----------
    lr : float
        η in (0, inf).
    gamma : float, optional
        γ in (0, 1], only for the practice schedule; 0.1 by default.
    schedule : {"practice", "theory"}
        Which of the two.
    radius : float, optional
        Radius of the L2 ball around the start that Π_K projects on, in (0, inf); None for none.

    Raises
    ------
    ConfigError
        If a setting is out of range, or `gamma` is set with the theory schedule.

    Notes
    -----
    Together with the `mu2` estimator this is μ²-SGD (Levy 2023; asynchronous and Byzantine:
    Dahan and Levy 2024, arXiv 2501.09621). Cutkosky 2019 introduced AnyTime averaging.

    Examples
    --------
    >>> optimizer = AnyTimeSGD(lr=1.0, schedule="theory")
    >>> state = optimizer.init(torch.tensor([0.0]))
    >>> state = optimizer.step(state, torch.tensor([3.0]))
    >>> state.w, state.x  # w = 0 − 1·3, x = 0 + (2/3)(−3 − 0)
    (tensor([-3.]), tensor([-2.]))
    """

    lr: float
    gamma: float | None = None
    schedule: Literal["practice", "theory"] = "practice"
    radius: float | None = None

    def __post_init__(self) -> None:
        coerce_numbers(self)
        _check_lr_and_radius(self.lr, self.radius)
        check_choice("schedule", self.schedule, ("practice", "theory"), fix="choose one of them")
        if self.gamma is None:
            return
        check_number(
            "gamma", self.gamma, low=0, high=1, closed="right", fix="pass for example gamma=0.1"
        )
        if self.schedule == "theory":
            fix = "leave it out, or choose schedule='practice'"
            raise ConfigError("gamma", self.gamma, "None with the theory schedule", fix)

    def init(self, start: Tensor) -> Iterates:
        """Return the state at the initial model."""
        return Iterates(start, start, start)

    def step(self, state: Iterates, direction: Tensor) -> Iterates:
        """Return the state after one step."""
        t = state.step + 1
        if self.schedule == "theory":
            # α_t = t, so α_{t+1} / α_{1:t+1} = (t+1) / ((t+1)(t+2)/2).
            scale, share = float(t), 2.0 / (t + 2)
        else:
            scale, share = 1.0, 0.1 if self.gamma is None else self.gamma
        w = _project(state.w - self.lr * scale * direction, state.start, self.radius)
        return replace(state, w=w, x=torch.lerp(state.x, w, share), step=t)


def divisor_of(optimizer: Optimizer, nodes: int) -> float:
    """Return the divisor of directions for an optimizer.

    Parameters
    ----------
    optimizer : Optimizer
        Without a true ``per_node`` the divisor is 1.
    nodes : int
        m >= 1. The divisor is ``lr`` if that is larger than m: no step may exceed the direction.
    """
    if not getattr(optimizer, "per_node", False):
        return 1.0
    lr = getattr(optimizer, "lr", 1.0)
    return max(float(nodes), lr) if isinstance(lr, int | float) else float(nodes)


def _check_lr_and_radius(lr: float, radius: float | None) -> None:
    check_number("lr", lr, low=0, closed="neither", fix=LR_FIX)
    if radius is not None:
        fix = "pass for example radius=10.0, or None for no projection"
        check_number("radius", radius, low=0, closed="neither", fix=fix)


def _project(w: Tensor, centre: Tensor, radius: float | None) -> Tensor:
    if radius is None:
        return w
    offset = w - centre
    # clamp instead of a comparison, which would need a synchronisation with the device.
    shrink: Tensor = radius / torch.linalg.vector_norm(offset).clamp(min=radius)
    return centre + shrink * offset
