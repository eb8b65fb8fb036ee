"""Laws of the state under any order of events."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_byzasync import Reason
from flwr_byzasync.aggregators import CTMA, CoordinateWiseMedian, GeometricMedian
from flwr_byzasync.events import due_nodes, on_clock, on_connected, on_reply, on_sent, on_unsent
from flwr_byzasync.optimizers import AnyTimeSGD
from flwr_byzasync.state import Policy, Rejected, ServerState, Update, begin, quorum

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


def fresh(min_nodes: int | None = None) -> ServerState:
    policy = Policy(min_nodes=min_nodes, shut_after=3, reply_timeout=10.0)
    start = {"w": torch.tensor([1.0, -1.0]), "mean": torch.zeros(1), "n": torch.tensor(0)}
    optimizer = AnyTimeSGD(0.1)
    return on_connected(begin(start, ["mean"], RULE, optimizer, policy, CPU), [0, 1, 2])


def update(value: float) -> Update:
    return Update(torch.tensor([value, 1.0]), torch.tensor([value]), torch.tensor([int(value)]))


def contents(state: ServerState) -> tuple[object, ...]:
    """Everything that a rejected reply must leave bit-identical, copied."""
    view = state.tables.parameters.view()
    iterates = state.iterates
    tensors = (view.rows, view.weights, iterates.w, iterates.x, state.buffers, state.counters)
    return (*(tensor.tolist() for tensor in tensors), iterates.step, state.accepted)


def play(state: ServerState, script: list[tuple[str, object]]) -> list[ServerState]:
    """Carry a script out; events that cannot happen in a state are left out."""
    now, connected, states = 0.0, {0, 1, 2}, [state]
    for k, (kind, what) in enumerate(script):
        open_messages = {line.node_id: key for key, line in state.book.items()}
        before = contents(state)
        match kind:
            case "connect":
                connected = set(what)  # type: ignore[call-overload]
                state = on_connected(state, connected)
            case "ask":
                for node in due_nodes(state, connected, now):
                    state = on_sent(state, node, f"{k}.{node}", state.queries, now)
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
        if kind != "update":
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
def test_no_node_ever_has_two_messages_in_the_book(script: list[tuple[str, object]]) -> None:
    for state in play(fresh(), script):
        owners = [line.node_id for line in state.book.values()]
        assert len(owners) == len(set(owners))


@given(events)
def test_a_step_is_made_with_each_accepted_reply_once_the_quorum_has_replied(
    script: list[tuple[str, object]],
) -> None:
    states = play(fresh(min_nodes=2), script)
    for before, after in pairwise(states):
        heard = sum(node.accepted > 0 for node in after.nodes.values())
        stepped = after.accepted > before.accepted and heard >= 2
        assert after.iterates.step - before.iterates.step == stepped


def test_one_early_liar_does_not_steer_alone() -> None:
    state = fresh()
    assert quorum(state) == 3
    for k in range(5):
        state = on_sent(state, 0, f"m{k}", k, 0.0)
        state = on_reply(state, f"m{k}", update(1e6), 0.0)
    assert state.accepted == 5 and state.iterates.step == 0
    assert state.iterates.x.tolist() == [1.0, -1.0]


def test_a_founder_that_vanishes_is_not_waited_for() -> None:
    state = on_connected(fresh(), [0, 1])
    assert quorum(state) == 2
    for node in (0, 1):
        state = on_sent(state, node, f"m{node}", node, 0.0)
        state = on_reply(state, f"m{node}", update(1.0), 0.0)
    assert state.iterates.step == 1


def test_the_quorum_never_falls_below_more_than_half_of_the_founders() -> None:
    assert quorum(on_connected(fresh(), [0])) == 2


def test_a_founder_that_sends_what_cannot_be_used_is_not_waited_for() -> None:
    state = on_sent(fresh(), 0, "m", 0, 0.0)
    assert quorum(on_reply(state, "m", Rejected(Reason.NON_FINITE), 0.0)) == 2


def test_a_founder_that_replied_and_left_still_counts_for_the_quorum() -> None:
    state = on_sent(fresh(), 0, "m", 0, 0.0)
    state = on_connected(on_reply(state, "m", update(1.0), 0.0), [1, 2])
    assert quorum(state) == 3


def test_buffers_follow_the_median_and_counters_keep_a_value_that_was_sent() -> None:
    state = fresh(min_nodes=1)
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
    policy, optimizer = Policy(min_nodes=1), AnyTimeSGD(lr=0.5, gamma=0.1)
    rule = CTMA(CoordinateWiseMedian(), byz_fraction=0.0)
    start = {"w": torch.tensor([2.0])}
    state = on_connected(begin(start, (), rule, optimizer, policy, CPU), [7])
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
