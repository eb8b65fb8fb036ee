"""Runs continue whatever nodes do: floods, restarts, silences, churn, on a virtual clock."""

import logging
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.serverapp.strategy import Result

from flwr_byzasync import (
    AsyncRobust,
    ConfigError,
    CorrectedGradients,
    Gradient,
    Gradients,
    Models,
    Momenta,
    Payload,
    Query,
    Quorum,
    Reason,
    VirtualGrid,
    client_app,
)
from flwr_byzasync._moved_arguments import ASYNC_ROBUST
from flwr_byzasync.adversary.client_mods import attack_mod
from flwr_byzasync.aggregators import CTMA, CoordinateWiseMedian
from flwr_byzasync.attacks import Flood, SignFlip
from flwr_byzasync.estimators import Estimator, mu2, sgd
from flwr_byzasync.optimizers import SGD
from flwr_byzasync.server.early_stopping import EarlyStop
from flwr_byzasync.simulation.federation import Churn, VirtualNode
from flwr_byzasync.weights import Capped, StalenessDiscount, weight_policy
from tests.settings import grouped
from tests.tiers import slow

START = {"x": torch.tensor([4.0, -4.0])}
FIRST = 100
"""Node id of partition 0."""


def bowl(query: Query) -> Gradient:
    """The gradient of ‖x‖²/2, with noise: training drives the model to 0."""
    noise = torch.randn(2, generator=query.generator)
    return Gradient({"x": query.parameters["x"] + 0.1 * noise})


def app(estimator: Estimator | None = None, **settings: Any) -> Callable[..., Message]:
    return client_app(bowl, estimator=estimator or sgd(), **settings)


def strategy_of(**settings: Any) -> AsyncRobust:
    """Return a strategy; `max_share` is short for a cap on its weights."""
    kwargs = {"aggregator": CoordinateWiseMedian(), "optimizer": SGD(0.1), "nodes": 3, **settings}
    if "max_share" in kwargs:
        policy = weight_policy(kwargs.get("weights", "counts"))
        kwargs["weights"] = Capped(policy, kwargs.pop("max_share"))
    return AsyncRobust(**grouped(**kwargs))


def run(
    strategy: AsyncRobust,
    nodes: int | Sequence[VirtualNode],
    rounds: int = 5,
    client: Callable[..., Message] | None = None,
    timeout: float = 300.0,
    **federation: Any,
) -> tuple[Result, VirtualGrid]:
    with VirtualGrid(client or app(), nodes, seed=1, **federation) as grid:
        result = strategy.start(grid, ArrayRecord(START), rounds, timeout=timeout)
    return result, grid


def distance(result: Result) -> float:
    return float(result.arrays.to_torch_state_dict()["x"].norm())


# --- a flood of replies --------------------------------------------------------------------------


def flooded(network: float = 0.1, lr: float = 0.02, **settings: Any) -> tuple[Any, ...]:
    """Let one node of six flood; return the distance to the optimum and its weight.

    It does not compute, so it is six times as fast as those that do, or far more in a faster
    network.
    """
    liar, lie = FIRST + 5, SignFlip(scale=3.0)
    mod = attack_mod(lambda context: lie if context.node_id == liar else None)
    honest, flood = VirtualNode(network=network), VirtualNode(network=network, attack=Flood())
    strategy = strategy_of(
        aggregator=CTMA(CoordinateWiseMedian(), 0.3),
        optimizer=SGD(lr),
        **{"nodes": 6, "updates_per_round": 400, **settings},
    )
    result, _ = run(strategy, [honest] * 5 + [flood], 1, app(mods=[mod]))
    return distance(result), strategy.statistics().weights[liar], strategy


@pytest.mark.slow
def test_a_flooding_node_dominates_the_counts_and_ruins_the_run() -> None:
    reached, share, strategy = flooded()
    assert share > 0.5 and share == pytest.approx(strategy.statistics().share({FIRST + 5}))
    assert not reached < 100.0


