"""What a reply contributes: how each kind of payload becomes its node's row."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flwr_byzasync._checks import check_number, coerce_numbers


@dataclass(frozen=True)
class Contribution:
    """A valid reply with everything that turns it into a row.

    Parameters
    ----------
    reply : Tensor
        (d,) what the reply contains.
    previous_gradient : Tensor or None
        (d,) the gradient at the node's previous query, where one was requested.
    query_sent : Tensor or None
        (d,) the query as the node received it, where `Payload.keeps_query_point`.
    query_point : Tensor or None
        (d,) the same before it was rounded to the model's dtypes: progress that rounding has
        hidden from the node must not be undone.
    row : Tensor or None
        (d,) the node's row so far; None if it has none.
    count : int
        Its accepted replies since its row began, without this one.
    """

    reply: Tensor
    previous_gradient: Tensor | None = None
    query_sent: Tensor | None = None
    query_point: Tensor | None = None
    row: Tensor | None = None
    count: int = 0


class Payload(ABC):
    """What replies contain, and how each becomes the row d_i of its node.

    One of `Models`, `Momenta`, `Gradients` and `CorrectedGradients`.
    """

    NAME: ClassVar[str]
    """What queries and replies call it in their ``byz.payload``."""
    keeps_query_point: ClassVar[bool] = False
    """Whether the point of a query must be known when its reply arrives."""
    keeps_previous_point: ClassVar[bool] = False
    """Whether a query also carries the node's previous query point."""
    delay_compensation: float = 0.0
    """Share of the server's progress that rows follow: see `Models`."""

    @abstractmethod
    def to_row(self, new: Contribution) -> Tensor:
        """Return the node's new row, without the part that follows x.

        That part, c x, is the same for all rows and is added when they are aggregated.

        Returns
        -------
        Tensor
            (d,) new, or ``new.reply`` itself; it may overflow even where all inputs are finite.
        """


@dataclass(frozen=True)
class Models(Payload):
    """Replies are model weights, from any ClientApp that works with FedAvg.

    A node that was sent x_q and returns y has the row ``x_q − y + c (x − x_q)``, where x is the
    server's current point: the row follows x from step to step.

    Parameters
    ----------
    delay_compensation : float, default 0.5
        c in [0, 1]. Replies are a round or two old. With c = 1/2 training is stable at any
        staleness; with c = 0 even a step of 1.1/m can diverge.
    momentum : float, default 0.0
        β in [0, 1): ``d_i <- β d_i + (1 − β) d``, kept by the server.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    delay_compensation: float = 0.5
    momentum: float = 0.0

    NAME: ClassVar[str] = "model"
    keeps_query_point: ClassVar[bool] = True

    def __post_init__(self) -> None:
        coerce_numbers(self)
        fix = "pass for example delay_compensation=0.5, or leave it out"
        check_number("delay_compensation", self.delay_compensation, low=0, high=1, fix=fix)
        _check_momentum(self.momentum)

    def to_row(self, new: Contribution) -> Tensor:
        """Return the pseudo-gradient, minus what delay compensation adds back as c x."""
        assert new.query_sent is not None and new.query_point is not None
        vector = new.query_sent - new.reply
        if self.delay_compensation:
            vector -= self.delay_compensation * new.query_point
        return _averaged(self.momentum, new.row, vector)


@dataclass(frozen=True)
class Momenta(Payload):
    """Replies are the vectors that `client_app` sends: the node has applied its estimator."""

    NAME: ClassVar[str] = "momentum"

    def to_row(self, new: Contribution) -> Tensor:
        """Return the reply."""
        return new.reply


@dataclass(frozen=True)
class Gradients(Payload):
    """Replies are gradients at the query point, from `client_app`; nodes keep no state.

    Parameters
    ----------
    momentum : float, default 0.0
        β in [0, 1): ``d_i <- β d_i + (1 − β) g``, kept by the server.

    Raises
    ------
    ConfigError
        If `momentum` is out of range.
    """

    momentum: float = 0.0

    NAME: ClassVar[str] = "gradient"

    def __post_init__(self) -> None:
        coerce_numbers(self)
        _check_momentum(self.momentum)

    def to_row(self, new: Contribution) -> Tensor:
        """Return the exponential average of the node's gradients."""
        return _averaged(self.momentum, new.row, new.reply)


@dataclass(frozen=True)
class CorrectedGradients(Payload):
    """Replies are gradients at two points; the server applies μ²'s correction (STORM).

    A query carries the node's previous point too, and the reply the gradient g' there, of the
    same batch: ``d_i <- g + (1 − β)(d_i − g')``. Nodes keep no state; traffic doubles.

    Parameters
    ----------
    beta : float or None, default 0.25
        β in (0, 1], the weight of a new gradient; None for 1/(s_i + 1), where s_i counts the
        node's accepted replies since its row began.

    Raises
    ------
    ConfigError
        If `beta` is out of range.
    """

    beta: float | None = 0.25

    NAME: ClassVar[str] = "gradient"
    keeps_query_point: ClassVar[bool] = True
    keeps_previous_point: ClassVar[bool] = True

    def __post_init__(self) -> None:
        coerce_numbers(self)
        if self.beta is not None:
            fix = "pass for example beta=0.25, or None for 1/(s + 1)"
            check_number("beta", self.beta, low=0, high=1, closed="right", fix=fix)

    def to_row(self, new: Contribution) -> Tensor:
        """Return the corrected momentum; the gradient itself where there is nothing to correct."""
        if new.row is None or new.previous_gradient is None:
            return new.reply
        weight = 1 / (new.count + 1) if self.beta is None else self.beta
        return new.reply + (1 - weight) * (new.row - new.previous_gradient)


PAYLOADS: tuple[type[Payload], ...] = (Models, Momenta, Gradients, CorrectedGradients)


def _check_momentum(momentum: float) -> None:
    fix = "pass for example momentum=0.9"
    check_number("momentum", momentum, low=0, high=1, closed="left", fix=fix)


def _averaged(momentum: float, row: Tensor | None, vector: Tensor) -> Tensor:
    # The formula of `estimators.momentum`, in its order: the same bits as on a node.
    if row is None or not momentum:
        return vector
    return momentum * row + (1 - momentum) * vector
