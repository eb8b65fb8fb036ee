"""The algorithm of a cell as a plain loop: no Flower, no strategy, a sort for the median.

Written apart from the package, to check it: with the same arrivals and batches both must give
the same model. And to measure it by: this is what the strategy's time is compared with.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from apps.paper.cells import Cell
from apps.paper.nodes import Stream, attack_of
from apps.paper.run import arrivals_of, load, one_thread
from apps.train.settings import is_omniscient
from apps.train.tasks import discover
from flwr_byzasync import ConfigError
from flwr_byzasync.attacks import LabelAttack, VectorAttack

Arrays = dict[str, Tensor]


@dataclass(frozen=True)
class Plain:
    """What a plain loop ends with.

    Parameters
    ----------
    arrays : dict of str to Tensor
        The model: parameters and buffers.
    seconds : float
        Of the whole loop.
    gradient_seconds : float
        Of these, those spent in gradients.
    """

    arrays: Arrays
    seconds: float
    gradient_seconds: float


def plain(cell: Cell, data_dir: str = "") -> Plain:
    """Run a cell of μ²-SGD with w-CWMed and an attack of a node's own in one thread.

    Parameters
    ----------
    cell : Cell
        Rule ``cwmed`` and optimizer ``mu2``; others are not written here.
    data_dir : str
        Where the data set lies.

    Raises
    ------
    ConfigError
        If the cell is another.
    """
    attack = attack_of(cell)
    if (cell.rule, cell.optimizer) != ("cwmed", "mu2") or is_omniscient(attack):
        raise ConfigError("cell", cell, "w-CWMed, μ²-SGD and an attack of its own", "use run")
    with one_thread():
        return _plain(cell, data_dir, attack)


def _plain(cell: Cell, data_dir: str, attack: VectorAttack | LabelAttack | None) -> Plain:
    task = discover()[cell.dataset]
    training, _ = load(cell.dataset, data_dir, False)
    order = arrivals_of(cell).order(cell.replies)
    stream = Stream.of(len(training.labels), cell.batch_size, cell.seed, order)
    model = task.make_model(cell.model, cell.seed)
    beta = 0.25 if cell.chosen_beta is None else cell.chosen_beta
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    x = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    w = x
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    rows = torch.zeros(cell.nodes, len(x))
    kept: list[Arrays] = [{}] * cell.nodes
    weights = torch.zeros(cell.nodes, dtype=torch.int64)
    asked = [(x, buffers)] * cell.nodes
    before: list[tuple[Tensor, Tensor] | None] = [None] * cell.nodes
    gradients = 0.0
    began = time.perf_counter()
    for arrival, node in enumerate(order):
        batch = stream.batch(node, int(weights[node]))
        labels = training.labels[batch]
        if isinstance(attack, LabelAttack) and node < cell.byzantine:
            labels = attack.transform(labels, task.classes)
        point, sent = asked[node]
        since = time.perf_counter()
        copies = {name: b.clone() for name, b in sent.items()}
        fresh = _gradient(model, names, shapes, point, copies, training.inputs[batch], labels)
        vector, last = fresh, before[node]
        if last is not None:
            copy = {name: b.clone() for name, b in sent.items()}
            old = _gradient(model, names, shapes, last[0], copy, training.inputs[batch], labels)
            vector = fresh + (1 - beta) * (last[1] - old)
        gradients += time.perf_counter() - since
        before[node] = (point, vector)
        lies = isinstance(attack, VectorAttack) and node < cell.byzantine
        rows[node] = attack.craft(vector) if lies else vector  # type: ignore[union-attr]
        kept[node], weights[node] = copies, weights[node] + 1
        if arrival >= cell.nodes - 1:
            direction = weighted_median(rows, weights)
            if arrival >= cell.nodes or cell.arrivals != "paper":
                w = w - cell.lr * direction
                x = torch.lerp(x, w, cell.gamma)
            buffers = _median_of(kept, weights, buffers)
        asked[node] = (x, buffers)
    seconds = time.perf_counter() - began
    pieces = torch.split(x, [shape.numel() for shape in shapes])
    parts = zip(names, pieces, shapes, strict=True)
    arrays = {name: part.reshape(shape) for name, part, shape in parts}
    return Plain({**arrays, **buffers}, seconds, gradients)


def weighted_median(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted median of each column: sort, add up weights, midpoint at one half."""
    values, order = torch.sort(rows, dim=0)
    twice, total = 2 * weights[order].cumsum(dim=0), weights.sum()
    low = (twice < total).sum(dim=0, keepdim=True)
    high = (twice <= total).sum(dim=0, keepdim=True)
    lower, upper = (values.gather(0, which)[0].double() for which in (low, high))
    return ((lower + upper) / 2).to(rows.dtype)


def _gradient(
    model: nn.Module,
    names: list[str],
    shapes: list[torch.Size],
    point: Tensor,
    buffers: Arrays,
    inputs: Tensor,
    labels: Tensor,
) -> Tensor:
    pieces = torch.split(point, [shape.numel() for shape in shapes])
    leaves = [
        part.reshape(shape).requires_grad_() for part, shape in zip(pieces, shapes, strict=True)
    ]
    arrays = {**dict(zip(names, leaves, strict=True)), **buffers}
    loss = nn.functional.cross_entropy(functional_call(model, arrays, (inputs,)), labels)
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, leaves)])


def _median_of(kept: list[Arrays], weights: Tensor, buffers: Arrays) -> Arrays:
    """Aggregate statistics by the median, counters by the lower one."""
    medians = {}
    for name, old in buffers.items():
        rows = torch.stack([arrays[name].reshape(-1) for arrays in kept])
        if old.is_floating_point():
            medians[name] = weighted_median(rows, weights).reshape(old.shape)
        else:
            values, order = torch.sort(rows, dim=0)
            low = (2 * weights[order].cumsum(dim=0) < weights.sum()).sum(dim=0, keepdim=True)
            medians[name] = values.gather(0, low)[0].reshape(old.shape)
    return medians