@pytest.mark.parametrize(
    "settings",
    [
        {"max_share": 0.25},
        slow({"weights": "uniform"}),
        slow({"weights": StalenessDiscount(power=1.0), "max_share": 0.25}),
    ],
)
def test_a_flooding_node_has_no_more_weight_than_the_cap_and_the_run_trains(
    settings: dict[str, Any],
) -> None:
    reached, share, strategy = flooded(**settings)
    assert share <= 0.25 * (1 + 1e-12)
    assert strategy.statistics().share({FIRST + 5}) > 0.5
    assert reached < 0.5


@pytest.mark.slow
def test_a_node_a_thousand_times_as_fast_is_kept_from_moving_the_model_alone() -> None:
    capped = {"network": 1e-3, "lr": 0.05, "max_share": 0.25, "updates_per_round": 2000}
    reached, share, strategy = flooded(**capped)
    assert share <= 0.25 * (1 + 1e-12) and strategy.statistics().share({FIRST + 5}) > 0.9
    assert reached > 10.0
    reached, share, strategy = flooded(**capped, max_rate=5.0)
    assert strategy.statistics().share({FIRST + 5}) < 0.7
    assert reached < 0.5


# --- a node that lost its state -------------------------------------------------------------------


def test_a_restarted_node_averages_what_it_computed_since_and_no_more() -> None:
    sent: list[float] = []

    def drawn(query: Query) -> Gradient:
        return Gradient({"x": torch.randn(2, generator=query.generator)})

    inner = client_app(drawn, estimator=mu2(beta=None))

    def recording(message: Message, context: Context) -> Message:
        reply = inner(message, context)
        if context.node_id == FIRST:
            sent.append(float(reply.content["arrays"].to_torch_state_dict()["x"][0]))
        return reply

    churn = [Churn(20.5, 0, "leave"), Churn(25.0, 0, "join")]
    strategy = strategy_of(updates_per_round=100)
    run(strategy, 3, 1, recording, churn=churn)
    gradients: list[float] = []

    def draws(query: Query) -> Gradient:
        answer = drawn(query)
        if query.context.node_id == FIRST:
            gradients.append(float(answer.gradients["x"][0]))
        return answer

    run(strategy_of(updates_per_round=100), 3, 1, client_app(draws, estimator=sgd()), churn=churn)
    # Where the gradient does not depend on the point, the vector is the mean of all draws.
    before, after = torch.tensor(gradients[:20]), torch.tensor(gradients[20:])
    means = [x.cumsum(0) / torch.arange(1, len(x) + 1) for x in (before, after)]
    assert len(sent) == len(gradients) > 28
    torch.testing.assert_close(torch.tensor(sent), torch.cat(means), rtol=1e-4, atol=1e-5)


# --- nodes that leave, fail and come back ---------------------------------------------------------


def test_when_all_nodes_are_gone_the_run_ends_in_time_with_what_is_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    churn = [Churn(10.0 + node, node, "leave") for node in range(3)]
    strategy = strategy_of(updates_per_round=6)
    with caplog.at_level(logging.ERROR, logger="flwr"):
        result, grid = run(strategy, 3, 50, timeout=30.0, churn=churn)
    assert distance(result) < 1.0
    assert 40.0 <= grid.clock() < 45.0
    assert "no reply was accepted for timeout=30 seconds" in caplog.text
    assert "0 nodes are connected" in caplog.text


def test_when_all_nodes_come_back_in_time_the_run_continues() -> None:
    churn = [Churn(10.0 + node, node, "leave") for node in range(3)]
    churn += [Churn(35.0, node, "join") for node in range(3)]
    strategy = strategy_of(updates_per_round=6)
    result, _ = run(strategy, 3, 20, timeout=30.0, churn=churn)
    assert strategy.statistics().accepted == 120
    assert distance(result) < 0.5


