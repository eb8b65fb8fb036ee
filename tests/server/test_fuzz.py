"""Any events in any order: no exception, and only an accepted reply changes the model."""

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
from flwr_byzasync.core import events, protocol
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
from tests.tiers import searched
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
class Coverage:
    """Reasons and transitions that the sequences covered."""

    reasons: set[Reason] = field(default_factory=set)
    rows: set[tuple[Status, Event]] = field(default_factory=set)
    accepted: int = 0


@dataclass(frozen=True)
class Prepared:
    """A reply built once; its echo is set to the query that it answers, or to a wrong one."""

    message: Message
    reason: Reason | None

    def to(self, query: int) -> Message:
        if self.message.has_content():
            set_echo(self.message.content, query, self.reason)
        return self.message


def set_echo(content: RecordDict, query: int, reason: Reason | None) -> None:
    """Set the echoed query id: this query's, or a wrong one where that is the fault."""
    config = content.get("config")
    if isinstance(config, ConfigRecord) and type(config.get("byz.query")) is int:
        config["byz.query"] = query - 1 if reason is Reason.WRONG_QUERY else query


@pytest.fixture(scope="module")
def replies(message: Message) -> tuple[Prepared, ...]:
    """Every fault of the zoo, and nearly as many usable replies."""
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


def endpoint_of(kind: int, clock: Callable[[], float], payload: Payload | None = None) -> Endpoint:
    """Return an endpoint whose policy is encoded in the bits of `kind`."""
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


def kept_objects(state: ServerState) -> tuple[object, ...]:
    """The objects that an event without an accepted reply must not replace."""
    return (state.iterates, state.buffers, state.counters, state.tables)


