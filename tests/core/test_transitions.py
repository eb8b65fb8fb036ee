"""The protocol of one node: the transition table, and each of its rows applied to a state."""

from typing import Any

import pytest
import torch

from flwr_byzasync import Reason
from flwr_byzasync.aggregators import CoordinateWiseMedian
from flwr_byzasync.core.events import due_nodes, on_clock, on_reply, on_sent, on_unsent
from flwr_byzasync.core.membership import on_connected
from flwr_byzasync.core.state import Rejected, ServerState, Update, initial_state
from flwr_byzasync.core.transitions import TRANSITIONS, Effect, Event, Status, move
from flwr_byzasync.errors import INFRASTRUCTURE_FAULTS
from flwr_byzasync.optimizers import SGD
from tests.settings import policy_of

NODE, OTHER = 1, 2
FAULT = Rejected(Reason.NON_FINITE)


def update(value: float = 1.0) -> Update:
    return Update(torch.tensor([value]), torch.empty(0), torch.empty(0, dtype=torch.int64))


def fresh(max_consecutive_faults: int = 3, **settings: Any) -> ServerState:
    policy = policy_of(
        **{
            "nodes": 1,
            "max_consecutive_faults": max_consecutive_faults,
            "reply_timeout": 10.0,
            **settings,
        }
    )
    start = {"w": torch.tensor([0.0])}
    state = initial_state(start, (), CoordinateWiseMedian(), SGD(1.0), policy, torch.device("cpu"))
    return on_connected(state, [NODE, OTHER])


def queried(state: ServerState, message: str = "m", now: float = 0.0) -> ServerState:
    return on_sent(state, NODE, message, state.next_query_id, now)


def state_in(
    status: Status, max_consecutive_faults: int = 3, replied: bool = False, **settings: Any
) -> ServerState:
    """Return a state in which the node has the status; if it owes a reply, to the message m."""
    state = fresh(1 if status is Status.QUARANTINED else max_consecutive_faults, **settings)
    if replied:
        state = on_reply(queried(state), "m", update(), now=0.0)
    match status:
        case Status.IDLE:
            return state
        case Status.QUERIED:
            return queried(state)
        case Status.LOST:
            return on_connected(queried(state), [OTHER])
        case Status.QUARANTINED:
            return on_reply(queried(state), "m", FAULT, now=1.0)


def apply(state: ServerState, event: Event) -> ServerState:
    match event:
        case Event.READY:
            return queried(state, "next")
        case Event.UNSENT:
            return on_unsent(state, NODE, now=max(1.0, state.nodes[NODE].due))
        case Event.UPDATE:
            return on_reply(state, "m", update(), now=1.0)
        case Event.FAULT | Event.LAST_FAULT:
            return on_reply(state, "m", FAULT, now=1.0)
        case Event.SILENT:
            return on_clock(state, now=20.0)
        case Event.GONE:
            return on_connected(state, [OTHER])


@pytest.mark.parametrize(("status", "event"), TRANSITIONS)
def test_every_row_of_the_table_is_applied(status: Status, event: Event) -> None:
    before = state_in(status, max_consecutive_faults=1 if event is Event.LAST_FAULT else 3)
    assert before.nodes[NODE].status is status
    after = apply(before, event)
    becomes, effects = TRANSITIONS[status, event]
    assert after.nodes[NODE].status is becomes
    assert after.accepted - before.accepted == (Effect.ACCEPT in effects)
    assert sum(after.reasons.values()) - sum(before.reasons.values()) == (Effect.COUNT in effects)
    assert (after.nodes[NODE].due > before.nodes[NODE].due + 0.5) == (
        Effect.BACK_OFF in effects or Effect.ACCEPT in effects
    )
    if Effect.ACCEPT not in effects:
        assert after.iterates is before.iterates and after.accepted == before.accepted


@pytest.mark.parametrize("event", [Event.UPDATE, Event.FAULT, Event.LAST_FAULT, Event.SILENT])
def test_no_arrival_releases_a_quarantined_node(event: Event) -> None:
    assert move(Status.QUARANTINED, event) == (Status.QUARANTINED, ())


