"""The log line of a round."""

from collections.abc import Mapping
from datetime import timedelta

from flwr_byzasync._printable import printable_metrics
from flwr_byzasync.core.state import ServerState
from flwr_byzasync.core.statistics import RoundStart


def format_round(
    server_round: int,
    num_rounds: int,
    start: RoundStart,
    state: ServerState,
    metrics: Mapping[str, object] | None,
    now: float,
) -> str:
    """Return a round's replies and their rate, metrics, staleness, rejections and time left."""
    accepted, seconds = state.accepted - start.accepted, now - start.at
    staleness = (state.staleness - start.staleness) / max(accepted, 1)
    rejected = sum(state.reasons.values())
    # At the rate of this round alone: the first one waited for the clients to start.
    try:
        left = str(timedelta(seconds=round(seconds * (num_rounds - server_round))))
    except OverflowError:  # a run that goes on until it is stopped
        left = "years"
    parts = [f"{state.accepted} replies ({accepted / max(seconds, 1e-9):.1f}/s)"]
    if metrics:
        parts.append(printable_metrics(metrics))
    parts += [f"staleness {staleness:.1f}", f"rejected {rejected}", f"{left} left"]
    return f"[ROUND {server_round}/{num_rounds}] " + " | ".join(parts)
