"""The protocol of one node: the table itself, and every row of it carried out on a state."""

import pytest
import torch

from flwr_byzasync import Reason
from flwr_byzasync.aggregators import CoordinateWiseMedian
from flwr_byzasync.errors import NOT_ITS_DOING
from flwr_byzasync.events import (
    due_nodes,
    on_clock,
    on_connected,
    on_reply,
    on_sent,
    on_unsent,
)
from flwr_byzasync.optimizers import SGD
from flwr_byzasync.state import Policy, Rejected, ServerState, Update, begin
from flwr_byzasync.transitions import TRANSITIONS, Effect, Event, Status, move

NODE, OTHER = 1, 2
FAULT = Rejected(Reason.NON_FINITE)


def update(value: float = 1.0) -> Update:
    return Update(torch.tensor([value]), torch.empty(0), torch.empty(0, dtype=torch.int64))


def fresh(shut_after: int = 3) -> ServerState:
    policy = Policy(min_nodes=1, shut_after=shut_after, reply_timeout=10.0)
    start = {"w": torch.tensor([0.0])}
    state = begin(start, (), CoordinateWiseMedian(), SGD(1.0), policy, torch.device("cpu"))
    return on_connected(state, [NODE, OTHER])


def asked(state: ServerState, message: str = "m", now: float = 0.0) -> ServerState:
    return on_sent(state, NODE, message, state.queries, now)


def brought_to(status: Status, shut_after: int = 3) -> ServerState:
    """Return a state in which the node has the status; unless IDLE, its message is in the book."""
    state = fresh(1 if status is Status.SHUT else shut_after)
    match status:
        case Status.IDLE:
            return state
        case Status.ASKED:
            return asked(state)
        case Status.LOST:
            return on_connected(asked(state), [OTHER])
        case Status.SHUT:
            return on_reply(asked(state), "m", FAULT, now=1.0)


def happens(state: ServerState, event: Event) -> ServerState:
    match event:
        case Event.READY:
            return asked(state, "next")
        case Event.UNSENT:
            return on_unsent(state, NODE, now=1.0)
        case Event.UPDATE:
            return on_reply(state, "m", update(), now=1.0)
        case Event.FAULT | Event.LAST_FAULT:
            return on_reply(state, "m", FAULT, now=1.0)
        case Event.SILENT:
            return on_clock(state, now=20.0)
        case Event.GONE:
            return on_connected(state, [OTHER])


@pytest.mark.parametrize(("status", "event"), TRANSITIONS)
def test_every_row_of_the_table_is_carried_out(status: Status, event: Event) -> None:
    before = brought_to(status, shut_after=1 if event is Event.LAST_FAULT else 3)
    assert before.nodes[NODE].status is status
    after = happens(before, event)
    becomes, effects = TRANSITIONS[status, event]
    assert after.nodes[NODE].status is becomes
    assert after.accepted - before.accepted == (Effect.ACCEPT in effects)
    assert sum(after.reasons.values()) - sum(before.reasons.values()) == (Effect.COUNT in effects)
    assert (after.nodes[NODE].due > before.nodes[NODE].due + 0.5) == (
        Effect.BACK_OFF in effects or Effect.ACCEPT in effects
    )
    if Effect.ACCEPT not in effects:
        assert after.iterates is before.iterates and after.accepted == before.accepted


@pytest.mark.parametrize("event", list(Event))
def test_a_node_that_is_shut_stays_shut(event: Event) -> None:
    assert move(Status.SHUT, event) == (Status.SHUT, ())


def test_every_status_and_event_has_a_row() -> None:
    assert {status for status, _ in TRANSITIONS} | {Status.SHUT} == set(Status)
    assert {event for _, event in TRANSITIONS} == set(Event)
    assert {e for _, effects in TRANSITIONS.values() for e in effects} == set(Effect)


@pytest.mark.parametrize("status", list(Status))
def test_a_reply_to_no_message_of_the_book_is_counted_and_ignored(status: Status) -> None:
    before = brought_to(status)
    after = on_reply(before, "invented", update(9.0), now=1.0)
    assert after.reasons[Reason.UNSOLICITED] == 1
    assert (after.nodes, after.book, after.accepted) == (before.nodes, before.book, before.accepted)
    assert after.iterates is before.iterates


