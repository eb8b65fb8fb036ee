"""The nodes of the reference app, honest and Byzantine."""

from functools import cache

import torch
from flwr.app import Context, Message, MetricRecord, RecordDict
from torch import Tensor, nn
from torch.func import functional_call

from apps.train.settings import Settings, is_omniscient
from apps.train.tasks import Split, Task, discover, partitions
from flwr_byzasync import Gradient, Query, client_app, estimators
from flwr_byzasync.adversary import attack_mod, delay_mod
from flwr_byzasync.attacks import LabelAttack, TimedAttack, VectorAttack
from flwr_byzasync.estimators import Estimator


def settings_of(context: Context) -> Settings:
    """Return the checked run-config."""
    return _settings(tuple(sorted(context.run_config.items())))


@cache
def _settings(items: tuple[tuple[str, object], ...]) -> Settings:
    return Settings.of(dict(items))


def attack_of(context: Context) -> VectorAttack | LabelAttack | None:
    """Return this node's attack; nodes with partition-id < byzantine-nodes are Byzantine."""
    return _attack(settings_of(context), int(context.node_config["partition-id"]))


@cache
def _attack(settings: Settings, partition: int) -> VectorAttack | LabelAttack | None:
    return settings.build_attack() if partition < settings.byzantine_nodes else None


def vector_attack_of(context: Context) -> VectorAttack | None:
    """Return the attack on this node's vector, if it needs no knowledge of other nodes."""
    attack = attack_of(context)
    return attack if isinstance(attack, VectorAttack) and not is_omniscient(attack) else None


def timed_attack_of(context: Context) -> TimedAttack | None:
    """Return the delay attack of a node whose vector OmniscientGrid rewrites."""
    attack = attack_of(context)
    return attack if isinstance(attack, TimedAttack) and is_omniscient(attack) else None


@cache
def _training(name: str, data_dir: str, download: bool) -> Split:
    return discover()[name].load(data_dir, download)[0]


@cache
def _model(dataset: str, model: str, seed: int) -> nn.Module:
    # Training mode is set once: walking all layers for each gradient takes time.
    return discover()[dataset].make_model(model, seed).train()


def partition_of(context: Context) -> Split:
    """Return this node's training examples, their labels flipped under a label attack."""
    config = context.node_config
    share = (int(config["partition-id"]), int(config["num-partitions"]))
    return _partition(settings_of(context), *share)


@cache
def _partition(settings: Settings, partition: int, nodes: int) -> Split:
    """Select a node's examples; cached, since each reply takes two gradients."""
    examples = _training(settings.dataset, settings.data_dir, settings.download)
    shares = partitions.build(settings.partition)(examples.labels, nodes, settings.seed)
    inputs, labels = examples.inputs[shares[partition]], examples.labels[shares[partition]]
    attack = _attack(settings, partition)
    if isinstance(attack, LabelAttack):
        labels = attack.transform(labels, discover()[settings.dataset].classes)
    return Split(inputs, labels)


def gradient(query: Query) -> Gradient:
    """Return the gradient of the cross-entropy on one batch of the node's examples."""
    settings, examples = settings_of(query.context), partition_of(query.context)
    batch = torch.randint(len(examples.labels), (settings.batch_size,), generator=query.generator)
    model = _model(settings.dataset, settings.model, settings.seed)
    task = discover()[settings.dataset]
    return batch_gradient(query, task, model, examples.inputs[batch], examples.labels[batch])


def batch_gradient(
    query: Query, task: Task, model: nn.Module, inputs: Tensor, labels: Tensor
) -> Gradient:
    """Return the gradient of the cross-entropy on a batch, with the task's augmentation."""
    device = next(iter(query.parameters.values())).device
    if task.augment is not None:
        inputs = task.augment(inputs, query.generator)
    parameters = {k: v.detach().requires_grad_() for k, v in query.parameters.items()}
    outputs: Tensor = functional_call(model, {**parameters, **query.buffers}, (inputs.to(device),))
    loss = nn.functional.cross_entropy(outputs, labels.to(device))
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return Gradient(
        gradients=dict(zip(parameters, gradients, strict=True)),
        buffers=query.buffers,
        metrics={"train_loss": float(loss.detach())},
    )


def _estimator(context: Context) -> Estimator:
    settings = settings_of(context)
    return estimators.build(settings.optimizer, settings.chosen_beta)


def _device(context: Context) -> str:
    return settings_of(context).chosen_device


app = client_app(
    gradient,
    estimator=_estimator,
    device=_device,
    mods=[attack_mod(vector_attack_of), delay_mod(timed_attack_of)],
)


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Report this node's partition-id, for the final table only; the strategy never sees it."""
    metrics = MetricRecord({"partition-id": int(context.node_config["partition-id"])})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