def test_a_lost_reply_times_out_at_the_node_s_own_pace() -> None:
    """A crash that goes unnoticed loses the message; at 1 s a reply the timeout is a minute."""
    churn = [Churn(20.5, 0, "crash"), Churn(21.0, 0, "join")]
    strategy = strategy_of(updates_per_round=350)
    run(strategy, 3, 1, churn=churn, heartbeat=1e6)
    statistics = strategy.statistics()
    assert statistics.reasons == {Reason.EXPIRED: 1}
    # Timed out a minute after 20 s, queried again a minute later.
    assert 30 < statistics.replies[FIRST] < statistics.replies[FIRST + 1] - 110


def test_a_late_reply_counts_with_its_true_staleness() -> None:
    times = iter([1.0] * 5 + [100.0] * 2)
    strategy = strategy_of(nodes=2, updates_per_round=112)
    run(strategy, [VirtualNode(compute=lambda rng: next(times)), VirtualNode()], 1)
    statistics = strategy.statistics()
    assert statistics.reasons == {Reason.EXPIRED: 1}
    assert statistics.replies == {FIRST: 6, FIRST + 1: 106}
    # While both are connected a reply is at most one step old; those of the other alone are fresh.
    assert 99 <= statistics.mean_staleness * 112 <= 101 + 10


def broken_for_a_while(
    good_again: float, clock: list[Callable[[], float]]
) -> Callable[..., Message]:
    """Node 0 sends NaN until some second of the virtual clock."""

    def gradient(query: Query) -> Gradient:
        answer = bowl(query)
        if query.context.node_id == FIRST and clock[0]() < good_again:
            return Gradient({"x": answer.gradients["x"] * torch.nan})
        return answer

    return client_app(gradient, estimator=sgd())


@pytest.mark.parametrize(("good_again", "faults"), [(5.0, 2), slow(60.0, 5), slow(150.0, 6)])
def test_a_quarantined_node_is_queried_again_and_restored_by_a_usable_reply(
    good_again: float, faults: int
) -> None:
    clock: list[Callable[[], float]] = []
    strategy = strategy_of(
        nodes=2, max_consecutive_faults=5, reply_timeout=50.0, updates_per_round=500
    )
    with VirtualGrid(broken_for_a_while(good_again, clock), 3, seed=1) as grid:
        clock.append(grid.clock)
        strategy.start(grid, ArrayRecord(START), 1, timeout=100.0)
    statistics = strategy.statistics()
    assert statistics.reasons == {Reason.NON_FINITE: faults}
    assert statistics.replies[FIRST] > 40


# --- too few nodes --------------------------------------------------------------------------------


def thinned(**settings: Any) -> tuple[Result, AsyncRobust, VirtualGrid]:
    """Two of three nodes are away from 20 to 60 s."""
    churn = [Churn(20.5, node, "leave") for node in (1, 2)]
    churn += [Churn(60.5, node, "join") for node in (1, 2)]
    strategy = strategy_of(nodes=2, updates_per_round=100, **settings)
    result, grid = run(strategy, 3, 2, churn=churn)
    return result, strategy, grid


def test_below_the_quorum_a_run_continues_by_default() -> None:
    _, strategy, grid = thinned()
    replies = list(strategy.statistics().replies.values())
    assert replies[0] > replies[1] + 35
    assert grid.clock() < 100.0


@pytest.mark.parametrize("departed", ["keep", "drop"])
def test_without_enough_nodes_a_run_may_wait_and_nobody_gains_weight(
    departed: str,
) -> None:
    result, strategy, grid = thinned(on_loss="wait", departed=departed)
    statistics = strategy.statistics()
    assert max(statistics.replies.values()) - min(statistics.replies.values()) <= 2
    assert statistics.accepted == 200 and 105.0 < grid.clock() < 112.0
    assert distance(result) < 0.5


def test_a_run_that_waits_in_vain_ends_in_time(caplog: pytest.LogCaptureFixture) -> None:
    churn = [Churn(20.5, node, "leave") for node in (1, 2)]
    strategy = strategy_of(nodes=2, updates_per_round=100, on_loss="wait")
    with caplog.at_level(logging.ERROR, logger="flwr"):
        result, grid = run(strategy, 3, 2, timeout=50.0, churn=churn)
    assert distance(result) < 0.5 and 70.0 < grid.clock() < 75.0
    assert "no reply was accepted for timeout=50 seconds" in caplog.text


