"""Attacks as Flower client mods: any honest ClientApp becomes Byzantine without being changed."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MessageType
from torch import Tensor

from flwr_byzasync.adversary.reply_vectors import PayloadVector, base_model_of
from flwr_byzasync.attacks import Knowledge, Needs, TimedAttack, VectorAttack, memory_of, needs_of
from flwr_byzasync.client import seed_and_partition
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.wire.arrays import tensors_of
from flwr_byzasync.wire.flower_compat import ClientAppCallable, Mod

STATE = "byz.attack"
"""ArrayRecord in Context.state: ``replies``, and the latest honest vectors, oldest first."""
REPLIES = "replies"


def attack_mod(
    attack: Callable[[Context], VectorAttack | None],
    arrayrecord_key: str = "arrays",
    configrecord_key: str = "config",
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Mod:
    """Return a mod that replaces what the node sends.

    Parameters
    ----------
    attack : callable
        ``Context -> attack``, or None where this node is honest.
    arrayrecord_key, configrecord_key : str
        As given to the strategy.
    sleep, clock : callable
        For attacks with a delay: how to wait, and seconds of real time.

    Returns
    -------
    Mod
        For ``ClientApp(mods=[...])``. Only train replies with content are touched, and of these
        only the floating arrays: integer arrays and buffers in their own record stay honest.

    Raises
    ------
    ConfigError
        From the mod, if the attack needs what no node knows, the query asks for an unknown
        payload, or the reply is no model like the query although it should be one.

    Notes
    -----
    What a reply holds is read from ``byz.payload`` of the query. "momentum" and "gradient": the
    attack acts on the reply. "model", or no such key, as in a deployment of FedAvg: the attack
    acts on the pseudo-gradient query − reply, and query − crafted is sent.

    The node remembers in ``Context.state`` how many replies it has sent, and as many honest
    vectors as the attack wants. An attack of colluders estimates what honest nodes send from
    them and the present one, each with weight 1; how much weight anybody has, it does not know.
    Draws are seeded by the run-config key ``seed`` (0 if absent), the node-config key
    ``partition-id`` (the node id if absent) and the number of the reply.

    An attack on time sleeps for its delay. A negative one cannot be had: the time is spent. With
    the node-config key ``virtual-clock`` nothing sleeps: `VirtualGrid` adds the delay of the
    attack that its `VirtualNode` was given.

    Examples
    --------
    Nodes 0 and 1 are Byzantine::

        from flwr_byzasync.attacks import SignFlip

        def attack(context):
            return SignFlip() if context.node_config["partition-id"] < 2 else None

        app = ClientApp(mods=[attack_mod(attack)])
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        trains = message.metadata.message_type.split(".")[0] == MessageType.TRAIN
        chosen = attack(context) if trains else None
        if chosen is None:
            return call_next(message, context)
        _check_needs(chosen)
        # Read before the client app runs: it may write into the query.
        start = base_model_of(message, arrayrecord_key, configrecord_key)
        began = clock()
        reply = call_next(message, context)
        took = clock() - began
        if not reply.has_content() or arrayrecord_key not in reply.content.array_records:
            return reply
        arrays = tensors_of(reply.content.array_records[arrayrecord_key])
        said = PayloadVector.of(arrays, start)
        if said.vector.numel() == 0:
            return reply
        crafted, number = _craft(chosen, said.vector, context)
        reply.content[arrayrecord_key] = said.with_vector(crafted)
        _wait(chosen, context, number, took, sleep)
        return reply

    return mod


def delay_mod(
    attack: Callable[[Context], TimedAttack | None],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Mod:
    """Return a mod that only waits: where `OmniscientGrid` rewrites what the node sends.

    Parameters
    ----------
    attack : callable
        ``Context -> attack on time``, or None where this node is in no hurry and not late.
    sleep, clock : callable
        How to wait, and seconds of real time.

    Returns
    -------
    Mod
        For ``ClientApp(mods=[...])``; it delays train replies.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        trains = message.metadata.message_type.split(".")[0] == MessageType.TRAIN
        began = clock()
        reply = call_next(message, context)
        chosen = attack(context) if trains else None
        if chosen is not None:
            past = _recall(context)
            _remember(context, past._replace(replies=past.replies + 1))
            _wait(chosen, context, past.replies, clock() - began, sleep)
        return reply

    return mod


class NodeHistory(NamedTuple):
    """What a node remembers of its replies."""

    replies: int
    vectors: tuple[Array, ...]


def _check_needs(attack: VectorAttack) -> None:
    if needs_of(attack) is Needs.EVERYTHING:
        legal = "an attack that a node can mount on its own: this one needs to know everything"
        raise ConfigError("attack", attack, legal, "attack through OmniscientGrid")


def _craft(attack: VectorAttack, honest: Tensor, context: Context) -> tuple[Tensor, int]:
    """Return what is sent and the number of the reply, and remember the honest vector."""
    past, memory = _recall(context), memory_of(attack)
    kept = past.vectors[-memory:] if memory > 0 else ()
    crafted = attack.craft(
        honest, _knowledge(attack, honest, NodeHistory(past.replies, kept), context)
    )
    # A vector that is not finite would spoil every estimate for as long as it is remembered.
    if memory > 0 and bool(honest.isfinite().all()):
        kept = (*kept, Array(honest.numpy()))[-memory:]
    _remember(context, NodeHistory(past.replies + 1, kept))
    return crafted, past.replies


def _knowledge(
    attack: VectorAttack, honest: Tensor, past: NodeHistory, context: Context
) -> Knowledge:
    decoded = (torch.from_numpy(array.numpy().copy()) for array in past.vectors)
    # Vectors of another model are of no use.
    history = tuple(x for x in decoded if (x.shape, x.dtype) == (honest.shape, honest.dtype))
    seed = int(np.random.SeedSequence(seed_and_partition(context)).generate_state(1, np.uint64)[0])
    known = Knowledge(history=history, reply=past.replies, seed=seed)
    if needs_of(attack) is not Needs.COLLUDERS:
        return known
    rows = torch.stack([*history, honest])
    return replace(known, rows=rows, weights=torch.ones(len(rows), dtype=torch.int64))


def _recall(context: Context) -> NodeHistory:
    record = dict(context.state.array_records.get(STATE) or {})
    replies = int(record.pop(REPLIES).numpy()) if REPLIES in record else 0
    return NodeHistory(replies, tuple(record.values()))


def _remember(context: Context, past: NodeHistory) -> None:
    # Arrays go back as they are: only the new one was encoded.
    vectors = {str(k): array for k, array in enumerate(past.vectors)}
    context.state[STATE] = ArrayRecord({REPLIES: Array(np.array(past.replies)), **vectors})


def _wait(
    attack: VectorAttack | TimedAttack,
    context: Context,
    number: int,
    took: float,
    sleep: Callable[[float], None],
) -> None:
    if not isinstance(attack, TimedAttack) or context.node_config.get("virtual-clock"):
        return
    rng = np.random.default_rng((*seed_and_partition(context), number))
    seconds = attack.delay(rng, took)
    if seconds > 0:
        sleep(seconds)
