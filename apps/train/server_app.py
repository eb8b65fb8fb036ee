"""The server of the reference app: settings, strategy, evaluation and the table at the end."""

import time
from collections.abc import Callable
from logging import getLogger

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from torch import nn

from apps.train.output import Output
from apps.train.report import final_table
from apps.train.settings import Settings
from apps.train.tasks import Split, Task, discover
from flwr_byzasync import AsyncRobust, ConfigError, aggregators

logger = getLogger("flwr")
app = ServerApp()

IDENTIFY_SECONDS = 300.0
"""Longest wait for the nodes' partition-ids: the first reply waits until Ray has started."""


class RunFailed(RuntimeError):  # noqa: N818 - what it says is what happened
    """The run ended before its last round; the log says why."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation of the run-config."""
    try:
        settings = Settings.of(context.run_config)
        nodes = _check_nodes(settings, grid)
    except ConfigError as error:
        logger.error("%s", error)
        raise
    began = time.monotonic()
    task = discover()[settings.dataset]
    model = task.make_model(settings.model, settings.seed)
    strategy = AsyncRobust(
        aggregator=aggregators.build(settings.aggregator, settings.byz_fraction),
        optimizer=settings.server_optimizer(),
        min_nodes=settings.min_nodes,
        updates_per_round=settings.updates_per_round,
        buffers=[name for name, _ in model.named_buffers()],
        device=settings.chosen_device,
    )
    partitions = _identify(grid, nodes)
    output = Output(settings)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(model.state_dict()),
        num_rounds=settings.num_server_rounds,
        evaluate_fn=output.recording(_evaluator(task, settings, model), strategy.statistics),
    )
    statistics = strategy.statistics()
    for line in final_table(settings, result, statistics, partitions, time.monotonic() - began):
        logger.info("%s", line)
    output.finish(result, statistics, partitions)
    done = max(result.evaluate_metrics_serverapp)
    if done < settings.num_server_rounds:
        raise RunFailed(f"The run ended after {done} of {settings.num_server_rounds} rounds.")


def _check_nodes(settings: Settings, grid: Grid) -> list[int]:
    """Return the nodes that are there, or raise with the command to type if they are too few.

    In simulation all nodes exist from the start and waiting would be for ever; in a deployment
    a minute is given for the SuperNodes to connect.
    """
    for _ in range(60):
        nodes = list(grid.get_node_ids())
        if len(nodes) >= settings.min_nodes:
            return nodes
        if type(grid).__name__ == "InMemoryGrid":
            break
        time.sleep(1)
    command = (
        f'flwr run . --federation-config "num-supernodes={settings.min_nodes} '
        'client-resources-num-cpus=1" --stream'
    )
    legal = f"at most the {len(nodes)} nodes of the federation"
    raise ConfigError("min-nodes", settings.min_nodes, legal, f"type {command}")


def _identify(grid: Grid, nodes: list[int]) -> dict[int, int]:
    """Ask each node its partition-id, for the table at the end; the strategy never sees it."""
    questions = [
        Message(RecordDict({"config": ConfigRecord()}), dst_node_id=node, message_type="query")
        for node in nodes
    ]
    asked: dict[str, int] = {}
    for question, node in zip(questions, nodes, strict=True):
        for message_id in grid.push_messages([question]):
            asked[message_id] = node
    partitions: dict[int, int] = {}
    deadline = time.monotonic() + IDENTIFY_SECONDS
    while asked and time.monotonic() < deadline:
        for reply in grid.pull_messages(list(asked)):
            node = asked.pop(reply.metadata.reply_to_message_id)
            told = reply.content.metric_records.get("metrics") if reply.has_content() else None
            if told is not None:
                partitions[node] = int(told["partition-id"])  # type: ignore[arg-type]
        time.sleep(0.1)
    return partitions


def _evaluator(
    task: Task, settings: Settings, model: nn.Module
) -> Callable[[int, ArrayRecord], MetricRecord]:
    test = task.load(settings.data_dir)[1]
    device = torch.device(settings.chosen_device)
    test = Split(test.inputs.to(device), test.labels.to(device))

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        del server_round
        model.load_state_dict(arrays.to_torch_state_dict())
        model.to(device).eval()
        with torch.no_grad():
            outputs = model(test.inputs)
        loss = float(nn.functional.cross_entropy(outputs, test.labels))
        accuracy = float((outputs.argmax(dim=1) == test.labels).float().mean())
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    return evaluate
