"""The table at the end of a run."""

from collections.abc import Mapping

from flwr.serverapp.strategy import Result

from apps.train.settings import NO_ATTACK, Settings
from flwr_byzasync import Statistics


def byzantine_share(
    settings: Settings, statistics: Statistics, partitions: Mapping[int, int]
) -> float | None:
    """Return the share of the weight that the Byzantine nodes held, in [0, 1].

    None if a node that replied did not report its partition-id.
    """
    if not settings.under_attack:
        return 0.0
    if not statistics.replies.keys() <= partitions.keys():
        return None
    byzantine = {node for node, part in partitions.items() if part < settings.byzantine_nodes}
    return statistics.share(byzantine)


def final_table(
    settings: Settings,
    result: Result,
    statistics: Statistics,
    partitions: Mapping[int, int],
    seconds: float,
) -> list[str]:
    """Return the lines of the table, with replies by node, Byzantine share and rejected replies."""
    last = result.evaluate_metrics_serverapp[max(result.evaluate_metrics_serverapp)]
    share = byzantine_share(settings, statistics, partitions)
    known = sorted((partitions.get(n, -1), count) for n, count in statistics.replies.items())
    by_node = " ".join(f"{'?' if part < 0 else part}:{count}" for part, count in known)
    rejected = {reason.name.lower(): count for reason, count in statistics.reasons.items()}
    rows = {
        "aggregator": f"{settings.aggregator} (byz-fraction {settings.byz_fraction:g})",
        "attack": _attack(settings),
        "accuracy": f"{last['accuracy']:.4f}",
        "loss": f"{last['loss']:.4f}",
        "replies": f"{statistics.accepted} in {seconds:.0f} s, {statistics.steps} steps, "
        f"mean staleness {statistics.mean_staleness:.1f}",
        "replies by node": by_node,
        "Byzantine weight": "unknown" if share is None else f"{share:.1%}",
        "rejected": ", ".join(f"{k} {v}" for k, v in rejected.items()) or "none",
    }
    lines = ["", "Result", *(f"  {name:<17} {value}" for name, value in rows.items())]
    if share is not None and share > settings.byz_fraction:
        lines.append(
            f"  Warning: Byzantine nodes held {share:.1%} of the weight, more than byz-fraction "
            f"{settings.byz_fraction:g}: the rule guarantees nothing; raise byz-fraction."
        )
    return lines


def _attack(settings: Settings) -> str:
    if not settings.under_attack:
        return NO_ATTACK
    return f"{settings.attack} by nodes 0 .. {settings.byzantine_nodes - 1}"
