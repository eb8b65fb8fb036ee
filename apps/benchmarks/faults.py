"""The effect of one faulty client among five on Flower's stock strategies and on AsyncRobust.

Real strategies and messages on a virtual clock. Each client's loss is the squared distance to its
target, 0.8 to 1.2, so that together they train to 1. The client with target 1.2 is faulty from its
first reply on, in one way per row. "Unharmed" is a final model less than 0.15 from 1; "steered" is
one at the faulty client's target.
"""

import argparse
import logging
import math
import warnings
from collections.abc import Callable, Iterable
from functools import partial

import flwr
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, Krum, Strategy
from numpy.typing import NDArray

from flwr_byzasync import AsyncRobust, VirtualGrid
from flwr_byzasync._checks import check_integer
from flwr_byzasync.aggregators import CoordinateWiseMedian
from flwr_byzasync.optimizers import SGD
from flwr_byzasync.simulation import Churn, VirtualNode

NODES, FAULTY = 5, 4
TARGETS = (0.8, 0.9, 1.0, 1.1, 1.2)
EXAMPLES = 10
Spoil = Callable[[RecordDict], object]

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": lambda: FedAvg(fraction_evaluate=0.0),
    "FedMedian": lambda: FedMedian(fraction_evaluate=0.0),
    "Krum": lambda: Krum(fraction_evaluate=0.0, num_malicious_nodes=1),
    "AsyncRobust": lambda: AsyncRobust(CoordinateWiseMedian(), SGD(0.1)),
}


def _array(change: Callable[[NDArray[np.float32]], NDArray[np.generic]]) -> Spoil:
    def spoil(content: RecordDict) -> None:
        record = content.array_records["arrays"]
        record["x"] = Array(change(record["x"].numpy().copy()))

    return spoil


def _metric(value: float | list[int], key: str = "num-examples") -> Spoil:
    def spoil(content: RecordDict) -> None:
        content.metric_records["metrics"][key] = value

    return spoil


def _raise(_: RecordDict) -> None:
    raise ValueError("a fault of the client app")


def _garbage(content: RecordDict) -> None:
    content.array_records["arrays"]["x"].data = b"garbage"


def _rename(content: RecordDict) -> None:
    record = content.array_records["arrays"]
    record["y"] = record.pop("x")


def _extra(content: RecordDict) -> None:
    content["more"] = ArrayRecord({"x": Array(np.ones(3, np.float32))})


SPOILS: dict[str, Spoil] = {
    "error reply": _raise,
    "no arrays": lambda content: content.pop("arrays"),
    "no metrics": lambda content: content.pop("metrics"),
    "extra record of arrays": _extra,
    "wrong names": _rename,
    "wrong shape": _array(lambda x: np.append(x, x)),
    "empty array": _array(lambda x: x[:0]),
    "wrong dtype: float64": _array(lambda x: x.astype(np.float64)),
    "wrong dtype: text": _array(lambda x: x.astype(str)),
    "bytes that are no array": _garbage,
    "NaN": _array(lambda x: x * np.float32(math.nan)),
    "infinity": _array(lambda x: x * np.float32(math.inf)),
    "huge norm: 1e30": _array(lambda x: x * 0 + np.float32(1e30)),
    "another set of metric keys": _metric(0.5, "accuracy"),
    "a list where a number is expected": _metric([EXAMPLES, EXAMPLES]),
    "claims 1e12 examples": _metric(10**12),
    "claims -39 examples beside 40": _metric(1 - EXAMPLES * (NODES - 1)),
}
OTHERS = ("none", "silent for ever", "duplicate replies", "node leaves")


class Doubling(VirtualGrid):
    """Delivers the faulty client's replies twice."""

    def pull_messages(
        self, message_ids: Iterable[str] | None = None, **renamed: Iterable[str]
    ) -> list[Message]:
        """Return the replies that have arrived, the faulty client's twice."""
        replies = super().pull_messages(message_ids, **renamed)
        faulty = self.node_ids[FAULTY]
        return [r for r in replies for _ in range(1 + (r.metadata.src_node_id == faulty))]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--rounds", type=int, default=20)


