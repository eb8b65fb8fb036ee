"""How a reply becomes its node's row: what was sent there, and what the server adds to it."""

from dataclasses import dataclass

from torch import Tensor

from flwr_byzasync._checks import check_choice, check_number, coerce_numbers
from flwr_byzasync.errors import ConfigError

PAYLOADS = ("momentum", "gradient", "model")
CORRECTIONS = ("client", "server")


@dataclass(frozen=True)
class Reading:
    """What replies hold, and how each becomes the row d_i of its node.

    Parameters
    ----------
    payload : {"momentum", "gradient", "model"}
        "momentum": the vector itself, the node has done the rest. "gradient": ∇f at the query
        point. "model": weights y to which training from the query x_q has led; their vector is the
        pseudo-gradient ``x_q − y``, x_q being what that very node was sent.
    correction : {"client", "server"}
        Who applies μ²'s correction. "server": nodes keep no state, are sent their last query
        too and return the gradient g' there, of the same batch:
        ``d_i <- g + (1 − β)(d_i − g')``.
    momentum : float
        β in [0, 1): ``d_i <- β d_i + (1 − β) g``, kept by the server.
    beta : float or None
        β in (0, 1] of the correction; None for 1/(s_i + 1), s_i the node's accepted replies
        since its row began.
    delay_compensation : float
        c in [0, 1], for models: the vector of a reply is ``x_q − y + c (x − x_q)``, x being
        where the server is by now, and follows it from step to step. 0 is the pseudo-gradient
        as it was, 1 is the way from x to y.

    Raises
    ------
    ConfigError
        If a value is out of range, or two of them do not go together.
    """

    payload: str = "momentum"
    correction: str = "client"
    momentum: float = 0.0
    beta: float | None = 0.25
    delay_compensation: float = 0.0

    def __post_init__(self) -> None:
        coerce_numbers(self)
        check_choice("payload", self.payload, PAYLOADS, fix="leave it out or pass 'model'")
        check_choice("correction", self.correction, CORRECTIONS, fix="leave it out")
        fix = "pass for example momentum=0.9"
        check_number("momentum", self.momentum, low=0, high=1, closed="left", fix=fix)
        if self.beta is not None:
            fix = "pass for example beta=0.25, or None for 1/(s + 1)"
            check_number("beta", self.beta, low=0, high=1, closed="right", fix=fix)
        fix = "pass for example delay_compensation=0.5, or leave it out"
        check_number("delay_compensation", self.delay_compensation, low=0, high=1, fix=fix)
        if self.delay_compensation and self.payload != "model":
            legal, fix = "0 unless replies are models", "leave it out, or pass payload='model'"
            raise ConfigError("delay_compensation", self.delay_compensation, legal, fix)
        if self.correction == "client" and self.beta != 0.25:
            legal = "0.25, as it is, with correction='client'"
            fix = "leave it out; a share of liars is a rule's: TrimmedMean(byz_fraction=0.2)"
            raise ConfigError("beta", self.beta, legal, fix)
        if self.momentum and self.payload == "momentum":
            legal, fix = "0 where nodes apply it", "pass payload='gradient' or 'model'"
            raise ConfigError("momentum", self.momentum, legal, fix)
        if self.momentum and self.correction == "server":
            legal, fix = "0 with correction='server'", "pass beta, the weight of a new gradient"
            raise ConfigError("momentum", self.momentum, legal, fix)
        if self.correction == "server" and self.payload != "gradient":
            legal, fix = "'client' unless replies are gradients", "pass payload='gradient'"
            raise ConfigError("correction", self.correction, legal, fix)

    @property
    def keeps_sent(self) -> bool:
        """Whether the point of a query must be known when its reply comes."""
        return self.payload == "model" or self.correction == "server"

    @property
    def keeps_answered(self) -> bool:
        """Whether the point of the last query that a node answered must be known."""
        return self.correction == "server"

    def row(
        self,
        told: Tensor,
        told_before: Tensor | None,
        given: Tensor | None,
        point: Tensor | None,
        row: Tensor | None,
        count: int,
    ) -> Tensor:
        """Return what becomes of a node's row: its vector but for the part that follows x.

        That part, c x, is the same for all rows, and is added when they are aggregated.

        Parameters
        ----------
        told : Tensor
            (d,) what the reply holds.
        told_before : Tensor or None
            (d,) the gradient at the node's last query, where it was asked for.
        given : Tensor or None
            (d,) the query as the node got it, where `keeps_sent`.
        point : Tensor or None
            (d,) the same before it was rounded to the model's dtypes: what the server has not
            yet told of its progress must not be taken back.
        row : Tensor or None
            (d,) its row so far; None if it has none.
        count : int
            Its accepted replies since its row began, before this one.

        Returns
        -------
        Tensor
            (d,) new or `told`; it may be infinite where the inputs are finite.
        """
        new = told
        if self.payload == "model" and given is not None and point is not None:
            new = given - told
            if self.delay_compensation:
                new -= self.delay_compensation * point
        if row is None:
            return new
        if self.correction == "server" and told_before is not None:
            weight = 1 / (count + 1) if self.beta is None else self.beta
            return new + (1 - weight) * (row - told_before)
        # The formulas of `estimators`, in their order: the same bits as on a node.
        return self.momentum * row + (1 - self.momentum) * new if self.momentum else new