def test_a_replay_gains_no_weight() -> None:
    once = on_reply(asked(fresh()), "m", update(), now=1.0)
    again = on_reply(once, "m", update(), now=1.1)
    assert again.nodes[NODE].accepted == 1 == again.accepted
    assert again.tables.parameters.view().weights.tolist() == [1]
    assert again.iterates is once.iterates
    assert again.reasons == {Reason.UNSOLICITED: 1}


def test_a_late_reply_counts_with_its_staleness() -> None:
    state = asked(fresh())
    state = on_sent(state, OTHER, "o", state.queries, 0.0)
    for k in range(3):
        state = on_reply(state, "o" if k == 0 else f"o{k}", update(), now=float(k))
        state = on_sent(state, OTHER, f"o{k + 1}", state.queries, float(k))
    state = on_clock(state, now=11.0)
    assert state.nodes[NODE].status is Status.LOST
    late = on_reply(state, "m", update(), now=12.0)
    assert late.nodes[NODE].accepted == 1
    assert late.staleness - state.staleness == 3


def test_asking_a_lost_node_again_strikes_its_old_message_out() -> None:
    state = asked(on_clock(asked(fresh()), now=20.0), "second", now=40.0)
    assert [line.node_id for line in state.book.values()] == [NODE]
    assert on_reply(state, "m", update(), now=41.0).reasons[Reason.UNSOLICITED] == 1


def test_a_silent_node_is_given_twice_the_time_after_each_silence() -> None:
    state, now, waits = fresh(), 0.0, []
    for k in range(3):
        state = on_clock(asked(state, f"m{k}", now), now + 11.0)
        waits.append(state.nodes[NODE].due - (now + 11.0))
        now = state.nodes[NODE].due
    assert waits == [10.0, 20.0, 40.0]


def test_a_faulty_node_waits_its_usual_pace_doubled_with_each_fault_in_a_row() -> None:
    state = on_reply(asked(fresh(shut_after=9)), "m", update(), now=4.0)
    waits = []
    for _ in range(3):
        state = on_reply(asked(state, "m", 10.0), "m", FAULT, now=10.0)
        waits.append(state.nodes[NODE].due - 10.0)
    assert waits == [4.0, 8.0, 16.0]


def test_no_wait_grows_beyond_64_times_its_first_length() -> None:
    state = fresh(shut_after=100)
    for _ in range(20):
        state = on_reply(asked(state, "m", 0.0), "m", FAULT, now=0.0)
    assert state.nodes[NODE].due == 64.0


@pytest.mark.parametrize("reason", sorted(NOT_ITS_DOING, key=lambda reason: reason.name))
def test_a_fault_of_the_network_makes_a_node_wait_and_never_shuts_it(reason: Reason) -> None:
    state = fresh(shut_after=1)
    for _ in range(3):
        state = on_reply(asked(state), "m", Rejected(reason), now=1.0)
    assert state.nodes[NODE].status is Status.IDLE and state.nodes[NODE].due == 5.0
    assert state.reasons == {reason: 3}


def test_an_accepted_reply_forgives_earlier_faults() -> None:
    state = fresh(shut_after=2)
    for reply in (FAULT, update(), FAULT, update()):
        state = on_reply(asked(state), "m", reply, now=1.0)
    assert state.nodes[NODE].faults == 0 and state.nodes[NODE].status is Status.IDLE


def test_only_connected_waiting_and_due_nodes_are_asked_in_the_order_of_joining() -> None:
    state = on_connected(fresh(), [3, NODE, OTHER])
    assert due_nodes(state, [3, OTHER, NODE], now=0.0) == [NODE, OTHER, 3]
    assert due_nodes(asked(state), [NODE, 3], now=0.0) == [3]
    assert due_nodes(on_unsent(state, 3, now=0.0), [NODE, 3], now=0.5) == [NODE]
    assert due_nodes(on_unsent(state, 3, now=0.0), [NODE, 3], now=1.5) == [NODE, 3]
