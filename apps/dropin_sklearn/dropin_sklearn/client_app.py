"""The nodes: a few iterations on their own images, whatever the strategy."""

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dropin_sklearn.task import Floats, evaluate, partition, train

app = ClientApp()


@app.train()
def train_fn(message: Message, context: Context) -> Message:
    """Train the received model, and return it."""
    settings = context.run_config
    node, nodes = (int(context.node_config[k]) for k in ("partition-id", "num-partitions"))
    data, _ = partition(node, nodes)
    received = message.content.array_records["arrays"].to_numpy_ndarrays()
    before, _ = evaluate(received, data)
    trained = train(
        received, data, int(settings["local-epochs"]), float(settings["regularisation"])
    )
    after, _ = evaluate(trained, data)
    if node < int(settings["byzantine-nodes"]):
        trained = poison(received, trained)
    metrics = {
        "num-examples": len(data[1]),
        "train_loss": after,
        "loss_before_and_after": [before, after],
    }
    content = {"arrays": ArrayRecord(trained), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate_fn(message: Message, context: Context) -> Message:
    """Evaluate the received model on this node's images."""
    node, nodes = (int(context.node_config[k]) for k in ("partition-id", "num-partitions"))
    _, data = partition(node, nodes)
    loss, accuracy = evaluate(message.content.array_records["arrays"].to_numpy_ndarrays(), data)
    metrics = {"num-examples": len(data[1]), "eval_loss": loss, "eval_acc": accuracy}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def poison(received: list[Floats], trained: list[Floats]) -> list[Floats]:
    """Return the update times -3, as a Byzantine node."""
    return [np.asarray(x - 3 * (y - x)) for x, y in zip(received, trained, strict=True)]
