"""The nodes: local epochs on their own images, whatever the strategy."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from dropin_torch.task import Net, evaluate, partition, train

app = ClientApp()


@app.train()
def train_fn(message: Message, context: Context) -> Message:
    """Train the received model, and return it."""
    config, settings = message.content.config_records["config"], context.run_config
    node, nodes = (int(context.node_config[k]) for k in ("partition-id", "num-partitions"))
    # Each round has its own batches, the same in all runs with this seed.
    seed = 10_000 * int(settings["seed"]) + 100 * int(config["server-round"]) + node
    loader, _ = partition(node, nodes, int(settings["batch-size"]), seed)
    model = Net()
    received = message.content.array_records["arrays"].to_torch_state_dict()
    model.load_state_dict(received)
    losses = train(model, loader, int(settings["local-epochs"]), float(config["lr"]))
    trained = model.state_dict()
    if node < int(settings["byzantine-nodes"]):
        trained = poison(received, trained)
    metrics = {
        "num-examples": len(loader.dataset),
        "train_loss": losses[-1],
        "loss_by_epoch": losses,
    }
    content = {"arrays": ArrayRecord(trained), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate_fn(message: Message, context: Context) -> Message:
    """Evaluate the received model on this node's images."""
    node, nodes = (int(context.node_config[k]) for k in ("partition-id", "num-partitions"))
    _, loader = partition(node, nodes, int(context.run_config["batch-size"]), seed=0)
    model = Net()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    loss, accuracy = evaluate(model, loader)
    metrics = {"num-examples": len(loader.dataset), "eval_loss": loss, "eval_acc": accuracy}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def poison(received: dict[str, Tensor], trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the update times -3, as a Byzantine node."""
    return {
        name: received[name] - 3 * (value - received[name]) if value.is_floating_point() else value
        for name, value in trained.items()
    }
