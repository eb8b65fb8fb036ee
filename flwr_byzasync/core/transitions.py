"""The protocol of one node as a table: its status and the effects of every event.

`TRANSITIONS` is complete; `protocol` and `events` carry out its effects, and a test compares it
with the table in docs/data-flow.md.
"""

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType


class Status(Enum):
    """What the server knows of a node."""

    IDLE = "nothing is in flight; it is queried as soon as it is due"
    QUERIED = "it has a query and owes a reply"
    LOST = "it did not reply in time or left; a late reply still counts"
    QUARANTINED = "too many faults in a row; it is queried once more after a long wait"


class Event(Enum):
    """What can happen to a node."""

    READY = "it is connected and due, and its next query was handed to the network"
    UNSENT = "its query could not be handed to the network"
    UPDATE = "a valid reply to its query arrived"
    FAULT = "an unusable reply, or an error instead of one, arrived"
    LAST_FAULT = "a fault that makes `max_consecutive_faults`, or another one after quarantine"
    SILENT = "the time limit of its query passed"
    GONE = "it is no longer connected"


class Effect(Enum):
    """What an event causes besides the new status."""

    ACCEPT = "replace its row, count the reply, aggregate and step"
    COUNT = "count the reason"
    BACK_OFF = "wait longer before its next query"
    RETIRE = "freeze its row at its present weight, or drop it, by `Liveness.departed`"


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
        # The half-open probe. Its faults stay counted: the next one is the last, a usable reply
        # clears them.
        (Status.QUARANTINED, Event.READY): (Status.QUERIED, ()),
        (Status.QUARANTINED, Event.UNSENT): (
            Status.QUARANTINED,
            (Effect.COUNT, Effect.BACK_OFF),
        ),
        (Status.QUARANTINED, Event.GONE): (Status.QUARANTINED, (Effect.RETIRE,)),
    }
)


def move(status: Status, event: Event) -> Move:
    """Return the next status and the effects; an event without an entry changes nothing.

    Examples
    --------
    >>> move(Status.QUERIED, Event.GONE)[0].name
    'LOST'
    >>> move(Status.QUARANTINED, Event.UPDATE)[0].name
    'QUARANTINED'
    """
    return TRANSITIONS.get((status, event), (status, ()))
