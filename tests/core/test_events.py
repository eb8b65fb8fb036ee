"""Invariants of the state under any order of events."""

from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_byzasync import Reason
from flwr_byzasync.aggregators import CTMA, CoordinateWiseMedian, GeometricMedian
from flwr_byzasync.core.events import (
    due_nodes,
    on_all_quarantined,
    on_clock,
    on_clock_paused,
    on_end,
    on_reply,
    on_sent,
    on_unsent,
)
from flwr_byzasync.core.membership import MAX_ABSENT, on_connected
from flwr_byzasync.core.quorum import attainable_nodes, is_responsive, quorum_size, waits_for_nodes
from flwr_byzasync.core.state import Rejected, ServerState, Update, initial_state
from flwr_byzasync.core.transitions import Status
from flwr_byzasync.optimizers import AnyTimeSGD
from flwr_byzasync.weights import Capped, Counts, StalenessDiscount, WeightPolicy
from tests.settings import policy_of

CPU = torch.device("cpu")
RULE = CTMA(GeometricMedian(), byz_fraction=0.25)

events = st.lists(
    st.one_of(
        st.tuples(st.just("connect"), st.sets(st.integers(0, 3), min_size=1)),
        st.tuples(st.just("ask"), st.just(None)),
        st.tuples(st.just("update"), st.integers(0, 3)),
        st.tuples(st.just("fault"), st.integers(0, 3)),
        st.tuples(st.just("stray"), st.just(None)),
        st.tuples(st.just("unsent"), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 3.0, 30.0])),
    ),
    max_size=40,
)

ALL_REPLIED: list[tuple[str, object]] = [
    ("ask", None), *(("update", node) for node in range(3)), ("ask", None)
]  # fmt: skip
"""All initial nodes have replied, and are queried again."""


def fresh(
    nodes: int | None = None, weigh: WeightPolicy | None = None, **settings: Any
) -> ServerState:
    policy = policy_of(nodes=nodes, max_consecutive_faults=3, reply_timeout=10.0, **settings)
    start = {"w": torch.tensor([1.0, -1.0]), "mean": torch.zeros(1), "n": torch.tensor(0)}
    state = initial_state(start, ["mean"], RULE, AnyTimeSGD(0.1), policy, CPU, weigh)
    return on_connected(state, [0, 1, 2])


def update(value: float) -> Update:
    return Update(torch.tensor([value, 1.0]), torch.tensor([value]), torch.tensor([int(value)]))


def contents(state: ServerState) -> tuple[object, ...]:
    """Everything that a rejected reply must leave bit-identical, copied."""
    view = state.tables.parameters.view()
    iterates = state.iterates
    tensors = (view.rows, view.weights, iterates.w, iterates.x, state.buffers, state.counters)
    return (*(tensor.tolist() for tensor in tensors), iterates.step, state.accepted)


def play(state: ServerState, script: list[tuple[str, object]]) -> list[ServerState]:
    """Run a script; events that cannot happen in a state are skipped."""
    now, connected, states = 0.0, {0, 1, 2}, [state]
    for k, (kind, what) in enumerate(script):
        open_messages = {query.node_id: key for key, query in state.in_flight.items()}
        before = contents(state)
        match kind:
            case "connect":
                connected = set(what)  # type: ignore[call-overload]
                state = on_connected(state, connected)
            case "ask":
                for node in due_nodes(state, connected, now):
                    state = on_sent(state, node, f"{k}.{node}", state.next_query_id, now)
            case "update" if what in open_messages:
                state = on_reply(state, open_messages[what], update(float(k)), now)
            case "fault" if what in open_messages:
                state = on_reply(state, open_messages[what], Rejected(Reason.NON_FINITE), now)
            case "stray":
                state = on_reply(state, "nobody's", update(99.0), now)
            case "unsent" if what in due_nodes(state, connected, now):
                state = on_unsent(state, what, now)  # type: ignore[arg-type]
            case "wait":
                now += what  # type: ignore[operator]
                state = on_clock(state, now)
        if kind != "update" and state.policy.liveness.departed == "keep":
            assert contents(state) == before
        states.append(state)
    return states


