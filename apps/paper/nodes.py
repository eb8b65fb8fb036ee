"""The nodes of a cell: their batches, honest and Byzantine gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Context
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from apps.paper.cells import NO_ATTACK, SHARED, Cell
from apps.train.client_app import batch_gradient
from apps.train.settings import is_omniscient
from apps.train.tasks import Split, Task, partitions
from flwr_byzasync import Gradient, Query, attacks, client_app, estimators
from flwr_byzasync._checks import check_integer
from flwr_byzasync.adversary import attack_mod
from flwr_byzasync.attacks import LabelAttack, VectorAttack


@dataclass(frozen=True)
class Stream:
    """Shuffled epochs over all data, of which each arrival takes the next batch.

    The seed fixes the order of arrivals, so reply number `count` of a node is a fixed arrival and
    gets a fixed batch.

    Parameters
    ----------
    examples : int
        Size of the training set.
    batch_size : int
        Examples per arrival.
    seed : int
        Of the shuffles.
    places : mapping
        (partition-id, count) -> arrival number.
    """

    examples: int
    batch_size: int
    seed: int
    places: Mapping[tuple[int, int], int]

    @classmethod
    def of(cls, examples: int, batch_size: int, seed: int, order: tuple[int, ...]) -> "Stream":
        """Return the stream of a run with this order of arrivals."""
        counts: dict[int, int] = {}
        places = {}
        for place, node in enumerate(order):
            places[node, counts.get(node, 0)] = place
            counts[node] = counts.get(node, 0) + 1
        return cls(examples, batch_size, seed, places)

    def batch(self, partition: int, count: int) -> Tensor:
        """Return the indices of the examples of a node's reply number `count`."""
        # A node that diverged has rejected replies, and may exceed the plan.
        beyond = len(self.places) + 1009 * count + partition
        place = self.places.get((partition, count), beyond)
        per_epoch = max(self.examples // self.batch_size, 1)
        epoch, within = divmod(place, per_epoch)
        begin = within * self.batch_size
        return self._epoch(epoch)[begin : begin + self.batch_size]

    def _epoch(self, epoch: int) -> Tensor:
        key = (self.examples, self.seed, epoch)
        if key not in _SHUFFLES:
            # At most two are cached, for arrivals around the end of an epoch.
            while len(_SHUFFLES) > 1:
                del _SHUFFLES[next(iter(_SHUFFLES))]
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            _SHUFFLES[key] = torch.randperm(self.examples, generator=generator)
        return _SHUFFLES[key]


_SHUFFLES: dict[tuple[int, int, int], Tensor] = {}


@dataclass(frozen=True)
class Shares:
    """Separate examples for each node; each reply takes a batch drawn with replacement.

    Parameters
    ----------
    parts : sequence of Tensor
        Indices of the examples of each node.
    batch_size : int
        Examples per reply.
    seed : int
        Of the draws.
    """

    parts: Sequence[Tensor]
    batch_size: int
    seed: int

    def batch(self, partition: int, count: int) -> Tensor:
        """Return the indices of the examples of a node's reply number `count`."""
        examples = self.parts[partition]
        generator = np.random.default_rng([self.seed, partition, count])
        return examples[torch.from_numpy(generator.integers(len(examples), size=self.batch_size))]


def batches_of(cell: Cell, labels: Tensor, order: tuple[int, ...]) -> Stream | Shares:
    """Return the batches of a cell."""
    if cell.partition == SHARED:
        return Stream.of(len(labels), cell.batch_size, cell.seed, order)
    parts = partitions.build(cell.partition)(labels, cell.nodes, cell.seed)
    return Shares(parts, cell.batch_size, cell.seed)


def attack_of(cell: Cell) -> VectorAttack | LabelAttack | None:
    """Return the attack of the Byzantine nodes of a cell."""
    return None if cell.attack == NO_ATTACK else attacks.build(cell.attack)


def nodes_of(cell: Cell, task: Task, training: Split, order: tuple[int, ...]) -> ClientApp:
    """Return the ClientApp of a cell.

    Parameters
    ----------
    cell : Cell
        Its settings.
    task : Task
        Its data set.
    training : Split
        Examples, assigned to nodes by `batches_of`.
    order : tuple of int
        Partition-ids in order of arrival.
    """
    fix = f"pass at most {len(training.labels)}"
    check_integer("batch_size", cell.batch_size, low=1, high=len(training.labels), fix=fix)
    batches = batches_of(cell, training.labels, order)
    model: nn.Module = task.make_model(cell.model, cell.seed)
    attack = attack_of(cell)

    def gradient(query: Query) -> Gradient:
        partition = int(query.context.node_config["partition-id"])
        batch = batches.batch(partition, int(query.config["byz.count"]))  # type: ignore[call-overload]
        labels = training.labels[batch]
        if isinstance(attack, LabelAttack) and partition < cell.byzantine:
            labels = attack.transform(labels, task.classes)
        return batch_gradient(query, task, model, training.inputs[batch], labels)

    own = attack if isinstance(attack, VectorAttack) and not is_omniscient(attack) else None

    def own_attack(context: Context) -> VectorAttack | None:
        return own if int(context.node_config["partition-id"]) < cell.byzantine else None

    estimator = estimators.build(cell.optimizer, cell.chosen_beta)
    return client_app(gradient, estimator=estimator, mods=[attack_mod(own_attack)])