@pytest.mark.parametrize("departed", [slow("keep"), "drop"])
def test_the_row_of_a_departed_node_biases_the_model_until_it_is_dropped(departed: str) -> None:
    """Two of five leave early, far from the optimum: kept rows bias the model."""

    def app_of_rows(query: Query) -> Gradient:
        return Gradient({"x": query.parameters["x"]})

    churn = [Churn(1.5, node, "leave") for node in (3, 4)]
    strategy = strategy_of(
        aggregator=lambda rows, weights: (weights.double() @ rows.double() / weights.sum()).float(),
        optimizer=SGD(0.02),
        weights="uniform",
        departed=departed,
        updates_per_round=600,
    )
    result, _ = run(strategy, 5, 1, client_app(app_of_rows, estimator=sgd()), churn=churn)
    assert (distance(result) < 0.01) == (departed == "drop")
    weights = strategy.statistics().weights
    assert (weights[FIRST + 4] == 0.0) == (departed == "drop")
    assert sum(weights.values()) == pytest.approx(1.0)


def half_broken(
    broken: int, ill: tuple[float, float], rounds: int = 5, churn: Sequence[Churn] = (), **more: Any
) -> tuple[AsyncRobust, float]:
    """Run ten nodes for an hour at most; the first ones send a wrong shape for some time.

    Once quarantined, they are queried again after 10, then after 20 and after 40 minutes.
    """
    inner = app()

    def wrong(message: Message, context: Context) -> Message:
        reply = inner(message, context)
        if context.node_id < FIRST + broken and ill[0] <= grid.clock() < ill[1]:
            reply.content["arrays"] = ArrayRecord({"x": torch.ones(3)})  # type: ignore[dict-item]
        return reply

    kwargs = {"nodes": None, "min_available_nodes": 10, "poll_interval": 1.0, **more}
    strategy = strategy_of(**kwargs)
    with VirtualGrid(wrong, [VirtualNode(compute=30.0)] * 10, churn=churn) as grid:
        strategy.start(grid, ArrayRecord(START), rounds, timeout=3600.0)
        return strategy, grid.clock()


TOO_FEW: list[tuple[dict[str, Any], str]] = [
    ({"broken": 5}, "the first step needs 6 nodes, and only 5 of 10"),
    ({"broken": 3, "nodes": 10}, "the first step needs 10 nodes, and only 7 of 10"),
    ({"broken": 5, "on_loss": "wait"}, "a step needs 6 nodes, and only 5 of 10"),
]


@pytest.mark.parametrize(("settings", "why"), TOO_FEW)
def test_a_run_ends_once_a_step_needs_more_nodes_than_can_still_come(
    settings: dict[str, Any], why: str
) -> None:
    later = "on_loss" in settings
    strategy, ended = half_broken(ill=(70.0 * later, 1e9), rounds=100, **settings)
    assert strategy.statistics().stop_reason.startswith(why)
    # Their second query after quarantine was in time, and the third one would not be.
    assert 2000.0 < ended < (2600.0 if later else 2100.0)
    assert (strategy.statistics().steps > 0) == later


@pytest.mark.parametrize("settings", [settings for settings, _ in TOO_FEW])
def test_a_run_waits_for_nodes_that_are_well_at_the_last_query_in_time(
    settings: dict[str, Any],
) -> None:
    """Ill until after their first query in quarantine, which comes ten minutes after it began."""
    later = "on_loss" in settings
    strategy, ended = half_broken(ill=(70.0 * later, 1200.0), rounds=100, **settings)
    assert not strategy.statistics().stop_reason and ended > 2000.0
    assert strategy.statistics().steps > 100