@given(events)
def test_counts_never_fall_and_sum_to_the_accepted_replies(
    script: list[tuple[str, object]],
) -> None:
    states = play(fresh(), script)
    for before, after in pairwise(states):
        assert after.accepted >= before.accepted
        assert sum(after.reasons.values()) >= sum(before.reasons.values())
    last = states[-1]
    assert sum(node.accepted for node in last.nodes.values()) == last.accepted
    assert int(last.tables.parameters.view().weights.sum()) == last.accepted


@given(events)
def test_no_node_ever_has_two_queries_in_flight(script: list[tuple[str, object]]) -> None:
    for state in play(fresh(), script):
        owners = [query.node_id for query in state.in_flight.values()]
        assert len(owners) == len(set(owners))


@given(events)
def test_a_step_is_made_with_each_accepted_reply_once_the_quorum_has_replied(
    script: list[tuple[str, object]],
) -> None:
    states = play(fresh(nodes=2), script)
    for before, after in pairwise(states):
        replied = sum(node.accepted > 0 for node in after.nodes.values())
        stepped = after.accepted > before.accepted and replied >= 2
        assert after.iterates.step - before.iterates.step == stepped


def test_one_early_liar_does_not_move_the_model_alone() -> None:
    state = fresh()
    assert quorum_size(state) == 3
    for k in range(5):
        state = on_sent(state, 0, f"m{k}", k, 0.0)
        state = on_reply(state, f"m{k}", update(1e6), 0.0)
    assert state.accepted == 5 and state.iterates.step == 0
    assert state.iterates.x.tolist() == [1.0, -1.0]


def test_an_initial_node_that_leaves_is_not_waited_for() -> None:
    state = on_connected(fresh(), [0, 1])
    assert quorum_size(state) == 2
    for node in (0, 1):
        state = on_sent(state, node, f"m{node}", node, 0.0)
        state = on_reply(state, f"m{node}", update(1.0), 0.0)
    assert state.iterates.step == 1


def test_the_quorum_is_never_less_than_a_majority_of_the_initial_nodes() -> None:
    assert quorum_size(on_connected(fresh(), [0])) == 2


def test_an_initial_node_whose_reply_is_unusable_is_not_waited_for() -> None:
    state = on_sent(fresh(), 0, "m", 0, 0.0)
    assert quorum_size(on_reply(state, "m", Rejected(Reason.NON_FINITE), 0.0)) == 2


def test_an_initial_node_that_replied_and_left_still_counts_for_the_quorum() -> None:
    state = on_sent(fresh(), 0, "m", 0, 0.0)
    state = on_connected(on_reply(state, "m", update(1.0), 0.0), [1, 2])
    assert quorum_size(state) == 3


def test_buffers_follow_the_median_and_counters_keep_a_value_that_was_sent() -> None:
    state = fresh(nodes=1)
    for node, value in ((0, 10.0), (1, 20.0), (2, 1e6)):
        state = on_sent(state, node, f"m{node}", node, 0.0)
        state = on_reply(state, f"m{node}", update(value), 0.0)
    assert state.buffers.tolist() == [20.0]
    assert state.counters.tolist() == [20]
    state = on_sent(state, 0, "again", 9, 0.0)
    state = on_reply(state, "again", update(10.0), 0.0)
    assert state.buffers.tolist() == [15.0]
    assert state.counters.tolist() == [10]


def test_one_node_without_attack_is_plain_mu2_sgd() -> None:
    """The server adds nothing of its own: its iterates are those of the recursion by hand."""
    policy, optimizer = policy_of(nodes=1), AnyTimeSGD(lr=0.5, gamma=0.1)
    rule = CTMA(CoordinateWiseMedian(), byz_fraction=0.0)
    start = {"w": torch.tensor([2.0])}
    state = on_connected(initial_state(start, (), rule, optimizer, policy, CPU), [7])
    w = x = 2.0
    for k in range(5):
        vector = 3.0 * x - 1.0
        state = on_sent(state, 7, f"m{k}", k, 0.0)
        sent = Update(torch.tensor([3.0]) * state.iterates.x - 1.0, state.buffers, state.counters)
        state = on_reply(state, f"m{k}", sent, 0.0)
        w -= 0.5 * vector
        x = 0.1 * w + 0.9 * x
        torch.testing.assert_close(state.iterates.x, torch.tensor([x]))
        torch.testing.assert_close(state.iterates.w, torch.tensor([w]))


