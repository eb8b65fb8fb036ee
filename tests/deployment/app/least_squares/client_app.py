"""NumPy clients, since every message starts a process: honest, slow and hostile.

The node-config names a node's behaviour.
"""

import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from least_squares import task

app = ClientApp()

ECHOED = ("byz.query", "byz.payload")
SLOW_SECONDS = 4.0


@app.train()
def train(message: Message, context: Context) -> Message:
    """Reply according to this node's behaviour."""
    content = BEHAVIOURS[str(context.node_config["behaviour"])](message, context)
    return Message(content, reply_to=message)


def honest(message: Message, context: Context) -> RecordDict:
    """Return the gradient, in the form that AsyncRobust expects."""
    content, config = message.content, message.content.config_records["config"]
    model = {name: array.numpy() for name, array in content.array_records["arrays"].items()}
    partition, count = context.node_config["partition-id"], config["byz.count"]
    gradient = task.gradient(model, int(str(partition)), int(str(count)))
    return RecordDict(
        {
            "arrays": ArrayRecord({name: Array(value) for name, value in gradient.items()}),
            "metrics": MetricRecord({"loss": task.loss(model)}),
            "config": ConfigRecord({key: config[key] for key in ECHOED}),
        }
    )


def boastful(message: Message, context: Context) -> RecordDict:
    """Return the gradient with metrics that would win or poison a weighted mean."""
    reply = honest(message, context)
    reply["metrics"] = MetricRecord({"num-examples": 10**12, "loss": float("nan"), "weight": -1.0})
    return reply


def slow(message: Message, context: Context) -> RecordDict:
    """Mark the start of the computation, and take some seconds."""
    (_output(context) / "computing").touch()
    time.sleep(SLOW_SECONDS)
    return honest(message, context)


def dying(message: Message, context: Context) -> RecordDict:
    """Exit the process at the first message of all; be honest afterwards."""
    died = _output(context) / "died"
    if not died.exists():
        died.touch()
        os._exit(1)
    return honest(message, context)


def hostile(message: Message, context: Context) -> RecordDict:
    """Break each reply in a different way."""
    previous = context.state.config_records.get("replies", ConfigRecord({"count": 0}))
    count = int(str(previous["count"]))
    context.state["replies"] = ConfigRecord({"count": count + 1})
    return HOSTILITIES[count % len(HOSTILITIES)](honest(message, context))


def _raise(reply: RecordDict) -> RecordDict:
    raise RuntimeError("a hostile client")


def _wrong_shape(reply: RecordDict) -> RecordDict:
    reply["arrays"] = ArrayRecord({"weight": Array(np.zeros(9)), "bias": Array(np.zeros(1))})
    return reply


def _not_a_number(reply: RecordDict) -> RecordDict:
    reply["arrays"] = ArrayRecord(
        {"weight": Array(np.full(8, np.nan)), "bias": Array(np.full(1, np.inf))}
    )
    return reply


def _pickle(reply: RecordDict) -> RecordDict:
    bad = Array(dtype="float64", shape=(8,), stype="numpy.ndarray", data=pickle.dumps(object()))
    reply["arrays"] = ArrayRecord({"weight": bad, "bias": Array(np.zeros(1))})
    return reply


def _other_query(reply: RecordDict) -> RecordDict:
    reply["config"] = ConfigRecord({"byz.query": 10**9, "byz.payload": "momentum"})
    return reply


def _garbage(reply: RecordDict) -> RecordDict:
    """Leave the arrays out, and put a megabyte of keys in their place."""
    del reply["arrays"]
    reply["metrics"] = MetricRecord({f"{k:01000d}": float(k) for k in range(1000)})
    return reply


HOSTILITIES: tuple[Callable[[RecordDict], RecordDict], ...] = (
    _raise,
    _wrong_shape,
    _not_a_number,
    _pickle,
    _other_query,
    _garbage,
)
BEHAVIOURS: dict[str, Callable[[Message, Context], RecordDict]] = {
    "honest": honest,
    "boastful": boastful,
    "slow": slow,
    "dying": dying,
    "hostile": hostile,
}


def _output(context: Context) -> Path:
    return Path(str(context.run_config["output-dir"]))
