"""AsyncRobust, and a file with the outcome of the run."""

import json
from importlib.metadata import version
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from flwr_byzasync import AsyncRobust, Quorum
from flwr_byzasync.aggregators import CoordinateWiseMedian
from flwr_byzasync.optimizers import SGD

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train, and write the outcome."""
    strategy = AsyncRobust(
        CoordinateWiseMedian(),
        SGD(lr=0.2),
        buffers=["mean"],
        quorum=Quorum(3),
        min_available_nodes=3,
        updates_per_round=20,
        # With counts, a Byzantine node faster than the others together would have the majority.
        weights="uniform",
    )
    start = {"w": torch.zeros(3), "mean": torch.zeros(1), "batches": torch.tensor(0)}
    rounds: list[int] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        rounds.append(server_round)
        return MetricRecord({"largest": float(arrays["w"].numpy().max())})

    result = strategy.start(
        grid, ArrayRecord(start), num_rounds=3, timeout=120.0, evaluate_fn=evaluate
    )
    statistics = strategy.statistics()
    outcome = {
        "flwr": version("flwr"),
        "model": {name: array.numpy().tolist() for name, array in result.arrays.items()},
        "rounds": rounds,
        "accepted": statistics.accepted,
        "weights": sorted(statistics.weights.values()),
        "rejected": {reason.name: count for reason, count in statistics.reasons.items()},
    }
    Path(str(context.run_config["output"])).write_text(json.dumps(outcome))
