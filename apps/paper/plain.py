"""The algorithm of a cell as a plain loop: no Flower, no strategy, a median by sorting.

Independent of the package, as a check and as a baseline for its time: with the same arrivals and
batches both give the same model.
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
    """The result of a plain loop.

    Parameters
    ----------
    arrays : dict of str to Tensor
        The model: parameters and buffers.
    seconds : float
        For the whole loop.
    gradient_seconds : float
        For the gradients alone.
    """

    arrays: Arrays
    seconds: float
    gradient_seconds: float


def plain(cell: Cell, data_dir: str = "") -> Plain:
    """Run a cell of μ²-SGD with w-CWMed and an attack without knowledge of others, in one thread.

    Parameters
    ----------
    cell : Cell
        Rule ``cwmed`` and optimizer ``mu2``; no others are implemented.
    data_dir : str
        Folder of the data set.

    Raises
    ------
    ConfigError
        If the cell has another rule, optimizer or kind of attack.
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
    network = _Network(task.make_model(cell.model, cell.seed))
    beta = 0.25 if cell.chosen_beta is None else cell.chosen_beta
    x = w = network.start()
    buffers = {name: b.clone() for name, b in network.model.named_buffers()}
    rows = torch.zeros(cell.nodes, len(x))
    received: list[Arrays] = [{}] * cell.nodes
    weights = torch.zeros(cell.nodes, dtype=torch.int64)
    queries = [(x, buffers)] * cell.nodes
    memories: list[tuple[Tensor, Tensor] | None] = [None] * cell.nodes
    gradient_seconds = 0.0
    began = time.perf_counter()
    for arrival, node in enumerate(order):
        batch = stream.batch(node, int(weights[node]))
        inputs, labels = training.inputs[batch], training.labels[batch]
        if isinstance(attack, LabelAttack) and node < cell.byzantine:
            labels = attack.transform(labels, task.classes)
        since = time.perf_counter()
        vector, received[node] = network.mu2(queries[node], memories[node], beta, inputs, labels)
        gradient_seconds += time.perf_counter() - since
        memories[node] = (queries[node][0], vector)
        if isinstance(attack, VectorAttack) and node < cell.byzantine:
            vector = attack.craft(vector)
        rows[node], weights[node] = vector, weights[node] + 1
        if arrival >= cell.nodes - 1:
            direction = weighted_median(rows, weights)
            if arrival >= cell.nodes or cell.arrivals != "paper":
                w = w - cell.lr * direction
                x = torch.lerp(x, w, cell.gamma)
            buffers = _median_of(received, weights, buffers)
        queries[node] = (x, buffers)
    seconds = time.perf_counter() - began
    return Plain({**network.arrays(x), **buffers}, seconds, gradient_seconds)


class _Network:
    """A model as a function of one vector of all its parameters."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._shapes = {name: p.shape for name, p in model.named_parameters()}

    def start(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.model.parameters()])

    def arrays(self, x: Tensor) -> Arrays:
        """Cut a vector into the parameters."""
        pieces = torch.split(x, [shape.numel() for shape in self._shapes.values()])
        parts = zip(self._shapes.items(), pieces, strict=True)
        return {name: piece.reshape(shape) for (name, shape), piece in parts}

    def mu2(
        self,
        query: tuple[Tensor, Arrays],
        memory: tuple[Tensor, Tensor] | None,
        beta: float,
        inputs: Tensor,
        labels: Tensor,
    ) -> tuple[Tensor, Arrays]:
        """Return the corrected momentum of a node, and the buffers of its reply."""
        point, sent = query
        buffers = {name: b.clone() for name, b in sent.items()}
        vector = self._gradient(point, buffers, inputs, labels)
        if memory is not None:
            discarded = {name: b.clone() for name, b in sent.items()}
            old = self._gradient(memory[0], discarded, inputs, labels)
            vector = vector + (1 - beta) * (memory[1] - old)
        return vector, buffers

    def _gradient(self, point: Tensor, buffers: Arrays, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the gradient at a point; `buffers` are updated in place."""
        leaves = {name: part.requires_grad_() for name, part in self.arrays(point).items()}
        outputs = functional_call(self.model, {**leaves, **buffers}, (inputs,))
        loss = nn.functional.cross_entropy(outputs, labels)
        gradients = torch.autograd.grad(loss, list(leaves.values()))
        return torch.cat([g.reshape(-1) for g in gradients])


def weighted_median(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted median of each column, by sorting; a tie gives the midpoint."""
    values, order = torch.sort(rows, dim=0)
    twice, total = 2 * weights[order].cumsum(dim=0), weights.sum()
    low = (twice < total).sum(dim=0, keepdim=True)
    high = (twice <= total).sum(dim=0, keepdim=True)
    lower, upper = (values.gather(0, which)[0].double() for which in (low, high))
    return ((lower + upper) / 2).to(rows.dtype)


def _median_of(received: list[Arrays], weights: Tensor, buffers: Arrays) -> Arrays:
    """Aggregate statistics by the median, counters by the lower median."""
    medians = {}
    for name, old in buffers.items():
        rows = torch.stack([arrays[name].reshape(-1) for arrays in received])
        if old.is_floating_point():
            medians[name] = weighted_median(rows, weights).reshape(old.shape)
        else:
            values, order = torch.sort(rows, dim=0)
            low = (2 * weights[order].cumsum(dim=0) < weights.sum()).sum(dim=0, keepdim=True)
            medians[name] = values.gather(0, low)[0].reshape(old.shape)
    return medians