def test_every_status_and_event_has_a_row() -> None:
    assert {status for status, _ in TRANSITIONS} == set(Status)
    assert {event for _, event in TRANSITIONS} == set(Event)
    assert {e for _, effects in TRANSITIONS.values() for e in effects} == set(Effect)


@pytest.mark.parametrize(("status", "event"), TRANSITIONS)
def test_a_row_is_dropped_exactly_where_the_table_says_so(status: Status, event: Event) -> None:
    max_consecutive_faults = 1 if event is Event.LAST_FAULT else 3
    before = state_in(status, max_consecutive_faults, departed="drop", replied=True)
    if status is Status.LOST:
        assert before.nodes[NODE].row is None and len(before.tables.parameters) == 0
        return
    assert before.nodes[NODE].row == 0
    after = apply(before, event)
    kept = Effect.RETIRE not in TRANSITIONS[status, event][1]
    assert (after.nodes[NODE].row == 0) == kept
    assert len(after.tables.parameters) == len(after.tables.buffers) == kept
    assert after.nodes[NODE].accepted >= before.nodes[NODE].accepted == 1


@pytest.mark.parametrize("status", list(Status))
def test_a_reply_to_no_query_in_flight_is_counted_and_ignored(status: Status) -> None:
    before = state_in(status)
    after = on_reply(before, "invented", update(9.0), now=1.0)
    assert after.reasons[Reason.UNSOLICITED] == 1
    assert (after.nodes, after.in_flight, after.accepted) == (
        before.nodes,
        before.in_flight,
        before.accepted,
    )
    assert after.iterates is before.iterates


def test_a_replay_gains_no_weight() -> None:
    once = on_reply(queried(fresh()), "m", update(), now=1.0)
    again = on_reply(once, "m", update(), now=1.1)
    assert again.nodes[NODE].accepted == 1 == again.accepted
    assert again.tables.parameters.view().weights.tolist() == [1]
    assert again.iterates is once.iterates
    assert again.reasons == {Reason.UNSOLICITED: 1}


def test_a_late_reply_counts_with_its_staleness() -> None:
    state = queried(fresh())
    state = on_sent(state, OTHER, "o", state.next_query_id, 0.0)
    for k in range(3):
        state = on_reply(state, "o" if k == 0 else f"o{k}", update(), now=float(k))
        state = on_sent(state, OTHER, f"o{k + 1}", state.next_query_id, float(k))
    state = on_clock(state, now=11.0)
    assert state.nodes[NODE].status is Status.LOST
    late = on_reply(state, "m", update(), now=12.0)
    assert late.nodes[NODE].accepted == 1
    assert late.staleness - state.staleness == 3


def test_querying_a_lost_node_again_replaces_its_old_query() -> None:
    state = queried(on_clock(queried(fresh()), now=20.0), "second", now=40.0)
    assert [query.node_id for query in state.in_flight.values()] == [NODE]
    assert on_reply(state, "m", update(), now=41.0).reasons[Reason.UNSOLICITED] == 1


def test_a_silent_node_waits_twice_as_long_after_each_silence() -> None:
    state, now, waits = fresh(), 0.0, []
    for k in range(3):
        state = on_clock(queried(state, f"m{k}", now), now + 11.0)
        waits.append(state.nodes[NODE].due - (now + 11.0))
        now = state.nodes[NODE].due
    assert waits == [10.0, 20.0, 40.0]
    assert state.nodes[NODE].silences == 3 and state.reasons == {Reason.EXPIRED: 3}


@pytest.mark.parametrize(
    ("took", "limit"), [(0.1, 60.0), (6.0, 60.0), (7.0, 70.0), (50.0, 500.0), (1000.0, 600.0)]
)
def test_a_query_times_out_after_ten_reply_times_but_within_the_two_limits(
    took: float, limit: float
) -> None:
    state = queried(fresh(reply_timeout=600.0))
    assert state.in_flight["m"].limit == 600.0
    state = queried(on_reply(state, "m", update(), now=took), now=took)
    assert on_clock(state, took + limit).nodes[NODE].status is Status.QUERIED
    assert on_clock(state, took + limit + 0.1).nodes[NODE].status is Status.LOST