def main(options: argparse.Namespace) -> None:
    """Run every strategy with every fault, and print a Markdown table."""
    check_integer("rounds", options.rounds, low=1, fix="pass for example --rounds 20")
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    print(f"flwr {flwr.__version__}, {NODES} clients, {options.rounds} rounds\n")
    print(f"| fault | {' | '.join(STRATEGIES)} |")
    print("|---" * (1 + len(STRATEGIES)) + "|")
    for fault in (*OTHERS, *SPOILS):
        outcomes = [outcome(make(), fault, options.rounds) for make in STRATEGIES.values()]
        print(f"| {fault} | {' | '.join(outcomes)} |", flush=True)


def outcome(strategy: Strategy, fault: str, rounds: int) -> str:
    """Return the outcome of a run with one faulty client, in a few words."""
    nodes = [VirtualNode()] * NODES
    if fault == "silent for ever":
        nodes[FAULTY] = VirtualNode(compute=1e9)
    churn = [Churn(3.5, FAULTY, "leave")] if fault == "node leaves" else []
    make = Doubling if fault == "duplicate replies" else VirtualGrid
    start = ArrayRecord({"x": Array(np.zeros(3, np.float32))})
    with make(partial(_client, fault), nodes, churn=churn) as grid, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = strategy.start(grid, start, rounds)
            final = [array.numpy() for array in result.arrays.values()]
        except (Exception, SystemExit) as error:
            return f"ends: {type(error).__name__}"
        seconds = grid.clock() / rounds
    return _described(final) + _notes(strategy, seconds)


def _client(fault: str, message: Message, context: Context) -> Message:
    """Train one step towards the client's target, as any ClientApp would; then spoil the reply."""
    partition = int(context.node_config["partition-id"])
    config = message.content.config_records["config"]
    x = next(iter(message.content.array_records["arrays"].values())).numpy()
    gradient = (x - TARGETS[partition]).astype(np.float32)
    # AsyncRobust asks for a direction here, Flower's strategies for a model.
    sent = gradient if "byz.payload" in config else x - np.float32(0.5) * gradient
    content = RecordDict(
        {
            "arrays": ArrayRecord({"x": Array(sent)}),
            "metrics": MetricRecord({"num-examples": EXAMPLES, "loss": 0.5}),
            "config": ConfigRecord(dict(config)),
        }
    )
    if partition == FAULTY and fault in SPOILS:
        SPOILS[fault](content)
    return Message(content, reply_to=message)


def _described(final: list[NDArray[np.generic]]) -> str:
    if not final:
        return "ends without a model"
    x = np.concatenate([np.asarray(part, dtype=np.float64).reshape(-1) for part in final])
    if not np.isfinite(x).all():
        return "poisoned: NaN" if np.isnan(x).any() else "poisoned: infinity"
    if x.shape != (3,):
        return f"poisoned: {x.size} numbers instead of 3"
    distance = float(np.abs(x - 1.0).max())
    if np.abs(x - TARGETS[FAULTY]).max() < 0.01:
        return f"steered: {x[0]:.2f}"
    if distance >= 0.15:
        return f"poisoned: {x[0]:.3g}"
    # A wider array widens the average, and so the model of the next round.
    dtype = final[0].dtype
    return "unharmed" if dtype == np.float32 else f"unharmed, but the model is {dtype}"


def _notes(strategy: Strategy, seconds: float) -> str:
    """Return the counted reasons, and the time of a round if it was long."""
    notes = [f"{seconds:,.0f} s a round"] if seconds > 10 else []
    if isinstance(strategy, AsyncRobust):
        notes += [f"`{reason.name}`" for reason in strategy.statistics().reasons]
    return f" ({', '.join(notes)})" if notes else ""
