"""What a node keeps between two messages: array records in its ``Context.state``."""

from collections.abc import Mapping

from flwr.app import Array, ArrayRecord, Context


def recall(context: Context, key: str) -> ArrayRecord:
    """Return what a node kept under a key; empty if nothing, as after a restart."""
    return context.state.array_records.get(key) or ArrayRecord()


def remember(context: Context, key: str, arrays: Mapping[str, Array]) -> None:
    """Keep arrays under a key, in place of what was there."""
    context.state[key] = ArrayRecord(dict(arrays))


def seed_and_partition(context: Context) -> tuple[int, int]:
    """Return the run's seed and the node's partition-id, which seed all draws of the node.

    Node ids change from run to run; without a partition-id there is nothing better.
    """
    partition = context.node_config.get("partition-id", context.node_id)
    return non_negative(context.run_config.get("seed")), non_negative(partition)


def non_negative(value: object) -> int:
    """Return the size of an integer; 0 for everything else."""
    return abs(value) if isinstance(value, int) else 0
