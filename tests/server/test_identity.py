"""Whose a reply is: in the arrival loop the pulled id decides, in Flower's loop only its client."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import Strategy

from flwr_byzasync import AsyncRobust, Momenta, Reason, VirtualGrid, client_app
from flwr_byzasync.aggregators import Mean
from flwr_byzasync.client import Gradient, Query
from flwr_byzasync.estimators import sgd
from flwr_byzasync.optimizers import SGD
from flwr_byzasync.simulation import VirtualNode
from flwr_byzasync.wire.flower_compat import pretend_task, stamp_message

VICTIM, FORGER, THIRD = 100, 101, 102
START = {"x": torch.zeros(2)}


def gradient(query: Query) -> Gradient:
    """Return the node's own id, so that a row shows whose it is."""
    return Gradient({"x": torch.full((2,), float(query.context.node_id))})


HONEST = client_app(gradient, estimator=sgd())


def forging(message: Message, context: Context) -> Message:
    """Have the second node claim to answer the query before its own, which is the first node's.

    On VirtualGrid, as over HTTP, a reply carries the metadata that its client wrote; its message
    ids are numbers, so the forger need not even guess.
    """
    reply = HONEST(message, context)
    if context.node_id == FORGER:
        number = int(message.metadata.message_id.removeprefix("m"))
        reply.metadata.__dict__["_reply_to_message_id"] = f"m{number - 1}"
        config = reply.content.config_records["config"]
        config["byz.query"] = int(config["byz.query"]) - 1  # type: ignore[call-overload]
    return reply


def rows_of(strategy: AsyncRobust) -> dict[int, float]:
    """Return the first number of each node's row, which is the id of the node that sent it."""
    assert strategy._hooks.endpoint is not None
    state = strategy._hooks.endpoint.state
    rows = state.tables.parameters.view().rows
    return {key: float(rows[n.row][0]) for key, n in state.nodes.items() if n.row is not None}


def run(start: Any, nodes: Any = 3) -> AsyncRobust:
    strategy = AsyncRobust(
        Mean(), SGD(1e-3), payload=Momenta(), min_available_nodes=3, updates_per_round=3
    )
    with VirtualGrid(forging, nodes) as grid:
        start(strategy, grid, ArrayRecord(START), 3)  # type: ignore[arg-type]
    return strategy


def test_in_the_arrival_loop_a_forged_id_changes_nothing() -> None:
    strategy = run(AsyncRobust.start)
    rows = rows_of(strategy)
    # A reply counts for the node whose message was pulled; the forger's echoes another query.
    assert rows == {VICTIM: VICTIM, THIRD: THIRD}
    assert strategy.statistics().reasons.keys() == {Reason.WRONG_QUERY}


def test_in_flower_s_loop_a_message_that_two_replies_claim_is_nobody_s() -> None:
    strategy = run(Strategy.start)
    assert rows_of(strategy) == {THIRD: THIRD}
    # Two claims and two queries without a reply in each of three rounds.
    assert strategy.statistics().reasons == {Reason.UNSOLICITED: 6, Reason.EXPIRED: 6}


def test_in_flower_s_loop_a_forger_can_take_the_place_of_a_silent_node() -> None:
    """The limit that docs/faults.md states; `AsyncRobust.start` does not have it."""
    silent = [VirtualNode(compute=1e6), VirtualNode(), VirtualNode()]
    assert rows_of(run(Strategy.start, silent)) == {VICTIM: FORGER, THIRD: THIRD}
    assert VICTIM not in rows_of(run(AsyncRobust.start, silent))


def test_a_superlink_accepts_a_reply_only_from_the_node_that_was_queried() -> None:
    """What Flower itself guarantees, on the metadata that it keeps."""
    name = "flwr.server.superlink.linkstate.in_memory_linkstate"
    module = pytest.importorskip(name, reason="another release keeps its link state elsewhere")
    try:
        state = module.InMemoryLinkState(SimpleNamespace(), SimpleNamespace())
    except TypeError:
        pytest.skip("another release makes its link state differently")
    with pretend_task(run_id=1, node_id=1):
        query = Message(RecordDict({"arrays": ArrayRecord()}), VICTIM, "train")
        stamp_message(query, "query", run_id=1, src_node_id=1)
    state.message_ins_store["query"] = query
    state._check_stored_messages = lambda *_: None
    state._is_finished_run = lambda *_: False

    def stored(node_id: int) -> str | None:
        with pretend_task(run_id=1, node_id=node_id):
            reply = Message(RecordDict({"arrays": ArrayRecord()}), reply_to=query)
        stamp_message(reply, f"reply of {node_id}", run_id=1, src_node_id=node_id)
        kept: str | None = state.store_message_res(reply)
        return kept

    assert stored(FORGER) is None
    assert stored(VICTIM) == f"reply of {VICTIM}"
