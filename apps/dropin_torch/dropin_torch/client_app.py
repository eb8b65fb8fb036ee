"""The nodes: local epochs on their own images. Nothing here knows which strategy is used."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from dropin_torch.task import Net, evaluate, partition, train

app = ClientApp()


@app.train()
def train_fn(message: Message, context: Context) -> Message:
    """Train the model that came, and return it."""
    config, settings = message.content.config_records["config"], context.run_config
    me, everybody = (int(context.node_config[k]) for k in ("partition-id", "num-partitions"))
    # Each round has its own batches; the same ones in every run with this seed.
    seed = 10_000 * int(settings["seed"]) + 100 * int(config["server-round"]) + me
    loader, _ = partition(me, everybody, int(settings["batch-size"]), seed)
    model = Net()
    given = message.content.array_records["arrays"].to_torch_state_dict()
    model.load_state_dict(given)
    losses = train(model, loader, int(settings["local-epochs"]), float(config["lr"]))
    trained = model.state_dict()
    if me < int(settings["byzantine-nodes"]):
        trained = lie(given, trained)
    metrics = {
        "num-examples": len(loader.dataset),
        "train_loss": losses[-1],
        "loss_by_epoch": losses,
    }
    content = {"arrays": ArrayRecord(trained), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(content), reply_to=message)


@app.evaluate()
def evaluate_fn(message: Message, context: Context) -> Message:
    """Say how good the model that came is on this node's own images."""
    me, everybody = (int(context.node_config[k]) for k in ("partition-id", "num-partitions"))
    _, loader = partition(me, everybody, int(context.run_config["batch-size"]), seed=0)
    model = Net()
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    loss, accuracy = evaluate(model, loader)
    metrics = {"num-examples": len(loader.dataset), "eval_loss": loss, "eval_acc": accuracy}
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def lie(given: dict[str, Tensor], trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """Go the opposite way, three times as far."""
    return {
        name: given[name] - 3 * (value - given[name]) if value.is_floating_point() else value
        for name, value in trained.items()
    }
