"""Answers to arguments that have moved: where a setting of an earlier version is now."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import ParamSpec

from flwr_byzasync.errors import ConfigError

P = ParamSpec("P")

ASYNC_ROBUST: Mapping[str, str] = {
    "min_nodes": "quorum=Quorum(nodes=...)",
    "below_min_nodes": "quorum=Quorum(on_loss='wait')",
    "reply_timeout": "liveness=Liveness(reply_timeout=...)",
    "min_reply_timeout": "liveness=Liveness(min_reply_timeout=...)",
    "shut_after": "liveness=Liveness(max_consecutive_faults=...)",
    "max_pace": "liveness=Liveness(max_rate=...)",
    "lost_rows": "liveness=Liveness(departed='drop')",
    "poll_interval": "liveness=Liveness(poll_interval=...)",
    "max_share": "weights=Capped(Counts(), max_share=...)",
    "delay_compensation": "payload=Models(delay_compensation=...)",
    "momentum": "payload=Models(momentum=...) or Gradients(momentum=...)",
    "correction": "payload=CorrectedGradients()",
    "beta": "payload=CorrectedGradients(beta=...)",
    "early_stop": "callbacks=[EarlyStop(...)]",
    "on_round_end": "callbacks=[function]",
    "resume": "checkpoints=Checkpoints(..., resume=True)",
    "clock": "a grid with a method clock",
    "sleep": "a grid with a method sleep",
}
"""Former arguments of `AsyncRobust`, and their places."""


def moved(places: Mapping[str, str]) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Return a decorator for ``__init__`` that answers former arguments with their new place.

    Parameters
    ----------
    places : mapping of str to str
        What to pass now, by the argument's former name.

    Examples
    --------
    >>> class Grid:
    ...     @moved({"sees": "knowledge=..."})
    ...     def __init__(self, knowledge="everything"): ...
    >>> Grid(sees="colluders")
    Traceback (most recent call last):
    flwr_byzasync.errors.ConfigError: sees='colluders' is not legal: it must be left out, as it \
has moved; pass knowledge=....
    """

    def decorate(init: Callable[P, None]) -> Callable[P, None]:
        @wraps(init)
        def checked(*args: P.args, **kwargs: P.kwargs) -> None:
            for name in kwargs:
                if name in places:
                    legal = "left out, as it has moved"
                    raise ConfigError(name, kwargs[name], legal, f"pass {places[name]}")
            init(*args, **kwargs)

        return checked

    return decorate