def reply(state: ServerState, node: int, value: float, now: float = 0.0) -> ServerState:
    message = f"{node}.{state.next_query_id}"
    return on_reply(
        on_sent(state, node, message, state.next_query_id, now), message, update(value), now
    )


@given(events, st.sampled_from(["keep", "drop"]))
def test_each_row_is_the_latest_vector_of_one_node_with_its_count(
    script: list[tuple[str, object]], departed: str
) -> None:
    script = [*ALL_REPLIED, *script]
    states = play(fresh(departed=departed), script)
    latest: dict[int, float] = {}
    for before, after, (k, (kind, node)) in zip(
        states, states[1:], enumerate(script), strict=False
    ):
        if kind == "update" and after.accepted > before.accepted:
            latest[node] = float(k)  # type: ignore[index]
    last = states[-1]
    table = last.tables.parameters
    owners = {node.row: n for n, node in last.nodes.items() if node.row is not None}
    assert sorted(owners) == list(range(len(table)))
    for row, owner in owners.items():
        assert table.view().rows[row, 0] == latest[owner]
        assert table.counts[row] == last.nodes[owner].accepted
        assert last.tables.buffers.view().rows[row, 0] == latest[owner]
    if departed == "keep":
        assert set(owners.values()) == {n for n, node in last.nodes.items() if node.accepted}
    else:
        assert all(last.nodes[owner].status is not Status.LOST for owner in owners.values())


@given(events)
def test_dropping_rows_never_lowers_a_count(script: list[tuple[str, object]]) -> None:
    states = play(fresh(departed="drop"), script)
    last = states[-1]
    assert sum(node.accepted for node in last.nodes.values()) == last.accepted
    for before, after in pairwise(states):
        for node_id, node in before.nodes.items():
            assert after.nodes[node_id].accepted >= node.accepted


@given(events)
def test_while_too_few_nodes_respond_a_waiting_run_makes_no_step(
    script: list[tuple[str, object]],
) -> None:
    for before, after in pairwise(play(fresh(nodes=2, on_loss="wait"), script)):
        made = after.iterates.step - before.iterates.step
        if after.accepted == before.accepted or before.iterates.step == 0:
            continue
        here = [node for node in after.nodes.values() if is_responsive(node, after.policy)]
        assert made == (len(here) >= 2)


def waiting_with_one_of_two() -> ServerState:
    """Return a waiting run: two nodes made its first step, and one of them left."""
    state = fresh(nodes=2, on_loss="wait")
    for node in (0, 1):
        state = reply(state, node, 1.0)
    state = on_connected(state, [0])
    assert state.iterates.step == 1 and waits_for_nodes(state)
    return state


def test_a_waiting_run_accepts_replies_in_flight_and_queries_only_unresponsive_nodes() -> None:
    state = reply(waiting_with_one_of_two(), 0, 2.0)
    assert state.accepted == 3 and state.iterates.step == 1
    assert state.tables.parameters.view().rows[0].tolist() == [2.0, 1.0]
    assert due_nodes(state, [0], now=1e9) == []
    state = on_connected(state, [0, 1, 9])
    assert due_nodes(state, [0, 1, 9], now=1e9) == [1, 9]


@pytest.mark.parametrize("node", [1, 9])
def test_a_waiting_run_continues_with_the_reply_that_restores_the_quorum(node: int) -> None:
    state = on_connected(waiting_with_one_of_two(), [0, node])
    state = reply(state, node, 2.0)
    assert state.iterates.step == 2 and not waits_for_nodes(state)
    assert due_nodes(state, [0, node], now=1e9) == [0, node]


def test_by_default_steps_continue_with_one_node() -> None:
    state = fresh(nodes=2)
    for node in (0, 1):
        state = reply(state, node, 1.0)
    state = reply(on_connected(state, [0]), 0, 2.0)
    assert state.iterates.step == 2 and not waits_for_nodes(state)


def test_without_a_quorum_size_a_run_waits_unless_most_initial_nodes_respond() -> None:
    state = fresh(on_loss="wait")
    for node in (0, 1, 2):
        state = reply(state, node, 1.0)
    assert not waits_for_nodes(on_connected(state, [0, 1]))
    assert waits_for_nodes(on_connected(state, [0]))


