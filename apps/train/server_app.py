"""The server of the reference app: settings, strategy, evaluation and the table at the end."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from logging import getLogger

import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid, ServerApp
from torch import nn

from apps.train.output import Output
from apps.train.report import final_table
from apps.train.settings import Settings, is_omniscient
from apps.train.tasks import Split, Task, discover
from flwr_byzasync import (
    AsyncRobust,
    ConfigError,
    Liveness,
    Quorum,
    aggregators,
    buffer_names,
)
from flwr_byzasync._clock import clock_of, network_errors
from flwr_byzasync.adversary import OmniscientGrid
from flwr_byzasync.aggregators import Aggregator

logger = getLogger("flwr")
app = ServerApp()

FIRST_ANSWER_SECONDS = 300.0
"""Longest wait for the first partition-id: no node answers before Ray has started."""
OTHER_ANSWERS_SECONDS = 30.0
"""Longest wait for the others after the first."""


class RunFailed(RuntimeError):  # noqa: N818 - named for the outcome
    """The run ended before its last round; the log says why."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation of the run-config."""
    try:
        settings = Settings.of(context.run_config)
        nodes = check_nodes(settings, grid)
        output = Output(settings)
    except ConfigError as error:
        logger.error("%s", error)
        raise
    began = time.monotonic()
    task = discover()[settings.dataset]
    model = task.make_model(settings.model, settings.seed)
    strategy = make_strategy(settings, model, len(nodes))
    partitions = identify(grid, nodes)
    result = strategy.start(
        grid=attacked(settings, grid, strategy.aggregator, partitions),
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
        raise RunFailed(
            f"The run ended after {done} of {settings.num_server_rounds} rounds: "
            f"{statistics.stop_reason}."
        )


def make_strategy(settings: Settings, model: nn.Module, nodes: int) -> AsyncRobust:
    """Return the strategy for a federation of so many nodes."""
    return AsyncRobust(
        aggregator=aggregators.build(settings.aggregator, settings.byz_fraction),
        optimizer=settings.server_optimizer(),
        # Where all nodes are required, the default is better than their number: it does not
        # wait for a node that is lost or quarantined before its first reply.
        quorum=Quorum(settings.quorum if settings.quorum < nodes else None),
        min_available_nodes=settings.quorum,
        updates_per_round=settings.updates_per_round,
        buffers=buffer_names(model),
        weights=settings.weight_policy(),
        liveness=Liveness(max_rate=settings.max_rate or None),
        device=settings.chosen_device,
        checkpoints=settings.checkpoints(),
    )


def check_nodes(settings: Settings, grid: Grid) -> list[int]:
    """Return the connected nodes.

    A simulation has all its nodes from the start; in a deployment the SuperNodes have a minute
    to connect.

    Raises
    ------
    ConfigError
        If there are too few, with the command to run; or fewer than `byzantine_nodes`.
    """
    sleep = clock_of(grid)[1]
    for _ in range(60):
        nodes = list(grid.get_node_ids())
        if len(nodes) >= settings.quorum or type(grid).__name__ == "InMemoryGrid":
            break
        sleep(1)
    legal = f"at most the {len(nodes)} nodes of the federation"
    if len(nodes) < settings.quorum:
        command = (
            f'flwr run . --federation-config "num-supernodes={settings.quorum} '
            'client-resources-num-cpus=1" --stream'
        )
        raise ConfigError("quorum", settings.quorum, legal, f"type `{command}`")
    if settings.byzantine_nodes > len(nodes):
        fix = "pass fewer, or start more nodes"
        raise ConfigError("byzantine-nodes", settings.byzantine_nodes, legal, fix)
    return nodes


def identify(grid: Grid, nodes: list[int]) -> dict[int, int]:
    """Query each node for its partition-id, for the final table; the strategy never sees it.

    A node without a valid answer is left out. No answer and no network error ends the run.
    """
    pending: dict[str, int] = {}
    for node in nodes:
        content = RecordDict({"config": ConfigRecord()})
        question = Message(content, dst_node_id=node, message_type=MessageType.QUERY)
        with suppress(*network_errors(grid)):
            pending |= {key: node for key in grid.push_messages([question]) if key}
    partitions: dict[int, int] = {}
    clock, sleep = clock_of(grid)
    deadline = clock() + FIRST_ANSWER_SECONDS
    while pending and clock() < deadline:
        for message_id in list(pending):
            replies, partition = list[Message](), None
            with suppress(*network_errors(grid)):
                replies = list(grid.pull_messages([message_id]))
            for reply in replies[:1]:
                node = pending.pop(message_id)
                with suppress(Exception):  # whatever its client sent
                    partition = reply.content.metric_records["metrics"]["partition-id"]
            taken = partition in partitions.values()
            if isinstance(partition, int) and 0 <= partition < len(nodes) and not taken:
                partitions[node] = partition
                deadline = min(deadline, clock() + OTHER_ANSWERS_SECONDS)
        sleep(0.1)
    return partitions


def attacked(
    settings: Settings, grid: Grid, rule: Aggregator, partitions: Mapping[int, int]
) -> Grid:
    """Return the grid, wrapped in OmniscientGrid if the attack needs to know other replies."""
    attack = settings.build_attack()
    if not is_omniscient(attack):
        return grid
    byzantine = [node for node, part in partitions.items() if part < settings.byzantine_nodes]
    return OmniscientGrid(grid, attack, byzantine, rule=rule, seed=settings.seed % 2**32)


def _evaluator(
    task: Task, settings: Settings, model: nn.Module
) -> Callable[[int, ArrayRecord], MetricRecord]:
    test = task.load(settings.data_dir, settings.download)[1]
    device = torch.device(settings.chosen_device)
    test = Split(test.inputs.to(device), test.labels.to(device))

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        del server_round
        model.load_state_dict(arrays.to_torch_state_dict())
        model.to(device).eval()
        with torch.no_grad():
            # In batches: 10,000 images at once take a gigabyte.
            outputs = torch.cat([model(part) for part in torch.split(test.inputs, 500)])
        loss = float(nn.functional.cross_entropy(outputs, test.labels))
        accuracy = float((outputs.argmax(dim=1) == test.labels).float().mean())
        return MetricRecord({"accuracy": accuracy, "loss": loss})

    return evaluate
