"""Attacks as Flower client mods: any honest ClientApp becomes Byzantine without being changed."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from flwr.app import Array, Context, Message
from torch import Tensor

from flwr_byzasync.adversary.knowledge import knowledge_of
from flwr_byzasync.adversary.reply_vectors import PayloadVector, base_model_of, is_train_query
from flwr_byzasync.attacks import Knowledge, Needs, TimedAttack, VectorAttack, memory_of, needs_of
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.wire.arrays import tensors_of
from flwr_byzasync.wire.flower_compat import ClientAppCallable, Mod
from flwr_byzasync.wire.node_memory import recall, remember, seed_and_partition

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
    """Return a mod that replaces the node's replies.

    Parameters
    ----------
    attack : callable
        ``Context -> attack``, or None where this node is honest.
    arrayrecord_key, configrecord_key : str
        As passed to the strategy.
    sleep, clock : callable
        For attacks with a delay: how to wait, and seconds of real time.

    Returns
    -------
    Mod
        For ``ClientApp(mods=[...])``. It changes train replies with content only, and of these
        only the floating arrays: integer arrays and buffers in their own record stay honest.

    Raises
    ------
    ConfigError
        From the mod, if the attack needs what no node knows, the query has an unknown payload,
        or the reply should be a model and is not shaped like the query.

    Notes
    -----
    The query's ``byz.payload`` says what a reply is. "momentum" and "gradient": the attack acts
    on the reply. "model", or no such key, as in a deployment of FedAvg: the attack acts on the
    pseudo-gradient query − reply, and query − crafted is sent.

    The node keeps in ``Context.state`` how many replies it has sent, and as many honest vectors
    as the attack needs. Colluders estimate the honest nodes' vectors from these and the present
    one, each with weight 1; they do not know how much weight any node has. Draws are seeded by
    the run-config key ``seed`` (0 if absent), the node-config key ``partition-id`` (the node id
    if absent) and the number of the reply.

    An attack on time sleeps for its delay; a negative delay is impossible here, as the time has
    passed. With the node-config key ``virtual-clock`` nothing sleeps: `VirtualGrid` adds the
    delay of its `VirtualNode`'s attack.

    Examples
    --------
    Nodes 0 and 1 are Byzantine::

        from flwr_byzasync.attacks import SignFlip

        def attack(context):
            return SignFlip() if context.node_config["partition-id"] < 2 else None

        app = ClientApp(mods=[attack_mod(attack)])
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        chosen = attack(context) if is_train_query(message) else None
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
        honest = PayloadVector.of(arrays, start)
        if honest.vector.numel() == 0:
            return reply
        crafted, number = _craft(chosen, honest.vector, context)
        reply.content[arrayrecord_key] = honest.with_vector(crafted)
        _wait(chosen, context, number, took, sleep)
        return reply

    return mod


def delay_mod(
    attack: Callable[[Context], TimedAttack | None],
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Mod:
    """Return a mod that only waits, for where `OmniscientGrid` rewrites the node's replies.

    Parameters
    ----------
    attack : callable
        ``Context -> attack on time``, or None where this node keeps its pace.
    sleep, clock : callable
        How to wait, and seconds of real time.

    Returns
    -------
    Mod
        For ``ClientApp(mods=[...])``; it delays train replies.
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        trains = is_train_query(message)
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
    """What a node keeps of its replies."""

    replies: int
    vectors: tuple[Array, ...]


def _check_needs(attack: VectorAttack) -> None:
    if needs_of(attack) is Needs.EVERYTHING:
        legal = "an attack that a node can mount on its own: this one needs to know everything"
        raise ConfigError("attack", attack, legal, "attack through OmniscientGrid")


def _craft(attack: VectorAttack, honest: Tensor, context: Context) -> tuple[Tensor, int]:
    """Return what is sent and the number of the reply, and keep the honest vector."""
    past, memory = _recall(context), memory_of(attack)
    kept = past.vectors[-memory:] if memory > 0 else ()
    history = NodeHistory(past.replies, kept)
    crafted = attack.craft(honest, _knowledge(attack, honest, history, context))
    # A vector that is not finite would spoil every estimate for as long as it is kept.
    if memory > 0 and bool(honest.isfinite().all()):
        kept = (*kept, Array(honest.numpy()))[-memory:]
    _remember(context, NodeHistory(past.replies + 1, kept))
    return crafted, past.replies


def _knowledge(
    attack: VectorAttack, honest: Tensor, past: NodeHistory, context: Context
) -> Knowledge:
    decoded = (torch.from_numpy(array.numpy().copy()) for array in past.vectors)
    # Vectors of another model are useless.
    history = tuple(x for x in decoded if (x.shape, x.dtype) == (honest.shape, honest.dtype))
    entropy = np.random.SeedSequence(seed_and_partition(context))
    vectors = [*history, honest] if needs_of(attack) is Needs.COLLUDERS else []
    return knowledge_of(
        vectors,
        [1] * len(vectors),
        history=history,
        reply=past.replies,
        seed=int(entropy.generate_state(1, np.uint64)[0]),
    )


def _recall(context: Context) -> NodeHistory:
    record = dict(recall(context, STATE))
    replies = int(record.pop(REPLIES).numpy()) if REPLIES in record else 0
    return NodeHistory(replies, tuple(record.values()))


def _remember(context: Context, past: NodeHistory) -> None:
    # Arrays are stored as they are: only the new one was encoded.
    vectors = {str(k): array for k, array in enumerate(past.vectors)}
    remember(context, STATE, {REPLIES: Array(np.array(past.replies)), **vectors})


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
