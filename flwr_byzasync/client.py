"""A gradient function becomes a Flower ClientApp; the node half of μ² lives in Context.state."""

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

MEMORY = "byz.memory"
T = TypeVar("T")


@dataclass(frozen=True)
class Query:
    """What a gradient function is asked.

    Parameters
    ----------
    parameters : mapping of str to Tensor
        The point at which to differentiate, on the node's device. Not to be written.
    buffers : mapping of str to Tensor
        The model's other arrays; copies that may be written.
    generator : torch.Generator
        On the CPU, seeded by (seed, partition-id, replies accepted so far). μ² asks twice with
        generators in the same state: drawing the batch from it gives the same batch both times.
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
    """What a gradient function answers.

    Parameters
    ----------
    gradients : mapping of str to Tensor
        One for each parameter.
    buffers : mapping of str to Tensor
        The model's other arrays after the batch; those left out are sent back as they came.
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
        used by a strategy with ``payload="gradient"``, which is sent gradients.
    device : str or callable, default "cpu"
        Where tensors go; or how to choose it from the Context.
    mods : list of Mod, optional
        Flower client mods, for example an attack.
    arrayrecord_key, configrecord_key : str
        As given to the strategy.

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
        layout = Layout.of(arrays)
        others = tensors_of(content.array_records.get(BUFFERS) or ArrayRecord())
        count = _integer(config.get(COUNT))
        first: list[Gradient] = []

        def at(point: Tensor) -> Tensor:
            query = Query(
                parameters=layout.unflatten(point),
                buffers={name: tensor.to(where, copy=True) for name, tensor in others.items()},
                generator=_generator(context, count),
                context=context,
                config=config,
            )
            answer = gradient(query)
            first.append(answer)
            return layout.flatten(answer.gradients, where)

        point, before = layout.flatten(arrays, where), content.array_records.get(PREVIOUS)
        wants_gradient = config.get(PAYLOAD) == GRADIENT
        if wants_gradient:
            vector = at(point)
        else:
            rule = _chosen(estimator, context)
            vector, memory = rule.update(_recall(context, where, layout.size), point, at, count)
            _remember(context, memory)
        # Buffers and metrics of the query's own point; the one before it was only corrected for.
        answer = first[0]
        reply = RecordDict({arrayrecord_key: record_of(layout.unflatten(vector))})
        if others:
            reply[BUFFERS] = record_of(
                {name: answer.buffers.get(name, tensor) for name, tensor in others.items()}
            )
        if before is not None:
            # The server corrects: the same batch once more, at the point of the last query.
            there = at(layout.flatten(tensors_of(before), where))
            reply[PREVIOUS] = record_of(layout.unflatten(there))
        reply[METRICS] = MetricRecord(dict(answer.metrics))
        # A reply says what it is, or a vector would be taken for a model.
        told = {PAYLOAD: GRADIENT if wants_gradient else MOMENTUM}
        echoed = {QUERY: config[QUERY]} if QUERY in config else {}
        reply[configrecord_key] = ConfigRecord({**told, **echoed})
        return Message(reply, reply_to=message)

    return app


def _chosen(setting: T | Callable[[Context], T], context: Context) -> T:
    # An Estimator is a tuple of functions and not itself callable.
    return setting(context) if callable(setting) else setting


def _generator(context: Context, count: int) -> torch.Generator:
    """Return a fresh generator for this node's reply number `count`."""
    mixed = np.random.SeedSequence([*seed_and_partition(context), count]).generate_state(
        1, np.uint64
    )
    return torch.Generator().manual_seed(int(mixed[0] >> np.uint64(1)))


def seed_and_partition(context: Context) -> tuple[int, int]:
    """Return the run's seed and the node's partition-id: node ids change from run to run."""
    partition = context.node_config.get("partition-id", context.node_id)
    return _integer(context.run_config.get("seed")), _integer(partition)


def _integer(value: object) -> int:
    return abs(value) if isinstance(value, int) else 0


def _recall(context: Context, device: torch.device, size: int) -> Memory:
    kept = context.state.array_records.get(MEMORY)
    tensors = tensors_of(kept) if kept is not None else {}
    memory = tuple(tensor.to(device) for tensor in tensors.values())
    # Vectors of the model, and numbers about them.
    return memory if all(tensor.shape in ((size,), ()) for tensor in memory) else ()


def _remember(context: Context, memory: Memory) -> None:
    finite = all(bool(tensor.isfinite().all()) for tensor in memory)
    kept = {str(k): tensor for k, tensor in enumerate(memory)} if finite else {}
    context.state[MEMORY] = record_of(kept)