def test_the_reply_times_of_others_do_not_shorten_a_node_s_timeout() -> None:
    state = fresh(reply_timeout=600.0)
    for k in range(20):
        state = on_sent(state, OTHER, "o", state.next_query_id, float(k))
        state = on_reply(state, "o", update(), float(k) + 0.1)
    assert queried(state).in_flight["m"].limit == 600.0


def test_one_slow_reply_among_fast_ones_does_not_change_a_node_s_timeout() -> None:
    state = fresh(reply_timeout=600.0)
    for took in (1.0, 1.0, 500.0, 1.0, 1.0):
        state = on_reply(queried(state), "m", update(), now=took)
    assert queried(state).in_flight["m"].limit == 60.0


def test_waits_after_silences_reach_64_time_limits_and_no_more() -> None:
    """A node that has become a thousand times slower still has a reply accepted."""
    state = on_reply(queried(fresh(reply_timeout=600.0)), "m", update(), now=1.0)
    now, waits = 1.0, []
    for _ in range(12):
        state = on_clock(queried(state, "m", now), now + 61.0)
        waits.append(state.nodes[NODE].due - (now + 61.0))
        now = state.nodes[NODE].due
    assert waits[:4] == [60.0, 120.0, 240.0, 480.0]
    assert waits[-2:] == [64 * 600.0, 64 * 600.0]


def test_a_silence_is_counted_once_and_never_for_a_node_that_is_already_lost() -> None:
    gone = on_connected(queried(fresh()), [OTHER])
    later = on_clock(gone, now=1e6)
    assert later.nodes == gone.nodes and later.reasons == {Reason.NODE_GONE: 1}
    silent = on_clock(queried(fresh()), now=20.0)
    assert on_clock(silent, now=1e6) == silent
    failed = on_reply(silent, "m", Rejected(Reason.LOST), now=1e6)
    assert failed.nodes == silent.nodes and failed.reasons == {Reason.EXPIRED: 1}


def test_a_quarantined_node_is_queried_again_after_a_wait_that_doubles_each_time() -> None:
    state, now, waits = fresh(), 0.0, []
    for _ in range(3):
        state = on_reply(queried(state, "m", now), "m", FAULT, now)
    for _ in range(9):
        assert state.nodes[NODE].status is Status.QUARANTINED
        waits.append(state.nodes[NODE].due - now)
        assert due_nodes(state, [NODE], state.nodes[NODE].due - 0.1) == []
        now = state.nodes[NODE].due
        assert due_nodes(state, [NODE], now) == [NODE]
        state = on_reply(queried(state, "m", now), "m", FAULT, now)
    assert waits == [10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 640.0, 640.0]


def test_one_usable_reply_restores_a_quarantined_node_with_its_count() -> None:
    state = on_reply(queried(fresh()), "m", update(), now=0.0)
    for _ in range(4):
        state = on_reply(queried(state), "m", FAULT, now=0.0)
    assert state.nodes[NODE].quarantines == 2
    state = on_reply(queried(state), "m", update(), now=99.0)
    node = state.nodes[NODE]
    assert (node.accepted, node.faults, node.quarantines, node.due) == (2, 0, 0, 99.0)
    for _ in range(2):
        state = on_reply(queried(state), "m", FAULT, now=99.0)
    assert state.nodes[NODE].status is Status.IDLE


@pytest.mark.parametrize("reason", sorted(INFRASTRUCTURE_FAULTS, key=lambda reason: reason.name))
def test_a_network_fault_does_not_quarantine_a_probed_node(reason: Reason) -> None:
    state = on_reply(
        queried(state_in(Status.QUARANTINED), now=50.0), "m", Rejected(reason), now=50.0
    )
    assert state.nodes[NODE].status is Status.IDLE and state.nodes[NODE].quarantines == 1
    again = on_reply(queried(state, now=60.0), "m", FAULT, now=60.0)
    assert again.nodes[NODE].status is Status.QUARANTINED and again.nodes[NODE].due == 60.0 + 20.0