def test_silent_quarantined_and_probed_nodes_are_not_responsive() -> None:
    state = waiting_with_one_of_two()
    state = on_connected(state, [0, 1])
    queried_again = on_sent(state, 1, "back", state.next_query_id, 0.0)
    silent = on_clock(queried_again, 11.0)
    assert waits_for_nodes(silent) and waits_for_nodes(
        on_sent(silent, 1, "again", silent.next_query_id, 99.0)
    )
    quarantined = queried_again
    for k in range(3):
        quarantined = on_reply(quarantined, "back", Rejected(Reason.NON_FINITE), 0.0)
        assert waits_for_nodes(quarantined) == (k == 2)
        quarantined = on_sent(quarantined, 1, "back", quarantined.next_query_id, 0.0)
    assert waits_for_nodes(quarantined)


def test_an_initial_node_that_returns_without_a_row_does_not_stop_the_run() -> None:
    state = fresh()
    state = on_connected(state, [0, 1])
    for node in (0, 1):
        state = reply(state, node, 1.0)
    state = reply(on_connected(state, [0, 1, 2]), 0, 2.0)
    assert state.iterates.step == 2


def test_a_cap_bounds_the_share_in_every_table_and_beta_follows_the_counts() -> None:
    state = fresh(nodes=3, weigh=Capped(Counts(), 0.4))
    for node in (0, 1, 2):
        state = reply(state, node, 1.0)
    for _ in range(50):
        state = reply(state, 0, 1e6)
    for table in (state.tables.parameters, state.tables.buffers, state.tables.counters):
        weights = table.view().weights
        assert float(weights[0]) <= 0.4 * float(weights.sum()) * (1 + 1e-12)
    assert state.nodes[0].accepted == 51 and state.tables.parameters.counts == (51, 1, 1)
    assert state.buffers.tolist() == [1.0] and state.counters.tolist() == [1]


def test_a_row_ages_with_every_server_step_since_its_query_was_sent() -> None:
    state = fresh(nodes=1, weigh=StalenessDiscount(1.0))
    state = on_sent(state, 1, "late", state.next_query_id, 0.0)
    for _ in range(3):
        state = reply(state, 0, 1.0)
    state = on_reply(state, "late", update(1.0), 0.0)
    # Node 0 was last queried before step 3, node 1 before step 1; three steps are made.
    assert state.tables.parameters.view().weights.tolist() == [3 / 2, 1 / 4]


# --- rate limit ---------------------------------------------------------------------------------


def answered(state: ServerState, node: int, sent_at: float, seconds: float) -> ServerState:
    state = on_sent(state, node, f"q{state.next_query_id}", state.next_query_id, sent_at)
    return on_reply(state, next(reversed(state.in_flight)), update(1.0), sent_at + seconds)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0.01, 50.0)), min_size=1, max_size=30),
    st.floats(1.0, 20.0),
)
def test_a_node_is_queried_no_more_often_than_max_rate_allows(
    replies: list[tuple[int, float]], max_rate: float
) -> None:
    state, unlimited = fresh(max_rate=max_rate), fresh()
    now = 0.0
    for node, seconds in replies:
        state, unlimited = (answered(each, node, now, seconds) for each in (state, unlimited))
        typical = median(median(n.reply_times) for n in state.nodes.values() if n.reply_times)
        assert state.nodes[node].due == max(now + seconds, now + typical / max_rate)
        assert unlimited.nodes[node].due == now + seconds
        now += seconds
    assert contents(state) == contents(unlimited)


def test_a_minority_of_the_nodes_does_not_set_the_rate() -> None:
    state = fresh(max_rate=10.0)
    for node in (1, 2):
        state = answered(state, node, 0.0, 20.0)
    for k in range(15):
        state = answered(state, 0, 20.0 + k, 1e-3)
    assert state.nodes[0].due == 34.0 + 20.0 / 10.0
    # An honest node that is slow is queried at once.
    assert answered(state, 2, 0.0, 50.0).nodes[2].due == 50.0


def test_before_others_reply_their_elapsed_time_counts_as_their_reply_time() -> None:
    state = fresh(max_rate=2.0)
    for node in (1, 2):
        state = on_sent(state, node, f"slow{node}", state.next_query_id, 0.0)
    assert answered(state, 0, 9.0, 1.0).nodes[0].due == 9.0 + 10.0 / 2.0


