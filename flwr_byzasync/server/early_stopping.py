"""Ending a run before its last round, once it is good enough or has lasted long enough."""

from collections.abc import Mapping
from dataclasses import dataclass

from flwr_byzasync._checks import check_number, coerce_numbers
from flwr_byzasync._printable import printable
from flwr_byzasync.errors import ConfigError


@dataclass(frozen=True)
class EarlyStop:
    """Ends a run at the end of a round, by a metric of `evaluate_fn` or by time.

    For ``AsyncRobust(callbacks=[EarlyStop(...)])``.

    Parameters
    ----------
    metric : str, optional
        Name of the metric, with `at_least` or `at_most`.
    at_least, at_most : float, optional
        Threshold of the metric, in (−inf, inf). One of the two.
    seconds : float, optional
        The run ends once it has lasted this long, in (0, inf), including the time before it was
        resumed.

    Raises
    ------
    ConfigError
        If there is nothing to stop by, or a value is out of range.

    Examples
    --------
    >>> stop = EarlyStop("accuracy", at_least=0.95)
    >>> stop.reached({"accuracy": 0.96}, elapsed=10.0)
    'accuracy is 0.96'
    >>> EarlyStop(seconds=3600.0).reached(None, elapsed=10.0)
    """

    metric: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        coerce_numbers(self)
        thresholds = [each for each in (self.at_least, self.at_most) if each is not None]
        if self.metric is not None and not isinstance(self.metric, str):
            raise ConfigError("metric", self.metric, "a name or None", "pass for example 'loss'")
        expected = 0 if self.metric is None else 1
        if len(thresholds) != expected or (self.metric is None and self.seconds is None):
            legal = "a metric with at_least or at_most, or seconds"
            fix = "pass for example EarlyStop('accuracy', at_least=0.95)"
            raise ConfigError("metric", self.metric, legal, fix)
        for name, value in (("at_least", self.at_least), ("at_most", self.at_most)):
            if value is not None:
                check_number(name, value, fix=f"pass for example {name}=0.95")
        if self.seconds is not None:
            fix = "pass for example seconds=3600.0"
            check_number("seconds", self.seconds, low=0, closed="neither", fix=fix)

    def missing(self, metrics: Mapping[str, object]) -> str | None:
        """Return a warning if the metric to stop by is not among these, or None."""
        if self.metric is None or self._value(metrics) is not None:
            return None
        shown = printable(sorted(metrics))
        return (
            f"evaluate_fn returned no number '{self.metric}' to stop by, but {shown}: "
            "the run goes on"
        )

    def reached(self, metrics: Mapping[str, object] | None, elapsed: float) -> str | None:
        """Return why the run may end, or None if it may not.

        Parameters
        ----------
        metrics : mapping or None
            What `evaluate_fn` returned for the round.
        elapsed : float
            Seconds since the run began.
        """
        if self.seconds is not None and elapsed >= self.seconds:
            return f"{elapsed:.0f} seconds have passed"
        value = self._value(metrics)
        if value is None:
            return None
        enough = self.at_least is not None and value >= self.at_least
        enough |= self.at_most is not None and value <= self.at_most
        return f"{self.metric} is {value:g}" if enough else None

    def _value(self, metrics: Mapping[str, object] | None) -> int | float | None:
        """Return the metric to stop by, or None if it is missing or not a number."""
        value = None if metrics is None or self.metric is None else metrics.get(self.metric)
        return value if isinstance(value, int | float) else None
