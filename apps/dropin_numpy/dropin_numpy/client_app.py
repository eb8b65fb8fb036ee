"""The nodes: gradient steps on their own points, whatever the strategy."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dropin_numpy.task import Floats, evaluate, partition, train

app = ClientApp()


@app.train()
def train_fn(message: Message, context: Context) -> Message:
    """Train the received model, and return it."""
    settings, node = context.run_config, int(context.node_config["partition-id"])
    data, _ = partition(node)
    received = message.content.array_records["arrays"].to_numpy_ndarrays()
    trained, losses = train(received, data, int(settings["local-epochs"]), float(settings["lr"]))
    if node < int(settings["byzantine-nodes"]):
        trained = poison(received, trained)
    metrics = {
        "num-examples": len(data[1]),
        "train_loss": losses[-1],
        "loss_by_epoch": losses,
    }
    content = {"arrays": ArrayRecord(trained), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate_fn(message: Message, context: Context) -> Message:
    """Evaluate the received model on this node's points."""
    _, data = partition(int(context.node_config["partition-id"]))
    loss, accuracy = evaluate(message.content.array_records["arrays"].to_numpy_ndarrays(), data)
    metrics = {"num-examples": len(data[1]), "eval_loss": loss, "eval_acc": accuracy}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def poison(received: list[Floats], trained: list[Floats]) -> list[Floats]:
    """Return the update times -3, as a Byzantine node."""
    return [x - 3 * (y - x) for x, y in zip(received, trained, strict=True)]
