"""AsyncRobust with checkpoints, which records its progress for the tests."""

import json
import logging
from pathlib import Path
from typing import Any

from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from flwr_byzasync import AsyncRobust, Checkpoints, Liveness, Quorum, Statistics
from flwr_byzasync.aggregators import CTMA, GeometricMedian
from flwr_byzasync.optimizers import SGD
from least_squares import task

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Start the run of the run-config's output-dir, or resume it."""
    output = Path(str(context.run_config["output-dir"]))
    num_rounds, size, every = (
        int(str(context.run_config[key]))
        for key in ("num-rounds", "updates-per-round", "checkpoint-every")
    )
    logging.getLogger("flwr").addHandler(logging.FileHandler(output / f"{context.run_id}.log"))
    strategy = AsyncRobust(
        CTMA(GeometricMedian(), byz_fraction=0.4),
        SGD(lr=0.1),
        quorum=Quorum(3),
        min_available_nodes=5,
        updates_per_round=size,
        liveness=Liveness(max_consecutive_faults=100),
        checkpoints=Checkpoints(output / "checkpoints", every_rounds=every, resume=True),
    )

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        loss = task.loss({name: array.numpy() for name, array in arrays.items()})
        entry = {"run": str(context.run_id), "round": server_round, "loss": loss}
        entry |= counts(strategy.statistics())
        with (output / "progress.jsonl").open("a") as file:
            file.write(json.dumps(entry) + "\n")
        return MetricRecord({"loss": loss})

    result = strategy.start(
        grid,
        ArrayRecord({name: Array(value) for name, value in task.start().items()}),
        num_rounds=num_rounds,
        timeout=180.0,
        evaluate_fn=evaluate,
    )
    losses = {k: metrics["loss"] for k, metrics in result.evaluate_metrics_serverapp.items()}
    (output / "result.json").write_text(json.dumps({"losses": losses}))


def counts(statistics: Statistics) -> dict[str, Any]:
    """Return the statistics of a run as JSON."""
    return {
        "accepted": statistics.accepted,
        "steps": statistics.steps,
        "replies": {str(node): count for node, count in statistics.replies.items()},
        "weights": {str(node): weight for node, weight in statistics.weights.items()},
        "reasons": {reason.name: count for reason, count in statistics.reasons.items()},
    }