def test_where_fewer_nodes_were_there_than_the_quorum_needs_others_may_join() -> None:
    """Two nodes at fault, and two that join when the former are not queried again in time."""
    churn = [Churn(2500.0, node, "join") for node in range(4, 10)]
    strategy, _ = half_broken(2, (0.0, 1e9), nodes=6, min_available_nodes=2, churn=churn)
    assert not strategy.statistics().stop_reason and strategy.statistics().steps > 10


# --- arguments out of range -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("weights", "count"), ("weights", 3), ("weights", StalenessDiscount),
        ("max_rate", 0.5), ("max_rate", float("inf")), ("max_rate", "10"),
        ("on_loss", "stop"), ("on_loss", None), ("departed", "forget"),
        ("departed", 0), ("min_available_nodes", -1),
        ("min_available_nodes", "2"), ("nodes", True), ("nodes", float("nan")),
        ("updates_per_round", 0), ("updates_per_round", 1.5), ("max_consecutive_faults", -1),
        ("max_consecutive_faults", 2.5), ("max_consecutive_faults", None), ("reply_timeout", -1.0),
        ("reply_timeout", float("inf")), ("reply_timeout", None), ("reply_timeout", "600"),
        ("min_reply_timeout", 0.0), ("min_reply_timeout", "60"), ("min_reply_timeout", None),
        ("poll_interval", 0.0), ("poll_interval", float("nan")), ("poll_interval", None),
        ("payload", 3), ("buffers", (1, 2)), ("buffers", "mean"), ("device", 3.5),
        ("device", None), ("arrayrecord_key", None), ("arrayrecord_key", "metrics"),
        ("configrecord_key", ""), ("configrecord_key", "buffers"), ("aggregator", 3),
        ("optimizer", SGD), ("optimizer", "sgd"), ("payload", "weights"), ("payload", "Model"),
        ("payload", Models), ("quorum", 3), ("quorum", Quorum), ("liveness", 600.0),
        ("callbacks", 3), ("callbacks", EarlyStop(seconds=1.0)), ("checkpoints", "/data/run"),
        ("fraction_evaluate", -0.1),
        ("fraction_evaluate", 1.1), ("fraction_evaluate", "all"), ("min_evaluate_nodes", -1),
        ("min_evaluate_nodes", 2.5), ("min_evaluate_nodes", None), ("min_train_nodes", 0),
        ("min_train_nodes", "2"), ("train_metrics_aggr_fn", "mean"),
        ("evaluate_metrics_aggr_fn", 3), ("fraction_train", 0.5), ("fraction_train", 0.0),
        ("weighted_by_key", "num-examples"), ("arrayrecord_key", "arrays-prev"),
        ("buffers", np.array(1.0)), ("device", 10**400), ("max_rate", np.float32(0.5)),
        ("reply_timeout", np.float32("nan")), ("max_consecutive_faults", np.int64(0)),
        ("reply_timeout", Fraction(10**400)),
    ],
)  # fmt: skip
def test_every_argument_out_of_range_is_refused_by_name_value_range_and_fix(
    argument: str, value: object
) -> None:
    arguments = {"aggregator": CoordinateWiseMedian(), "optimizer": SGD(0.1), argument: value}
    with pytest.raises(ConfigError) as caught:
        AsyncRobust(**grouped(**arguments))
    error = caught.value
    assert error.argument == argument and error.legal and error.fix
    shown = (str(value)[:20], repr(value)[:20])
    assert str(error).startswith(f"{argument}=") and any(text in str(error) for text in shown)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (Models, {"momentum": 1.0}), (Models, {"momentum": -0.1}), (Models, {"momentum": "0.9"}),
        (Models, {"momentum": np.float64(1.0)}), (Models, {"delay_compensation": 1.1}),
        (Models, {"delay_compensation": True}), (Gradients, {"momentum": 1.0}),
        (CorrectedGradients, {"beta": 0.0}), (CorrectedGradients, {"beta": 1.5}),
        (CorrectedGradients, {"beta": True}),
    ],
)  # fmt: skip
def test_a_payload_out_of_range_is_refused_by_name(kind: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**settings)
    assert caught.value.argument in settings and caught.value.fix


