"""What one run is to do, checked before any message is sent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Result

from flwr_byzasync._checks import check_call, check_integer, check_number, coerce_numbers
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.server.early_stopping import EarlyStop
from flwr_byzasync.server.evaluation import EvaluationSettings

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
RoundEndFn = Callable[[int, ArrayRecord, MetricRecord | None], None]
ShouldStopFn = Callable[[int, Result], bool]


Callback = EarlyStop | RoundEndFn
"""What `AsyncRobust` takes as a callback."""


@dataclass(frozen=True)
class RunPlan:
    """What one run is to do.

    Parameters
    ----------
    num_rounds : int
        Rounds of the whole run, >= 1.
    timeout, poll_interval, reply_timeout : float
        Longest seconds without progress, in (0, inf), between two polls, and for an evaluation.
    min_available_nodes : int
        Nodes to wait for before the first query.
    updates_per_round : int or None
        Accepted replies in a round; None: as many as nodes are connected at the start.
    end_round : callable
        ``round -> (model, metrics that nodes reported)``.
    evaluation : EvaluationSettings
        Which nodes evaluate.
    evaluate_fn : callable or None
        ``(round, arrays) -> MetricRecord or None``.
    callbacks : tuple of EarlyStop or callable
        A callable gets ``(round, arrays, metrics of evaluate_fn)`` at the end of each round; the
        first `EarlyStop` that is reached ends the run.
    should_stop : callable or None
        ``(round, result) -> bool``, whether the run ends after a round.
    train_config, evaluate_config : ConfigRecord
        Sent with each query and with each evaluation request.

    Raises
    ------
    ConfigError
        If a value is out of range.
    """

    num_rounds: int
    timeout: float
    poll_interval: float
    reply_timeout: float
    min_available_nodes: int
    updates_per_round: int | None
    end_round: Callable[[int], tuple[ArrayRecord, MetricRecord | None]]
    evaluation: EvaluationSettings
    evaluate_fn: EvaluateFn | None = None
    callbacks: tuple[Callback, ...] = ()
    should_stop: ShouldStopFn | None = None
    train_config: ConfigRecord = field(default_factory=ConfigRecord)
    evaluate_config: ConfigRecord = field(default_factory=ConfigRecord)

    def __post_init__(self) -> None:
        coerce_numbers(self)
        check_integer("num_rounds", self.num_rounds, low=1, fix="pass for example num_rounds=20")
        fix = "pass a time in seconds"
        check_number("timeout", self.timeout, low=0, closed="neither", fix=fix)
        check_call("evaluate_fn", self.evaluate_fn)
        check_call("should_stop", self.should_stop)
        for name in ("train_config", "evaluate_config"):
            if not isinstance(getattr(self, name), ConfigRecord):
                fix = "pass for example ConfigRecord({'lr': 0.1})"
                raise ConfigError(name, getattr(self, name), "a ConfigRecord or None", fix)
        by_metric = [stop for stop in self.early_stops if stop.metric is not None]
        if by_metric and self.evaluate_fn is None:
            legal, fix = "by time without an evaluate_fn", "pass evaluate_fn to start"
            raise ConfigError("callbacks", by_metric[0], legal, fix)

    @property
    def early_stops(self) -> tuple[EarlyStop, ...]:
        """The callbacks that may end the run."""
        return tuple(each for each in self.callbacks if isinstance(each, EarlyStop))

    @property
    def round_end_fns(self) -> tuple[RoundEndFn, ...]:
        """The callbacks that are called."""
        return tuple(each for each in self.callbacks if not isinstance(each, EarlyStop))


def checked_callbacks(callbacks: Sequence[Callback]) -> tuple[Callback, ...]:
    """Return callbacks as a tuple.

    Raises
    ------
    ConfigError
        If one of them is neither an `EarlyStop` nor a function.
    """
    legal, fix = "a list of functions and EarlyStops", "pass for example [EarlyStop(seconds=60.0)]"
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str):
        raise ConfigError("callbacks", callbacks, legal, fix)
    for callback in callbacks:
        if isinstance(callback, type) or not (
            isinstance(callback, EarlyStop) or callable(callback)
        ):
            raise ConfigError("callbacks", callback, legal, fix)
    return tuple(callbacks)
