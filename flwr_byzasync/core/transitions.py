"""What becomes of a node on every event: the protocol of one node as data.

`TRANSITIONS` is the whole truth; the strategy and the state only carry out its effects, and the
drawing in docs/data-flow.md is checked against it.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType


class Status(Enum):
    """What the server knows of a node."""

    IDLE = "nothing is in flight; it is asked as soon as it is due"
    QUERIED = "it has a query and owes a reply"
    LOST = "it did not reply in time or left; a late reply still counts"
    QUARANTINED = "too many faults in a row; it is asked once more after a long wait"


class Event(Enum):
    """What can happen to a node."""

    READY = "it is connected and due, and its next query was handed to the network"
    UNSENT = "its query could not be handed to the network"
    UPDATE = "a valid reply to its message arrived"
    FAULT = "a reply that cannot be used, or an error instead of one, arrived"
    LAST_FAULT = "a fault that makes `shut_after` in a row, or one more after it was shut"
    SILENT = "the time limit of its message passed"
    GONE = "it is no longer connected"


class Effect(Enum):
    """What follows from an event beside the new status."""

    ACCEPT = "replace its row, count the reply, aggregate and step"
    COUNT = "count the reason"
    BACK_OFF = "wait longer before it is asked again"
    RETIRE = "freeze its row with the weight it has, or drop it, by `lost_rows`"


Move = tuple[Status, tuple[Effect, ...]]

TRANSITIONS: Mapping[tuple[Status, Event], Move] = MappingProxyType(
    {
        (Status.IDLE, Event.READY): (Status.QUERIED, ()),
        (Status.IDLE, Event.UNSENT): (Status.IDLE, (Effect.COUNT, Effect.BACK_OFF)),
        (Status.IDLE, Event.GONE): (Status.LOST, (Effect.RETIRE,)),
        (Status.QUERIED, Event.UPDATE): (Status.IDLE, (Effect.ACCEPT,)),
        (Status.QUERIED, Event.FAULT): (Status.IDLE, (Effect.COUNT, Effect.BACK_OFF)),
        (Status.QUERIED, Event.LAST_FAULT): (Status.QUARANTINED, (Effect.COUNT, Effect.BACK_OFF)),
        (Status.QUERIED, Event.SILENT): (
            Status.LOST,
            (Effect.COUNT, Effect.BACK_OFF, Effect.RETIRE),
        ),
        (Status.QUERIED, Event.GONE): (Status.LOST, (Effect.COUNT, Effect.RETIRE)),
        (Status.LOST, Event.READY): (Status.QUERIED, ()),
        (Status.LOST, Event.UNSENT): (Status.LOST, (Effect.COUNT, Effect.BACK_OFF)),
        (Status.LOST, Event.UPDATE): (Status.IDLE, (Effect.ACCEPT,)),
        # What a lost node owed was counted when it was lost.
        (Status.LOST, Event.FAULT): (Status.LOST, ()),
        # The way back. Its faults stay counted: the next one is the last, a usable reply clears.
        (Status.QUARANTINED, Event.READY): (Status.QUERIED, ()),
        (Status.QUARANTINED, Event.UNSENT): (Status.QUARANTINED, (Effect.COUNT, Effect.BACK_OFF)),
        (Status.QUARANTINED, Event.GONE): (Status.QUARANTINED, (Effect.RETIRE,)),
    }
)


def move(status: Status, event: Event) -> Move:
    """Return the next status and the effects; an event without a row changes nothing.

    Examples
    --------
    >>> move(Status.ASKED, Event.GONE)[0].name
    'LOST'
    >>> move(Status.SHUT, Event.UPDATE)[0].name
    'SHUT'
    """
    return TRANSITIONS.get((status, event), (status, ()))
