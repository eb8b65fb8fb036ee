"""Shorthand for the strategy's settings: by field name, whichever group each belongs to."""

from dataclasses import fields
from typing import Any

from flwr_byzasync import Liveness, Momenta, Payload, Quorum
from flwr_byzasync.core.policy import Policy

QUORUM = {field.name for field in fields(Quorum)}
LIVENESS = {field.name for field in fields(Liveness)}


def grouped(**settings: Any) -> dict[str, Any]:
    """Return arguments of `AsyncRobust`, with fields of Quorum and Liveness in their groups."""
    result = {k: v for k, v in settings.items() if k not in QUORUM | LIVENESS}
    quorum = {k: v for k, v in settings.items() if k in QUORUM}
    liveness = {k: v for k, v in settings.items() if k in LIVENESS}
    if quorum:
        result["quorum"] = Quorum(**quorum)
    if liveness:
        result["liveness"] = Liveness(**liveness)
    return result


def policy_of(payload: Payload | None = None, **settings: Any) -> Policy:
    """Return a policy from fields of Quorum and Liveness."""
    return Policy(payload=Momenta() if payload is None else payload, **grouped(**settings))
