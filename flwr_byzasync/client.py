"""A gradient function as a Flower ClientApp; the node's half of μ² lives in Context.state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from flwr_byzasync.core.layout import Layout
from flwr_byzasync.estimators import Estimator, Memory
from flwr_byzasync.wire.arrays import record_of, tensors_of
from flwr_byzasync.wire.flower_compat import Mod
from flwr_byzasync.wire.keys import (
    BUFFERS,
    COUNT,
    GRADIENT,
    METRICS,
    MOMENTUM,
    PAYLOAD,
    PREVIOUS,
    QUERY,
)
from flwr_byzasync.wire.node_memory import non_negative, recall, remember, seed_and_partition

MEMORY = "byz.memory"
T = TypeVar("T")


@dataclass(frozen=True)
class Query:
    """What a gradient function receives.

    Parameters
    ----------
    parameters : mapping of str to Tensor
        The point at which to differentiate, on the node's device. Read-only.
    buffers : mapping of str to Tensor
        The model's other arrays; copies that may be modified.
    generator : torch.Generator
        On the CPU, seeded by (seed, partition-id, replies accepted so far). μ² asks twice with
        generators in the same state, so a batch drawn from it is the same both times.
    context : Context
        Flower's, for node_config and run_config.
    config : mapping
        The server's train config.
    """

    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    generator: torch.Generator
    context: Context
    config: Mapping[str, object]


@dataclass(frozen=True)
class Gradient:
    """What a gradient function returns.

    Parameters
    ----------
    gradients : mapping of str to Tensor
        One for each parameter.
    buffers : mapping of str to Tensor
        The model's other arrays after the batch; those left out are returned as they came.
    metrics : mapping of str to float
        For the log, for example the loss.
    """

    gradients: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


GradientFn = Callable[[Query], Gradient]


def client_app(
    gradient: GradientFn,
    *,
    estimator: Estimator | Callable[[Context], Estimator],
    device: str | Callable[[Context], str] = "cpu",
    mods: list[Mod] | None = None,
    arrayrecord_key: str = "arrays",
    configrecord_key: str = "config",
) -> ClientApp:
    """Return a ClientApp that answers `AsyncRobust`'s queries.

    Parameters
    ----------
    gradient : callable
        ``Query -> Gradient``: the gradient of one batch drawn from the query's generator.
    estimator : Estimator or callable
        What is sent, for example ``mu2(beta=0.25)``; or how to choose it from the Context. Not
        used by a strategy with `Gradients` or `CorrectedGradients`.
    device : str or callable, default "cpu"
        Where tensors go; or how to choose it from the Context.
    mods : list of Mod, optional
        Flower client mods, for example an attack.
    arrayrecord_key, configrecord_key : str
        As passed to the strategy.

    Returns
    -------
    ClientApp
        With a train function. Evaluate and query functions can be registered on it as usual.

    Notes
    -----
    The node's memory (two vectors for μ²) is kept in ``Context.state``. A node that lost it
    starts afresh, and so does one whose last vector was not finite: it would never recover.
    Batches are seeded by the run-config key ``seed`` (0 if absent) and the node-config key
    ``partition-id`` (the node id if absent).
    """
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content, config = message.content, message.content.config_records[configrecord_key]
        where = torch.device(_chosen(device, context))
        arrays = tensors_of(content.array_records[arrayrecord_key])
        asked = _Asked(gradient, config, context, Layout.of(arrays), where, _buffers(content))
        point, previous = asked.layout.flatten(arrays, where), content.array_records.get(PREVIOUS)
        wants_gradient = config.get(PAYLOAD) == GRADIENT
        if wants_gradient:
            vector = asked.at(point)
        else:
            chosen, size = _chosen(estimator, context), asked.layout.size
            memory = _recalled(context, where, size)
            vector, memory = chosen.update(memory, point, asked.at, asked.count)
            _remember_finite(context, memory)
        reply = RecordDict({arrayrecord_key: record_of(asked.layout.unflatten(vector))})
        # Buffers and metrics at the query's own point; the previous one only corrects.
        answer = asked.answers[0]
        if asked.buffers:
            reply[BUFFERS] = record_of({**asked.buffers, **_known(answer, asked.buffers)})
        if previous is not None:
            # The server corrects: the same batch once more, at the previous query's point.
            there = asked.at(asked.layout.flatten(tensors_of(previous), where))
            reply[PREVIOUS] = record_of(asked.layout.unflatten(there))
        reply[METRICS] = MetricRecord(dict(answer.metrics))
        # A reply names its kind, or a vector would be taken for a model.
        named = {PAYLOAD: GRADIENT if wants_gradient else MOMENTUM}
        echoed = {QUERY: config[QUERY]} if QUERY in config else {}
        reply[configrecord_key] = ConfigRecord({**named, **echoed})
        return Message(reply, reply_to=message)

    return app


@dataclass
class _Asked:
    """One query at a node: the gradient function at its batch, and what it has returned."""

    gradient: GradientFn
    config: ConfigRecord
    context: Context
    layout: Layout
    device: torch.device
    buffers: Mapping[str, Tensor]
    answers: list[Gradient] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The replies that the server has accepted from this node."""
        return non_negative(self.config.get(COUNT))

    def at(self, point: Tensor) -> Tensor:
        """Return the (d,) gradient of this query's batch at a point."""
        buffers = {name: x.to(self.device, copy=True) for name, x in self.buffers.items()}
        query = Query(
            parameters=self.layout.unflatten(point),
            buffers=buffers,
            generator=_generator(self.context, self.count),
            context=self.context,
            config=self.config,
        )
        answer = self.gradient(query)
        self.answers.append(answer)
        return self.layout.flatten(answer.gradients, self.device)


def _buffers(content: RecordDict) -> dict[str, Tensor]:
    return tensors_of(content.array_records.get(BUFFERS) or ArrayRecord())


def _known(answer: Gradient, buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in answer.buffers.items() if name in buffers}


def _chosen(setting: T | Callable[[Context], T], context: Context) -> T:
    # An Estimator is a tuple of functions and not itself callable.
    return setting(context) if callable(setting) else setting


def _generator(context: Context, count: int) -> torch.Generator:
    """Return a fresh generator for this node's reply number `count`."""
    mixed = np.random.SeedSequence([*seed_and_partition(context), count])
    state = mixed.generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def _recalled(context: Context, device: torch.device, size: int) -> Memory:
    kept = tensors_of(recall(context, MEMORY))
    memory = tuple(tensor.to(device) for tensor in kept.values())
    # Vectors of the model, and numbers about them.
    return memory if all(tensor.shape in ((size,), ()) for tensor in memory) else ()


def _remember_finite(context: Context, memory: Memory) -> None:
    finite = all(bool(tensor.isfinite().all()) for tensor in memory)
    kept = {str(k): tensor for k, tensor in enumerate(memory)} if finite else {}
    remember(context, MEMORY, record_of(kept))