@pytest.mark.parametrize("callback", [0.95, "save", EarlyStop, [EarlyStop(seconds=1.0)]])
def test_a_callback_is_a_function_or_an_early_stop(callback: object) -> None:
    with pytest.raises(ConfigError, match=r"^callbacks=.*EarlyStop"):
        strategy_of(callbacks=[callback])


@pytest.mark.parametrize("payload", [Gradients(), Momenta(), CorrectedGradients()])
def test_only_models_have_a_step_of_their_own(payload: Payload) -> None:
    with pytest.raises(ConfigError, match=r"^optimizer=None .*AnyTimeSGD"):
        AsyncRobust(payload=payload)


@pytest.mark.parametrize(
    ("name", "payload"),
    [("model", "Models()"), ("gradient", "Gradients()"), ("weights", "Models()")],
)
def test_a_payload_by_its_former_name_is_refused_with_its_class(name: str, payload: str) -> None:
    with pytest.raises(ConfigError) as caught:
        strategy_of(payload=name)
    assert caught.value.fix == f"pass payload={payload}"


@pytest.mark.parametrize("name", ASYNC_ROBUST)
def test_a_moved_argument_is_refused_with_its_new_place(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AsyncRobust(**{name: 1.0})  # type: ignore[arg-type]
    assert caught.value.argument == name and ASYNC_ROBUST[name] in caught.value.fix


def test_an_unknown_argument_is_python_s_own_error() -> None:
    with pytest.raises(TypeError, match="min_node"):
        AsyncRobust(min_node=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "replacement"), [("fraction_train", "max_rate"), ("weighted_by_key", "weights=")]
)
def test_an_unsupported_argument_of_fedavg_is_refused_with_its_replacement(
    name: str, replacement: str
) -> None:
    value = {"fraction_train": 0.3, "weighted_by_key": "num-examples"}[name]
    with pytest.raises(ConfigError) as caught:
        AsyncRobust(**{name: value})  # type: ignore[arg-type]
    assert replacement in caught.value.fix


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("evaluate_fn", 3), ("num_rounds", 0), ("num_rounds", 2.0), ("num_rounds", True),
        ("timeout", 0.0), ("timeout", np.float64("inf")), ("timeout", "60"),
        ("train_config", {"lr": 0.1}), ("evaluate_config", 3),
    ],
)  # fmt: skip
def test_every_argument_of_start_out_of_range_is_refused_before_anything_is_sent(
    argument: str, value: object
) -> None:
    with VirtualGrid(app(), 3) as grid, pytest.raises(ConfigError) as caught:
        strategy_of().start(grid, ArrayRecord(START), **{argument: value})  # type: ignore[arg-type]
    assert caught.value.argument == argument and caught.value.fix and grid.clock() == 0.0


@pytest.mark.parametrize("rounds", [10**15, np.int64(10**15)])
def test_a_run_may_have_a_huge_number_of_rounds(rounds: int) -> None:
    strategy = strategy_of(callbacks=[EarlyStop(seconds=60.0)])
    run(strategy, 3, rounds, timeout=Fraction(600))  # type: ignore[arg-type]
    assert strategy.statistics().accepted > 30


def test_replies_that_wait_for_a_slow_evaluation_do_not_distort_reply_times() -> None:
    """They arrived while nobody polled: in time, and not at once as it would seem."""
    spent: list[float] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        if server_round:
            grid.sleep(7200.0)
            spent.append(7200.0)

    strategy = strategy_of(max_rate=2.0, updates_per_round=3)
    with VirtualGrid(app(), [VirtualNode(compute=10.0)] * 3, seed=1) as grid:
        strategy.start(grid, ArrayRecord(START), 6, evaluate_fn=evaluate)
    assert strategy._hooks.endpoint is not None and len(spent) == 6
    nodes = strategy._hooks.endpoint.state.nodes.values()
    assert strategy.statistics().reasons == {}
    assert all(times and min(times) >= 10.0 for times in (node.reply_times for node in nodes))
