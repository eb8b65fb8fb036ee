"""Two kinds of fault: our caller's is an exception, a client's is a value.

`ConfigError` is raised for a wrong configuration, before anything is sent. `Reason` is recorded
for a reply that cannot be used; nothing that a client sends may raise.
"""

from enum import Enum


class ConfigError(ValueError):
    """A setting that cannot work; the message is one sentence.

    Parameters
    ----------
    argument : str
        Name of the setting as the caller wrote it.
    value : object
        The value that was passed.
    legal : str
        The legal range, as the end of "must be ...".
    fix : str
        The next move, as an imperative.

    Examples
    --------
    >>> str(ConfigError("lr", -1.0, "a number in (0, inf)", "pass for example lr=0.01"))
    'lr=-1.0 is not legal: it must be a number in (0, inf); pass for example lr=0.01.'
    """

    def __init__(self, argument: str, value: object, legal: str, fix: str) -> None:
        self.argument, self.value, self.legal, self.fix = argument, value, legal, fix
        shown = repr(value)
        if len(shown) > 200:
            shown = shown[:197] + "..."
        super().__init__(f"{argument}={shown} is not legal: it must be {legal}; {fix}.")

    def __reduce__(self) -> tuple[type["ConfigError"], tuple[object, ...]]:
        # Exceptions cross process borders pickled; the default would pass the sentence alone.
        return type(self), (self.argument, self.value, self.legal, self.fix)


class Reason(Enum):
    """Why a reply was not used; the value is the sentence that logs and documents show."""

    CLIENT_ERROR = "the client app raised an exception or could not be loaded"
    CRASHED = "the process that ran the client app died"
    LOST = "the message or its reply is no longer available"
    NODE_GONE = "the node left before it replied"
    EXPIRED = "no reply came within the time limit of a message"
    UNSENT = "the query could not be handed to the network"
    NO_CONTENT = "the reply has no content"
    UNREADABLE = "an array could not be decoded"
    MISSING_RECORD = "a record that the reply must have is missing"
    EXTRA_RECORD = "the reply has an array record that was not requested"
    WRONG_NAMES = "the names of the arrays differ from the model's, or their order does"
    WRONG_DTYPE = "an array's dtype differs from the model's"
    WRONG_SHAPE = "an array's shape differs from the model's"
    NON_FINITE = "an array holds NaN or infinity"
    OVERFLOW = "the norm of the vector is beyond 1e150, where squares leave float64"
    WRONG_QUERY = "the reply is to another query than the one that was sent"
    WRONG_PAYLOAD = "the reply is of another kind than the strategy expects"
    UNSOLICITED = "the reply matches no message in flight: a duplicate, a replay or a forgery"


INFRASTRUCTURE_FAULTS = frozenset(
    {Reason.CRASHED, Reason.LOST, Reason.NODE_GONE, Reason.EXPIRED, Reason.UNSENT}
)
"""Reasons that say nothing about a client's honesty, such as a network failure or a dead process.
They make a node wait, but never quarantine it."""