def kept_values(state: ServerState) -> tuple[object, ...]:
    """The values that such an event must leave bit-identical, copied."""
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
    """Runs one sequence and checks the invariants after each event.

    `expected` counts reasons independently of the package.
    """

    def __init__(self, replies: tuple[Prepared, ...], kind: int) -> None:
        self.replies, self.now = replies, 0.0
        self.endpoint = endpoint_of(kind, lambda: self.now)
        self.expected: Counter[Reason] = Counter()
        self.past: list[str] = ["invented"]
        self.connected: tuple[int, ...] = tuple(range(NODES - 1))
        self.sent = 0
        self.connect(0, 0)
        self.query(0, 0)
        self.contents = kept_values(self.endpoint.state)

    def play(self, what: int, whose: int, which: int) -> None:
        """Run one event; only an accepted reply may move the model."""
        before = self.endpoint.state
        objects, contents, rows = kept_objects(before), self.contents, len(before.tables.parameters)
        action = self.ACTIONS[what % len(self.ACTIONS)]
        action(self, whose, which)
        after = self.endpoint.state
        self.contents = kept_values(after)
        if after.accepted == before.accepted:
            assert all(a is b for a, b in zip(kept_objects(after), objects, strict=True))
            # Rows are dropped only where nodes are lost.
            may_drop = after.policy.liveness.departed == "drop" and action in (
                Player.wait,
                Player.connect,
            )
            if not may_drop or len(after.tables.parameters) == rows:
                assert self.contents == contents
        if before.iterates.step == 0 < after.iterates.step:
            # Computed independently: the configured size, or a majority of the initial nodes.
            quorum = after.policy.quorum.nodes or len(after.initial_nodes) // 2 + 1
            assert len(after.tables.parameters) >= quorum
        self.check(after)

    def check(self, state: ServerState) -> None:
        """Check what is always true."""
        assert state.reasons == {k: v for k, v in self.expected.items() if v}
        owners = [query.node_id for query in state.in_flight.values()]
        assert len(owners) == len(set(owners)) <= len(state.nodes) <= NODES
        queried = {k for k, node in state.nodes.items() if node.status is Status.QUERIED}
        assert queried <= set(owners)
        assert sum(node.accepted for node in state.nodes.values()) == state.accepted
        rows = sorted(node.row for node in state.nodes.values() if node.row is not None)
        assert rows == list(range(len(state.tables.parameters)))
        assert len(self.endpoint._logged) <= NODES * len(Reason)
        for node in state.nodes.values():
            assert len(node.metrics) <= MAX_METRICS and len(node.reply_times) <= 15

    # --- events ---

    def reply(self, whose: int, which: int) -> None:
        """A reply of any kind to a query in flight, whatever its node's status."""
        before = self.endpoint.state
        if not before.in_flight:
            return
        keys = list(before.in_flight)
        key = keys[whose % len(keys)]
        sent, prepared = before.in_flight[key], self.replies[which % len(self.replies)]
        queried = before.nodes[sent.node_id].status is Status.QUERIED
        self.endpoint.receive(key, prepared.to(sent.query))
        after = self.endpoint.state
        assert key not in after.in_flight
        assert after.accepted - before.accepted == (prepared.reason is None)
        # What a lost node owed was counted when it was lost.
        self.expected[prepared.reason] += prepared.reason is not None and queried
        del self.expected[None]  # type: ignore[arg-type]
        self.past.append(key)

    def usable(self, whose: int, which: int) -> None:
        """A usable reply, so that half of the sequence succeeds."""
        self.reply(whose, len(self.replies) - 1 - which % len(USABLE))

    def stray(self, whose: int, which: int) -> None:
        """A duplicate, a replay or a forgery, whatever its content."""
        prepared = self.replies[which % len(self.replies)]
        self.endpoint.receive(self.past[-1 - whose % len(self.past)], prepared.message)
        self.expected[Reason.UNSOLICITED] += 1

    def lose(self, whose: int, which: int) -> None:
        """A message is lost: its id was reused."""
        before = self.endpoint.state
        if before.in_flight and which % 4 == 0:
            key = list(before.in_flight)[whose % len(before.in_flight)]
            queried = before.nodes[before.in_flight[key].node_id].status is Status.QUERIED
            self.endpoint.apply(key, Rejected(Reason.LOST))
            self.expected[Reason.LOST] += queried

    def wait(self, whose: int, which: int) -> None:
        """Time passes, in jumps too, while the server does not poll, or steps back a little."""
        before, seconds = self.endpoint.state, WAITS[which % len(WAITS)]
        self.now += seconds
        if whose % 4 == 3 and seconds > 0:
            before = events.on_clock_paused(before, seconds)
        for query in before.in_flight.values():
            late = not query.overdue and self.now - query.sent_at > query.limit
            self.expected[Reason.EXPIRED] += late and self.status(query.node_id) is Status.QUERIED
        self.endpoint.state = events.on_all_quarantined(events.on_clock(before, self.now), self.now)
        if whose % 64 == 62:
            self.endpoint.state = events.on_end(self.endpoint.state, self.now)

    def connect(self, whose: int, which: int) -> None:
        """Nodes leave and join; with `which` = 0 all but the last are connected."""
        self.connected = tuple(k for k in range(NODES) if (which ^ 31) >> k & 1)
        nodes = self.endpoint.state.nodes
        for node_id, node in nodes.items():
            gone = node_id not in self.connected and node.status is Status.QUERIED
            self.expected[Reason.NODE_GONE] += gone
        self.endpoint.state = on_connected(self.endpoint.state, self.connected)

    def query(self, whose: int, which: int) -> None:
        """Query every due node; every fourth query cannot be sent."""
        endpoint = self.endpoint
        at_once = bool(whose & 1)
        for node_id in events.due_nodes(endpoint.state, self.connected, self.now, at_once):
            query, self.sent = endpoint.state.next_query_id, self.sent + 1
            if which % 4 == 3:
                endpoint.state = events.on_unsent(endpoint.state, node_id, self.now)
                self.expected[Reason.UNSENT] += 1
            else:
                self.past += [
                    k for k, v in endpoint.state.in_flight.items() if v.node_id == node_id
                ]
                endpoint.state = events.on_sent(
                    endpoint.state, node_id, f"m{self.sent}", query, self.now
                )

    def status(self, node_id: int) -> Status:
        return self.endpoint.state.nodes[node_id].status

    ACTIONS = (wait, reply, query, usable, stray, reply, query, connect, lose, reply, query, usable)


@pytest.fixture
def coverage(monkeypatch: pytest.MonkeyPatch) -> Coverage:
    """Record every transition that is used from now on."""
    recorded = Coverage()

    def recording(status: Status, event: Event) -> object:
        recorded.rows.add((status, event))
        return move(status, event)

    for module in (events, protocol):
        monkeypatch.setattr(module, "move", recording)
    return recorded


def play(script: bytes, replies: tuple[Prepared, ...], coverage: Coverage) -> Player:
    player = Player(replies, script[0])
    for k in range(1, len(script), 3):
        player.play(*script[k : k + 3])
    coverage.reasons |= set(player.endpoint.state.reasons)
    coverage.accepted += player.endpoint.state.accepted
    return player


def assert_all_covered(coverage: Coverage) -> None:
    assert set(Reason) - coverage.reasons == set()
    assert set(TRANSITIONS) - coverage.rows == set()


def seeded(seed: int, count: int = EVENTS) -> bytes:
    return np.random.default_rng(seed).bytes(1 + 3 * count)


@searched(few=20, many=SEQUENCES)
def test_no_sequence_of_events_raises_or_moves_the_model_without_an_accepted_reply(
    examples: int, replies: tuple[Prepared, ...], coverage: Coverage
) -> None:
    @settings(max_examples=examples)
    @given(st.binary(min_size=BYTES, max_size=BYTES))
    def law(script: bytes) -> None:
        play(script, replies, coverage)

    law()
    # 15 of the 100 on average, if a sequence is drawn evenly; many are simpler.
    assert coverage.accepted > examples
    if examples >= 1000:
        assert_all_covered(coverage)


