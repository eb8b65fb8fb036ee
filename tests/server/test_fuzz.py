"""Whatever arrives, in whatever order: no exception, no change but by an accepted reply."""

import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flwr_byzasync import AsyncRobust, CorrectedGradients, Gradients, Models, Payload, Reason
from flwr_byzasync.aggregators import CoordinateWiseMedian
from flwr_byzasync.core import events
from flwr_byzasync.core.membership import on_connected
from flwr_byzasync.core.state import Rejected, ServerState, initial_state
from flwr_byzasync.core.transitions import TRANSITIONS, Event, Status, move
from flwr_byzasync.optimizers import SGD
from flwr_byzasync.server.endpoint import Endpoint
from flwr_byzasync.weights import Capped, Counts
from flwr_byzasync.wire.arrays import record_of
from flwr_byzasync.wire.keys import MessageFormat
from flwr_byzasync.wire.replies import MAX_METRICS
from tests.fakes import FakeClock, FakeGrid, FakeNode, reply_to
from tests.settings import policy_of
from tests.wire.zoo import CPU, MODEL, USABLE, ZOO, answered

NODES = 6
EVENTS = 100
BYTES = 1 + 3 * EVENTS
"""A sequence is one byte for the policy and three for each event: what, whose, which."""
WAITS = (0.5, 2.0, 30.0, 61.0, 700.0, 1e6, -5.0, 0.0)
EXAMPLES = settings().max_examples
SEQUENCES = 10 * EXAMPLES if EXAMPLES >= 100 else EXAMPLES
"""1,000 in the ci profile."""


@dataclass
class Reached:
    """What the sequences came past."""

    reasons: set[Reason] = field(default_factory=set)
    rows: set[tuple[Status, Event]] = field(default_factory=set)
    accepted: int = 0


@dataclass(frozen=True)
class Prepared:
    """A reply made once; its echo is set to the query that it is to answer, or to one beside."""

    message: Message
    reason: Reason | None

    def to(self, query: int) -> Message:
        if self.message.has_content():
            set_echo(self.message.content, query, self.reason)
        return self.message


def set_echo(content: RecordDict, query: int, reason: Reason | None) -> None:
    """Make an echo that is right, or wrong in its number alone, so for this query."""
    config = content.get("config")
    if isinstance(config, ConfigRecord) and type(config.get("byz.query")) is int:
        config["byz.query"] = query - 1 if reason is Reason.WRONG_QUERY else query