def test_where_rounds_set_the_pace_only_a_quarantined_node_waits() -> None:
    state = on_reply(queried(fresh()), "m", FAULT, now=0.0)
    assert due_nodes(state, [NODE], 0.0) == []
    assert due_nodes(state, [NODE], 0.0, at_once=True) == [NODE]
    quarantined = state_in(Status.QUARANTINED)
    assert due_nodes(quarantined, [NODE], 1.0, at_once=True) == []
    assert due_nodes(quarantined, [NODE], 11.0, at_once=True) == [NODE]


def test_a_dropped_row_leaves_the_others_intact_and_returns_with_its_count() -> None:
    state = fresh(departed="drop")
    for node, value in ((NODE, 1.0), (OTHER, 2.0), (3, 3.0), (OTHER, 5.0)):
        state = on_connected(state, [NODE, OTHER, 3])
        state = on_sent(state, node, "m", state.next_query_id, 0.0)
        state = on_reply(state, "m", update(value), 0.0)
    state = on_connected(state, [NODE, 3])
    assert [state.nodes[n].row for n in (NODE, OTHER, 3)] == [0, None, 1]
    assert state.tables.parameters.view().rows.tolist() == [[1.0], [3.0]]
    assert state.tables.parameters.counts == (1, 1) and state.accepted == 4
    for node, value in ((3, 4.0), (OTHER, 6.0)):
        state = on_sent(state, node, "m", state.next_query_id, 0.0)
        state = on_reply(state, "m", update(value), 0.0)
    assert state.tables.parameters.view().rows.tolist() == [[1.0], [4.0], [6.0]]
    assert state.tables.parameters.counts == (1, 2, 3)


def test_a_faulty_node_waits_its_reply_time_doubled_with_each_consecutive_fault() -> None:
    state = on_reply(queried(fresh(max_consecutive_faults=9)), "m", update(), now=4.0)
    waits = []
    for _ in range(3):
        state = on_reply(queried(state, "m", 10.0), "m", FAULT, now=10.0)
        waits.append(state.nodes[NODE].due - 10.0)
    assert waits == [4.0, 8.0, 16.0]


def test_no_wait_grows_beyond_64_times_its_first_length() -> None:
    state = fresh(max_consecutive_faults=100)
    for _ in range(20):
        state = on_reply(queried(state, "m", 0.0), "m", FAULT, now=0.0)
    assert state.nodes[NODE].due == 64.0


@pytest.mark.parametrize("reason", sorted(INFRASTRUCTURE_FAULTS, key=lambda reason: reason.name))
def test_a_network_fault_delays_a_node_and_never_quarantines_it(reason: Reason) -> None:
    state = fresh(max_consecutive_faults=1)
    for _ in range(3):
        state = on_reply(queried(state), "m", Rejected(reason), now=1.0)
    assert state.nodes[NODE].status is Status.IDLE and state.nodes[NODE].due == 5.0
    assert state.reasons == {reason: 3}


def test_an_accepted_reply_forgives_earlier_faults() -> None:
    state = fresh(max_consecutive_faults=2)
    for reply in (FAULT, update(), FAULT, update()):
        state = on_reply(queried(state), "m", reply, now=1.0)
    assert state.nodes[NODE].faults == 0 and state.nodes[NODE].status is Status.IDLE


def test_only_connected_idle_due_nodes_are_queried_in_the_order_of_joining() -> None:
    state = on_connected(fresh(), [3, NODE, OTHER])
    assert due_nodes(state, [3, OTHER, NODE], now=0.0) == [NODE, OTHER, 3]
    assert due_nodes(queried(state), [NODE, 3], now=0.0) == [3]
    assert due_nodes(on_unsent(state, 3, now=0.0), [NODE, 3], now=0.5) == [NODE]
    assert due_nodes(on_unsent(state, 3, now=0.0), [NODE, 3], now=1.5) == [NODE, 3]
