"""The nodes: gradient steps on their own points. Nothing here knows which strategy is used."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from dropin_numpy.task import Floats, evaluate, partition, train

app = ClientApp()


@app.train()
def train_fn(message: Message, context: Context) -> Message:
    """Train the model that came, and return it."""
    settings, me = context.run_config, int(context.node_config["partition-id"])
    data, _ = partition(me)
    given = message.content.array_records["arrays"].to_numpy_ndarrays()
    trained, losses = train(given, data, int(settings["local-epochs"]), float(settings["lr"]))
    if me < int(settings["byzantine-nodes"]):
        trained = lie(given, trained)
    metrics = {
        "num-examples": len(data[1]),
        "train_loss": losses[-1],
        "loss_by_epoch": losses,
    }
    content = {"arrays": ArrayRecord(trained), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate_fn(message: Message, context: Context) -> Message:
    """Say how good the model that came is on this node's own points."""
    _, data = partition(int(context.node_config["partition-id"]))
    loss, accuracy = evaluate(message.content.array_records["arrays"].to_numpy_ndarrays(), data)
    metrics = {"num-examples": len(data[1]), "eval_loss": loss, "eval_acc": accuracy}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def lie(given: list[Floats], trained: list[Floats]) -> list[Floats]:
    """Go the opposite way, three times as far."""
    return [x - 3 * (y - x) for x, y in zip(given, trained, strict=True)]