def test_where_no_reply_time_is_known_a_node_is_queried_at_once() -> None:
    """Every reply had waited while the server was not polling. Found by the fuzz test."""
    state = on_sent(fresh(max_rate=2.0), 0, "q", 0, 0.0)
    state = on_reply(on_clock_paused(state, 30.0), "q", update(1.0), 31.0)
    assert state.nodes[0].reply_times == () and state.nodes[0].due == 31.0
    state = on_sent(state, 0, "r", 1, 40.0)
    state = on_reply(on_clock_paused(state, 5.0), "r", update(1.0), 50.0)
    assert state.nodes[0].reply_times == (5.0,)


# --- all nodes quarantined -----------------------------------------------------------------------


def test_nodes_that_are_all_quarantined_are_queried_in_time_and_at_once_on_resume() -> None:
    state = fresh()
    for fault in range(6):
        for node in range(3):
            if fault == 5 and node == 2:
                assert on_all_quarantined(state, 5.0) is not state  # quarantined like the others
            state = on_sent(state, node, f"q{node}", state.next_query_id, 0.0)
            state = on_reply(state, f"q{node}", Rejected(Reason.NON_FINITE), 0.0)
            if fault < 2 or (fault == 2 and node < 2):
                assert on_all_quarantined(state, 5.0) is state
    assert {node.due for node in state.nodes.values()} == {80.0}
    waiting = on_all_quarantined(state, 5.0)
    assert {node.due for node in waiting.nodes.values()} == {15.0}
    assert on_all_quarantined(waiting, 14.0) is waiting
    assert {node.due for node in on_end(state, 5.0).nodes.values()} == {5.0}
    restored = replace(state, nodes={**state.nodes, 1: replace(state.nodes[1], status=Status.IDLE)})
    assert on_all_quarantined(restored, 5.0) is restored


# --- nodes that reconnect under ever new ids ----------------------------------------------------


def test_nodes_that_come_under_ever_new_ids_fill_no_memory() -> None:
    state, first = fresh(), 10
    for node in range(3):
        state = answered(state, node, 0.0, 1.0)
    before = contents(state)
    for k in range(MAX_ABSENT + 500):
        stranger = 1000 + k
        state = on_connected(state, [0, 1, 2, stranger])
        state = on_sent(state, stranger, f"s{k}", first + k, 2.0)
        if k % 2:
            state = on_reply(state, f"s{k}", Rejected(Reason.NON_FINITE), 2.0)
    state = on_connected(state, [0, 1, 2])
    assert len(state.nodes) == 3 + MAX_ABSENT
    assert set(state.nodes) >= {0, 1, 2, 1000 + MAX_ABSENT + 499}
    assert {query.node_id for query in state.in_flight.values()} <= set(state.nodes)
    assert contents(state) == before


def test_an_initial_node_that_is_waited_for_is_not_forgotten() -> None:
    state = on_connected(fresh(), [1, 2])
    for k in range(MAX_ABSENT + 10):
        state = on_connected(state, [1, 2, 1000 + k])
    assert 0 in state.nodes and state.quorum_pending == {0, 1, 2}
    assert quorum_size(state) == 2


def test_a_node_with_weight_is_not_forgotten() -> None:
    state = answered(fresh(), 0, 0.0, 1.0)
    for k in range(MAX_ABSENT + 10):
        state = on_connected(state, [1, 2, 1000 + k])
    assert state.nodes[0].row == 0 and len(state.tables.parameters) == 1


@pytest.mark.parametrize(("second", "count"), [(149.0, 3), (151.0, 2)])
def test_a_reply_that_is_waited_for_puts_off_the_deadline_of_the_next(
    second: float, count: int
) -> None:
    """One node is due before the deadline, another before that which a reply of it would set."""
    state = play(fresh(nodes=3, on_loss="wait"), ALL_REPLIED[:-1])[-1]
    first, due = state.nodes[0], {1: 90.0, 2: second}
    ill = {node: replace(first, row=node, status=Status.QUARANTINED, due=due[node]) for node in due}
    state = replace(state, nodes={0: first, **ill}, in_flight={})
    assert waits_for_nodes(state) and attainable_nodes(state, 100.0, 50.0) == count
    assert attainable_nodes(state, 80.0, 50.0) == 1
