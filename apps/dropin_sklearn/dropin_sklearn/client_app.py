"""The nodes: a few iterations on their own images. Nothing here knows which strategy is used."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dropin_sklearn.task import Floats, evaluate, partition, train

app = ClientApp()


@app.train()
def train_fn(message: Message, context: Context) -> Message:
    """Train the model that came, and return it."""
    settings = context.run_config
    me, everybody = (int(context.node_config[k]) for k in ("partition-id", "num-partitions"))
    data, _ = partition(me, everybody)
    given = message.content.array_records["arrays"].to_numpy_ndarrays()
    before, _ = evaluate(given, data)
    trained = train(given, data, int(settings["local-epochs"]), float(settings["regularisation"]))
    after, _ = evaluate(trained, data)
    if me < int(settings["byzantine-nodes"]):
        trained = lie(given, trained)
    metrics = {
        "num-examples": len(data[1]),
        "train_loss": after,
        "loss_before_and_after": [before, after],
    }
    content = {"arrays": ArrayRecord(trained), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate_fn(message: Message, context: Context) -> Message:
    """Say how good the model that came is on this node's own images."""
    me, everybody = (int(context.node_config[k]) for k in ("partition-id", "num-partitions"))
    _, data = partition(me, everybody)
    loss, accuracy = evaluate(message.content.array_records["arrays"].to_numpy_ndarrays(), data)
    metrics = {"num-examples": len(data[1]), "eval_loss": loss, "eval_acc": accuracy}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def lie(given: list[Floats], trained: list[Floats]) -> list[Floats]:
    """Go the opposite way, three times as far."""
    return [np.asarray(x - 3 * (y - x)) for x, y in zip(given, trained, strict=True)]