@pytest.fixture(scope="module")
def replies(message: Message) -> tuple[Prepared, ...]:
    """Every kind of the zoo, and nearly as many that can be used."""
    faults = [Prepared(answered(message, make()), reason) for make, reason in ZOO.values()]
    usable = [Prepared(answered(message, make()), None) for make in USABLE.values()]
    return (*faults, *usable * (len(faults) // len(usable)))


def mean(rows: Tensor, weights: Tensor) -> Tensor:
    """The quickest rule: which one it is does not matter here."""
    return weights.to(rows.dtype) @ rows / weights.sum()


PAYLOADS = (
    Models(0.0),
    Models(0.0, 0.5),
    Models(0.5),
    Gradients(0.9),
    CorrectedGradients(None),
)


def session_of(kind: int, clock: Callable[[], float], payload: Payload | None = None) -> Endpoint:
    """Return a session whose policy follows the bits of `kind`."""
    policy = policy_of(
        payload,
        nodes=(None, 1, 2, 3)[kind & 3],
        max_consecutive_faults=2 + (kind >> 2 & 1),
        on_loss=("continue", "wait")[kind >> 3 & 1],
        departed=("keep", "drop")[kind >> 4 & 1],
        max_rate=(None, 2.0)[kind >> 6 & 1],
    )
    weigh = (Counts(), Capped(Counts(), 0.3))[kind >> 5 & 1]
    # Small, because huge replies must not end in infinity: no rule is under test.
    state = initial_state(MODEL, ["mean"], mean, SGD(1e-200), policy, CPU, weigh)
    return Endpoint(state, MessageFormat(policy.payload.NAME, "arrays", "config"), CPU, clock)


def held(state: ServerState) -> tuple[object, ...]:
    """Objects that an event which accepts nothing must keep."""
    return (state.iterates, state.buffers, state.counters, state.tables)


def written(state: ServerState) -> tuple[object, ...]:
    """Everything that it must leave bit-identical, copied."""
    tables = state.tables
    parts: list[object] = [state.accepted, state.staleness, state.iterates.step]
    for table in (tables.parameters, tables.buffers, tables.counters):
        view = table.view()
        parts += [table.counts, table.sent, bits(view.rows), bits(view.weights)]
    iterates = state.iterates
    return (*parts, *map(bits, (iterates.w, iterates.x, state.buffers, state.counters)))


def bits(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


class Player:
    """Carries one sequence out and checks the laws after each event.

    `expected` counts reasons by what was done, in the test's own words.
    """

    def __init__(self, replies: tuple[Prepared, ...], kind: int) -> None:
        self.replies, self.now = replies, 0.0
        self.session = session_of(kind, lambda: self.now)
        self.expected: Counter[Reason] = Counter()
        self.past: list[str] = ["invented"]
        self.connected: tuple[int, ...] = tuple(range(NODES - 1))
        self.sent = 0
        self.connect(0, 0)
        self.ask(0, 0)
        self.contents = written(self.session.state)

    def play(self, what: int, whose: int, which: int) -> None:
        """Carry an event out; nothing but an accepted reply may move the model."""
        before = self.session.state
        objects, contents, rows = held(before), self.contents, len(before.tables.parameters)
        doing = self.DOINGS[what % len(self.DOINGS)]
        doing(self, whose, which)
        after = self.session.state
        self.contents = written(after)
        if after.accepted == before.accepted:
            assert all(a is b for a, b in zip(held(after), objects, strict=True))
            # Rows go where nodes are lost, and nowhere else.
            lost = after.policy.liveness.departed == "drop" and doing in (
                Player.wait,
                Player.connect,
            )
            if not lost or len(after.tables.parameters) == rows:
                assert self.contents == contents
        if before.iterates.step == 0 < after.iterates.step:
            # In the test's own words: as many as were asked for, or more than half of the start.
            least = after.policy.quorum.nodes or len(after.initial_nodes) // 2 + 1
            assert len(after.tables.parameters) >= least
        self.check(after)

    def check(self, state: ServerState) -> None:
        """What is always true."""
        assert state.reasons == {k: v for k, v in self.expected.items() if v}
        owners = [line.node_id for line in state.in_flight.values()]
        assert len(owners) == len(set(owners)) <= len(state.nodes) <= NODES
        asked = {k for k, node in state.nodes.items() if node.status is Status.QUERIED}
        assert asked <= set(owners)
        assert sum(node.accepted for node in state.nodes.values()) == state.accepted
        rows = sorted(node.row for node in state.nodes.values() if node.row is not None)
        assert rows == list(range(len(state.tables.parameters)))
        assert len(self.session._logged) <= NODES * len(Reason)
        for node in state.nodes.values():
            assert len(node.metrics) <= MAX_METRICS and len(node.reply_times) <= 15

    # --- events ---

    def reply(self, whose: int, which: int) -> None:
        """A reply of any kind to a message of the book, wherever its node stands."""
        before = self.session.state
        if not before.in_flight:
            return
        keys = list(before.in_flight)
        key = keys[whose % len(keys)]
        line, prepared = before.in_flight[key], self.replies[which % len(self.replies)]
        asked = before.nodes[line.node_id].status is Status.QUERIED
        self.session.receive(key, prepared.to(line.query))
        after = self.session.state
        assert key not in after.in_flight
        assert after.accepted - before.accepted == (prepared.reason is None)
        # What a lost node owed was counted when it was lost.
        self.expected[prepared.reason] += prepared.reason is not None and asked
        del self.expected[None]  # type: ignore[arg-type]
        self.past.append(key)

    def usable(self, whose: int, which: int) -> None:
        """One that can be used, so that half of the sequence is no failure."""
        self.reply(whose, len(self.replies) - 1 - which % len(USABLE))

    def again(self, whose: int, which: int) -> None:
        """A duplicate, a replay or an invention, whatever is in it."""
        prepared = self.replies[which % len(self.replies)]
        self.session.receive(self.past[-1 - whose % len(self.past)], prepared.message)
        self.expected[Reason.UNSOLICITED] += 1

    def settle(self, whose: int, which: int) -> None:
        """An id is given again: its message is gone."""
        before = self.session.state
        if before.in_flight and which % 4 == 0:
            key = list(before.in_flight)[whose % len(before.in_flight)]
            asked = before.nodes[before.in_flight[key].node_id].status is Status.QUERIED
            self.session.apply(key, Rejected(Reason.LOST))
            self.expected[Reason.LOST] += asked

    def wait(self, whose: int, which: int) -> None:
        """Time passes, in leaps as well, unheard, or steps back a little."""
        before, seconds = self.session.state, WAITS[which % len(WAITS)]
        self.now += seconds
        if whose % 4 == 3 and seconds > 0:
            before = events.on_clock_paused(before, seconds)
        for line in before.in_flight.values():
            late = not line.overdue and self.now - line.sent_at > line.limit
            self.expected[Reason.EXPIRED] += late and self.status(line.node_id) is Status.QUERIED
        self.session.state = events.on_all_quarantined(events.on_clock(before, self.now), self.now)
        if whose % 64 == 62:
            self.session.state = events.on_end(self.session.state, self.now)

    def connect(self, whose: int, which: int) -> None:
        """Nodes come and go; with `which` = 0 all are there but the last."""
        self.connected = tuple(k for k in range(NODES) if (which ^ 31) >> k & 1)
        nodes = self.session.state.nodes
        for node_id, node in nodes.items():
            gone = node_id not in self.connected and node.status is Status.QUERIED
            self.expected[Reason.NODE_GONE] += gone
        self.session.state = on_connected(self.session.state, self.connected)

    def ask(self, whose: int, which: int) -> None:
        """Everyone who is due is asked; every fourth query cannot be handed over."""
        session = self.session
        at_once = bool(whose & 1)
        for node_id in events.due_nodes(session.state, self.connected, self.now, at_once):
            query, self.sent = session.state.next_query_id, self.sent + 1
            if which % 4 == 3:
                session.state = events.on_unsent(session.state, node_id, self.now)
                self.expected[Reason.UNSENT] += 1
            else:
                self.past += [k for k, v in session.state.in_flight.items() if v.node_id == node_id]
                session.state = events.on_sent(
                    session.state, node_id, f"m{self.sent}", query, self.now
                )

    def status(self, node_id: int) -> Status:
        return self.session.state.nodes[node_id].status

    DOINGS = (wait, reply, ask, usable, again, reply, ask, connect, settle, reply, ask, usable)


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Reached:
    """Note every row of the table that is used from now on."""
    seen = Reached()

    def noting(status: Status, event: Event) -> object:
        seen.rows.add((status, event))
        return move(status, event)

    monkeypatch.setattr(events, "move", noting)
    return seen


def play(script: bytes, replies: tuple[Prepared, ...], reached: Reached) -> Player:
    player = Player(replies, script[0])
    for k in range(1, len(script), 3):
        player.play(*script[k : k + 3])
    reached.reasons |= set(player.session.state.reasons)
    reached.accepted += player.session.state.accepted
    return player


def assert_all_reached(reached: Reached) -> None:
    assert set(Reason) - reached.reasons == set()
    assert set(TRANSITIONS) - reached.rows == set()


def seeded(seed: int, count: int = EVENTS) -> bytes:
    return np.random.default_rng(seed).bytes(1 + 3 * count)


def test_no_sequence_of_events_raises_or_moves_the_model_without_an_accepted_reply(
    replies: tuple[Prepared, ...], reached: Reached
) -> None:
    @settings(max_examples=SEQUENCES)
    @given(st.binary(min_size=BYTES, max_size=BYTES))
    def law(script: bytes) -> None:
        play(script, replies, reached)

    law()
    # 15 of the 100 on average, if a sequence is drawn evenly; many are simpler.
    assert reached.accepted > SEQUENCES
    if SEQUENCES >= 1000:
        assert_all_reached(reached)


def test_the_sequences_reach_every_reason_and_every_row_of_the_table(
    replies: tuple[Prepared, ...], reached: Reached
) -> None:
    for seed in range(40):
        play(seeded(seed), replies, reached)
    assert_all_reached(reached)


def with_payload(payload: Payload, content: RecordDict, query: int, before: bool) -> RecordDict:
    """Turn a reply of the zoo into one of another payload, with its fault."""
    arrays, others = content.get("arrays"), content.get("buffers")
    if payload.NAME == "model" and isinstance(arrays, ArrayRecord):
        if isinstance(others, ArrayRecord):
            for name, array in others.items():
                arrays[name] = array
            del content["buffers"]
    elif before and isinstance(arrays, ArrayRecord):
        content["arrays-prev"] = arrays
    config = content.get("config")
    if isinstance(config, ConfigRecord) and config.get("byz.payload") == "momentum":
        config["byz.payload"] = payload.NAME
    set_echo(content, query, None)
    return content


@pytest.mark.parametrize("payload", PAYLOADS, ids=str)
def test_whatever_replies_are_only_accepted_ones_move_the_model(
    payload: Payload, message: Message
) -> None:
    names = [name for name in (*ZOO, *USABLE) if name != "no content"]
    reached: Counter[object] = Counter()

    @settings(max_examples=max(10, EXAMPLES // 5))
    @given(st.binary(min_size=61, max_size=61))
    def law(script: bytes) -> None:
        session = session_of(script[0] & 0b0111101, lambda: 0.0, payload)
        session.state = on_connected(session.state, range(4))
        for k in range(1, len(script), 3):
            what, whose, which = script[k : k + 3]
            node_id, key = whose % 4, f"{k}"
            session.state = on_connected(session.state, range(4 if what % 8 else 3))
            session.state = events.on_sent(
                session.state, node_id, key, session.state.next_query_id, 0.0
            )
            line = session.state.in_flight[key]
            assert (line.point is not None) == payload.keeps_query_point
            # Half of them can be used.
            name = names[which % len(names)] if what & 1 else list(USABLE)[which % len(USABLE)]
            made = ZOO[name][0]() if name in ZOO else USABLE[name]()
            if isinstance(made, RecordDict):
                made = with_payload(payload, made, line.query, line.with_previous)
            before, contents = session.state, written(session.state)
            session.receive(key, answered(message, made))
            after = session.state
            accepted = after.accepted - before.accepted
            reached[accepted] += 1
            assert accepted + sum(after.reasons.values()) - sum(before.reasons.values()) == 1
            if not accepted:
                assert written(after) == contents
                assert all(a is b for a, b in zip(held(after), held(before), strict=True))
            assert bool(after.tables.parameters.view().rows.isfinite().all())
            assert bool(after.iterates.x.isfinite().all())

    law()
    assert reached[1] > 20 and reached[0] > 20


@settings(max_examples=max(5, EXAMPLES // 10))
@given(st.binary(min_size=1, max_size=50))
def test_a_run_among_nodes_that_send_anything_trains(script: bytes) -> None:
    """Through the strategy and its loop, log lines included."""
    clock, draws = FakeClock(), cycle(script)
    # This grid's nodes cannot reply without content: they would be silent.
    kinds = [kind for name, kind in ZOO.items() if name != "no content"]

    def hostile(message: Message) -> RecordDict | Error | None:
        make, reason = kinds[next(draws) % len(kinds)]
        query = message.content.config_records["config"]["byz.query"]
        made = make()
        if isinstance(made, RecordDict):
            set_echo(made, query, reason)
        return made

    nodes = {k: FakeNode(reply_to if k < 3 else hostile) for k in range(5)}
    strategy = AsyncRobust(
        CoordinateWiseMedian(),
        SGD(0.1),
        buffers=["mean"],
    )
    result = strategy.start(FakeGrid(clock, nodes), record_of(MODEL), 15)
    statistics = strategy.statistics()
    reached = result.arrays.to_torch_state_dict()
    assert max(float(reached[name].abs().max()) for name in ("w", "b")) < 0.1
    assert torch.equal(reached["mean"], MODEL["mean"]) and torch.equal(reached["n"], MODEL["n"])
    assert statistics.accepted == 75 and sum(statistics.replies.values()) == 75
    assert statistics.reasons


# --- what one reply may cost ----------------------------------------------------------------------


def calls_of(work: Callable[[], object]) -> int:
    """Return how many functions were called, C functions included: a clock that does not vary."""
    count = 0

    def counting(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    # A collection would run finalizers of others in between.
    gc.disable()
    before = sys.getprofile()
    sys.setprofile(counting)
    try:
        work()
    finally:
        sys.setprofile(before)
        gc.enable()
    return count


def memory_of(work: Callable[[], object]) -> int:
    """Return the most bytes that were held at once beyond what was there."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def waiting(message: Message) -> Endpoint:
    """Return a session that has a step behind it and waits for node 0."""
    session = session_of(1, lambda: 0.0)
    session.state = on_connected(session.state, [0])
    for key in ("first", "second"):
        good = Prepared(answered(message, USABLE["good"]()), None)
        session.state = events.on_sent(session.state, 0, key, session.state.next_query_id, 0.0)
        if key == "first":
            session.receive(key, good.to(session.state.in_flight[key].query))
    return session


@pytest.mark.parametrize("name", [*ZOO, *USABLE])
def test_no_reply_costs_much_more_calls_or_memory_than_a_good_one(
    name: str, message: Message
) -> None:
    def cost(kind: str, measure: Callable[[Callable[[], object]], int]) -> int:
        session = waiting(message)
        make, reason = ZOO[kind] if kind in ZOO else (USABLE[kind], None)
        reply = Prepared(answered(message, make()), reason)
        reply.to(session.state.in_flight["second"].query)
        return measure(partial(session.receive, "second", reply.message))

    assert cost(name, calls_of) <= 2 * cost("good", calls_of)
    assert cost(name, memory_of) <= 2**17


def test_an_event_does_not_cost_more_after_many_others(replies: tuple[Prepared, ...]) -> None:
    player, costs = Player(replies, 1), []
    script = seeded(5, 3000)
    for k in range(1, len(script), 3):
        costs.append(calls_of(partial(player.play, *script[k : k + 3])))
    # The largest of a kind come by chance: compare many with many.
    early, late = sorted(costs[500:1500]), sorted(costs[-1000:])
    assert late[-50] <= 1.2 * early[-50]
    assert max(late) <= 1.5 * max(early)