def test_the_sequences_reach_every_reason_and_every_transition(
    replies: tuple[Prepared, ...], coverage: Coverage
) -> None:
    for seed in range(40):
        play(seeded(seed), replies, coverage)
    assert_all_covered(coverage)


def with_payload(
    payload: Payload, content: RecordDict, query: int, with_previous: bool
) -> RecordDict:
    """Turn a reply of the zoo into one of another payload, with its fault."""
    arrays, others = content.get("arrays"), content.get("buffers")
    if payload.NAME == "model" and isinstance(arrays, ArrayRecord):
        if isinstance(others, ArrayRecord):
            for name, array in others.items():
                arrays[name] = array
            del content["buffers"]
    elif with_previous and isinstance(arrays, ArrayRecord):
        content["arrays-prev"] = arrays
    config = content.get("config")
    if isinstance(config, ConfigRecord) and config.get("byz.payload") == "momentum":
        config["byz.payload"] = payload.NAME
    set_echo(content, query, None)
    return content


@pytest.mark.parametrize("payload", PAYLOADS, ids=str)
def test_with_any_payload_only_accepted_replies_move_the_model(
    payload: Payload, message: Message
) -> None:
    names = [name for name in (*ZOO, *USABLE) if name != "no content"]
    reached: Counter[object] = Counter()

    @settings(max_examples=max(10, EXAMPLES // 5))
    @given(st.binary(min_size=61, max_size=61))
    def law(script: bytes) -> None:
        endpoint = endpoint_of(script[0] & 0b0111101, lambda: 0.0, payload)
        endpoint.state = on_connected(endpoint.state, range(4))
        for k in range(1, len(script), 3):
            what, whose, which = script[k : k + 3]
            node_id, key = whose % 4, f"{k}"
            endpoint.state = on_connected(endpoint.state, range(4 if what % 8 else 3))
            endpoint.state = events.on_sent(
                endpoint.state, node_id, key, endpoint.state.next_query_id, 0.0
            )
            sent = endpoint.state.in_flight[key]
            assert (sent.point is not None) == payload.keeps_query_point
            # Half of them are usable.
            name = names[which % len(names)] if what & 1 else list(USABLE)[which % len(USABLE)]
            made = ZOO[name][0]() if name in ZOO else USABLE[name]()
            if isinstance(made, RecordDict):
                made = with_payload(payload, made, sent.query, sent.with_previous)
            before, contents = endpoint.state, kept_values(endpoint.state)
            endpoint.receive(key, answered(message, made))
            after = endpoint.state
            accepted = after.accepted - before.accepted
            reached[accepted] += 1
            assert accepted + sum(after.reasons.values()) - sum(before.reasons.values()) == 1
            if not accepted:
                assert kept_values(after) == contents
                assert all(
                    a is b for a, b in zip(kept_objects(after), kept_objects(before), strict=True)
                )
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
    """Return the number of function calls, C functions included: a measure that does not vary."""
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
    """Return the peak memory that was allocated, in bytes."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def waiting(message: Message) -> Endpoint:
    """Return an endpoint after one step, with a query to node 0 in flight."""
    endpoint = endpoint_of(1, lambda: 0.0)
    endpoint.state = on_connected(endpoint.state, [0])
    for key in ("first", "second"):
        good = Prepared(answered(message, USABLE["good"]()), None)
        endpoint.state = events.on_sent(endpoint.state, 0, key, endpoint.state.next_query_id, 0.0)
        if key == "first":
            endpoint.receive(key, good.to(endpoint.state.in_flight[key].query))
    return endpoint


@pytest.mark.parametrize("name", [*ZOO, *USABLE])
def test_no_reply_costs_much_more_calls_or_memory_than_a_good_one(
    name: str, message: Message
) -> None:
    def cost(kind: str, measure: Callable[[Callable[[], object]], int]) -> int:
        endpoint = waiting(message)
        make, reason = ZOO[kind] if kind in ZOO else (USABLE[kind], None)
        reply = Prepared(answered(message, make()), reason)
        reply.to(endpoint.state.in_flight["second"].query)
        return measure(partial(endpoint.receive, "second", reply.message))

    assert cost(name, calls_of) <= 2 * cost("good", calls_of)
    assert cost(name, memory_of) <= 2**17


@pytest.mark.slow
def test_an_event_does_not_cost_more_after_many_others(replies: tuple[Prepared, ...]) -> None:
    player, costs = Player(replies, 1), []
    script = seeded(5, 3000)
    for k in range(1, len(script), 3):
        costs.append(calls_of(partial(player.play, *script[k : k + 3])))
    # The largest costs vary by chance: compare many with many.
    early, late = sorted(costs[500:1500]), sorted(costs[-1000:])
    assert late[-50] <= 1.2 * early[-50]
    assert max(late) <= 1.5 * max(early)
