"""The round hooks in Flower's loop, inside its wrappers and subclassed; how a run may end."""

import logging
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import mod as client_mods
from flwr.serverapp import strategy as stock
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Result,
    Strategy,
)
from hypothesis import given
from hypothesis import strategies as st

from flwr_byzasync import AsyncRobust, ConfigError, Models, VirtualGrid
from flwr_byzasync.optimizers import AnyTimeSGD
from flwr_byzasync.server.early_stopping import EarlyStop
from flwr_byzasync.server.run_plan import EvaluateFn
from tests.releases import since

START = {"w": torch.tensor([4.0, -4.0])}
BOTH = pytest.mark.parametrize("start", [AsyncRobust.start, Strategy.start])
QUIET = {"fraction_evaluate": 0.0}


class Federation:
    """Four nodes that halve the model, and what they were sent."""

    def __init__(self, *mods: Any) -> None:
        self.sent: list[torch.Tensor] = []
        self._mods = mods

    def app(self, message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"].to_torch_state_dict()
        self.sent.append(arrays["w"].clone())
        arrays["w"] *= 0.5
        metrics = MetricRecord({"loss": 1.0})
        content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})
        return Message(content, reply_to=message)

    def run(
        self,
        strategy: Any,
        rounds: int = 3,
        start: Callable[..., Result] = Strategy.start,
        model: dict[str, torch.Tensor] = START,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        app: Any = self.app
        for mod in self._mods:
            app = lambda m, c, mod=mod, inner=app: mod(m, c, inner)  # noqa: E731
        with VirtualGrid(app, 4) as grid:
            return start(strategy, grid, ArrayRecord(model), rounds, evaluate_fn=evaluate_fn)  # type: ignore[arg-type]


def norm_of(arrays: ArrayRecord) -> float:
    return float(arrays.to_torch_state_dict()["w"].norm())


# --- subclasses -----------------------------------------------------------------------------------


class Saving(AsyncRobust):
    """As in Flower's documentation: a strategy that saves each round's model."""

    saved: list[tuple[int, float]]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None and metrics is not None
        self.saved.append((server_round, norm_of(arrays)))
        return arrays, metrics


@BOTH
def test_a_subclass_sees_every_round_s_model_in_both_loops(start: Callable[..., Result]) -> None:
    strategy = Saving(**QUIET)  # type: ignore[arg-type]
    strategy.saved = []
    result = Federation().run(strategy, start=start)
    assert [server_round for server_round, _ in strategy.saved] == [1, 2, 3]
    assert strategy.saved[-1][1] == norm_of(result.arrays)
    assert result.train_metrics_clientapp[3] == {"loss": 1.0}
    plain = Federation().run(AsyncRobust(**QUIET), start=start)  # type: ignore[arg-type]
    assert norm_of(plain.arrays) == norm_of(result.arrays)


class Resetting(AsyncRobust):
    """Replaces each round's model, by a new record or in place."""

    in_place = False

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        other = Array(np.full(2, 10.0 * server_round, np.float32))
        if self.in_place:
            arrays["w"] = other
        return arrays if self.in_place else ArrayRecord({"w": other}), metrics


@BOTH
@pytest.mark.parametrize("in_place", [True, False])
def test_what_a_subclass_returns_is_the_model_that_nodes_are_sent(
    start: Callable[..., Result], in_place: bool
) -> None:
    strategy, federation = Resetting(**QUIET), Federation()  # type: ignore[arg-type]
    strategy.in_place = in_place
    result = federation.run(strategy, start=start)
    assert result.arrays.to_torch_state_dict()["w"].tolist() == [30.0, 30.0]
    sent = [float(point[0]) for point in federation.sent]
    if start is Strategy.start:
        assert sent == [4.0] * 4 + [10.0] * 4 + [20.0] * 4
    else:  # nodes that replied earlier were queried at once; the next reply moves the model
        assert max(sent[:7]) <= 4.0 and 8.0 < max(sent) < 20.0


@BOTH
@pytest.mark.parametrize(
    "wrong", [np.ones(3, np.float32), np.ones(2), np.full(2, np.nan, np.float32)]
)
def test_what_a_subclass_returns_must_fit_the_model(
    start: Callable[..., Result], wrong: Any
) -> None:
    class Wrong(AsyncRobust):
        def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
            super().aggregate_train(server_round, replies)
            return ArrayRecord({"w": Array(wrong)}), None

    with pytest.raises(ConfigError, match=r"^arrays="):
        Federation().run(Wrong(**QUIET), start=start)  # type: ignore[arg-type]


class Lifting(AsyncRobust):
    """Adds one to the model, once."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        arrays, metrics = super().aggregate_train(server_round, replies)
        assert arrays is not None
        w = arrays["w"].numpy() + (server_round == 2)
        return ArrayRecord({"w": Array(w)}), metrics


@BOTH
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_change_by_a_subclass_is_not_mistaken_for_training(
    start: Callable[..., Result], share: float
) -> None:
    """Nodes that learn nothing leave it as it is, whatever they were sent before."""
    strategy = Lifting(payload=Models(share), **QUIET)  # type: ignore[arg-type]
    with VirtualGrid(lambda message, _: Message(message.content, reply_to=message), 4) as grid:
        result = start(strategy, grid, ArrayRecord(START), 6)
    changed = result.arrays.to_torch_state_dict()["w"]
    torch.testing.assert_close(changed, START["w"] + 1)


# --- Flower's wrappers for differential privacy ---------------------------------------------------

SERVER_FIXED = DifferentialPrivacyServerSideFixedClipping
CLIENT_FIXED = DifferentialPrivacyClientSideFixedClipping
# flwr 1.21 has none of these three.
SERVER_ADAPTIVE = getattr(stock, "DifferentialPrivacyServerSideAdaptiveClipping", None)
CLIENT_ADAPTIVE = getattr(stock, "DifferentialPrivacyClientSideAdaptiveClipping", None)
adaptiveclipping_mod = getattr(client_mods, "adaptiveclipping_mod", None)
WRAPPERS: dict[str, tuple[Any, tuple[Any, ...], dict[str, float]]] = {
    "server, fixed": (SERVER_FIXED, (), {"clipping_norm": 1.0}),
    "client, fixed": (CLIENT_FIXED, (client_mods.fixedclipping_mod,), {"clipping_norm": 1.0}),
    "server, adaptive": (SERVER_ADAPTIVE, (), {"initial_clipping_norm": 1.0}),
    "client, adaptive": (CLIENT_ADAPTIVE, (adaptiveclipping_mod,), {"initial_clipping_norm": 1.0}),
}


EVERY_WRAPPER = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            wrapper is None or None in mods, reason="this release of Flower has no such wrapper"
        ),
    )
    for name, (wrapper, mods, _) in WRAPPERS.items()
]


def wrapped(name: str, noise: float) -> tuple[Any, Federation]:
    wrapper, mods, settings = WRAPPERS[name]
    inner = AsyncRobust(**QUIET)  # type: ignore[arg-type]
    strategy = wrapper(inner, noise_multiplier=noise, num_sampled_clients=4, **settings)
    return strategy, Federation(*mods)


@pytest.mark.parametrize("name", EVERY_WRAPPER)
def test_inside_a_wrapper_replies_are_clipped_and_nodes_are_sent_the_noisy_model(name: str) -> None:
    strategy, federation = wrapped(name, noise=0.0)
    result = federation.run(strategy, rounds=1)
    assert strategy.strategy.statistics().accepted == 4
    moved = START["w"] - result.arrays.to_torch_state_dict()["w"]
    # The first step waits for all four: two quarters of a vector that is clipped from 2.83 to 1.
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-5)
    np.random.seed(0)  # noqa: NPY002
    strategy, federation = wrapped(name, noise=0.3)
    returned: list[torch.Tensor] = []
    aggregate = strategy.aggregate_train

    def recording(server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = aggregate(server_round, replies)
        returned.append(arrays.to_torch_state_dict()["w"])
        return arrays, metrics

    strategy.aggregate_train = recording
    result = federation.run(strategy, rounds=3)
    points = [federation.sent[4 * k : 4 * k + 4] for k in range(3)]
    for sent, noisy in zip(points[1:], returned[:2], strict=True):
        assert all(torch.equal(point, noisy) for point in sent)
    assert torch.equal(result.arrays.to_torch_state_dict()["w"], returned[2])
    without, other = wrapped(name, noise=0.0)
    assert norm_of(other.run(without, rounds=3).arrays) != norm_of(result.arrays)


@since(1, 41, "the wrappers of flwr 1.21 fail on a counter, with any strategy inside")
@pytest.mark.parametrize("name", EVERY_WRAPPER)
def test_a_counter_of_batches_passes_through_the_wrappers(name: str) -> None:
    strategy, federation = wrapped(name, noise=0.0)
    result = federation.run(strategy, model={**START, "num_batches_tracked": torch.tensor(3)})
    assert strategy.strategy.statistics().accepted == 12
    counter = result.arrays.to_torch_state_dict()["num_batches_tracked"]
    assert counter == 3 and counter.dtype == torch.int64


@pytest.mark.parametrize("name", EVERY_WRAPPER)
def test_flower_s_clipping_fails_on_integer_arrays(name: str) -> None:
    """It scales every array in place, which integers refuse: the same with FedAvg inside."""
    strategy, federation = wrapped(name, noise=0.0)
    model = {**START, "n": torch.tensor([3, 4])}
    if name.startswith("server"):
        with pytest.raises(TypeError, match="int64"):
            federation.run(strategy, model=model)
    else:  # each client raises, and the wrapper leaves out the round
        federation.run(strategy, model=model)
        assert strategy.strategy.statistics().accepted == 0


def test_accounting_refuses_what_is_not_fedavg_in_flower_s_own_words() -> None:
    privacy = pytest.importorskip("flwr.supercore.privacy_accounting")
    method = privacy.SamplingMethod.NO_AMPLIFICATION

    class Accountant:
        config = SimpleNamespace(sampling_method=method)

    with pytest.raises(ValueError, match=r"FedAvg\.aggregate_train"):
        SERVER_FIXED(AsyncRobust(), 1.0, 1.0, 4, accountant=Accountant())  # type: ignore[arg-type]


def test_noise_moves_the_iterate_and_the_query_point_alike() -> None:
    strategy, _ = wrapped("server, fixed", noise=0.3)
    strategy.strategy = AsyncRobust(
        optimizer=AnyTimeSGD(0.1, gamma=0.5), payload=Models(), fraction_evaluate=0.0
    )
    result = Federation().run(strategy, rounds=3)
    assert bool(result.arrays.to_torch_state_dict()["w"].isfinite().all())
    assert strategy.strategy.statistics().steps == 9  # the first waits for all four


# --- early stop, callbacks ------------------------------------------------------------------------


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"norm": norm_of(arrays), "rounds": server_round, "list": [1.0]})


@pytest.mark.parametrize(
    ("stop", "rounds"),
    [
        (EarlyStop("rounds", at_least=3), 3),
        (EarlyStop("rounds", at_least=-1.0), 1),
        (EarlyStop("norm", at_most=0.0), 6),
        (EarlyStop("missing", at_least=0.0), 6),
        (EarlyStop("list", at_least=0.0), 6),
        (EarlyStop(seconds=2.5), 3),
        (EarlyStop("rounds", at_least=5, seconds=1.5), 2),
    ],
)
def test_a_run_ends_after_the_first_round_that_meets_its_early_stop(
    stop: EarlyStop, rounds: int, caplog: pytest.LogCaptureFixture
) -> None:
    rounds_ended: list[tuple[int, float, float]] = []

    def on_round_end(server_round: int, arrays: ArrayRecord, metrics: MetricRecord | None) -> None:
        assert metrics is not None
        rounds_ended.append((server_round, norm_of(arrays), metrics["norm"]))  # type: ignore[arg-type]

    strategy = AsyncRobust(callbacks=[stop, on_round_end], **QUIET)  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, logger="flwr"):
        result = Federation().run(strategy, 6, AsyncRobust.start, evaluate_fn=evaluate)
    assert list(result.evaluate_metrics_serverapp) == list(range(rounds + 1))
    assert [each[0] for each in rounds_ended] == list(range(1, rounds + 1))
    assert all(norm == metric for _, norm, metric in rounds_ended)
    assert norm_of(result.arrays) == rounds_ended[-1][1]
    assert strategy.statistics().accepted == 4 * rounds
    assert caplog.text.count("The run ends after round") == (rounds < 6)
    # A missing metric would stop nothing, so the log names it.
    sentence = f"no number '{stop.metric}' to stop by, but ['list', 'norm', 'rounds']"
    assert caplog.text.count(sentence) == (stop.metric in ("missing", "list"))


@given(st.floats(-10, 10), st.floats(-10, 10), st.floats(0, 100), st.floats(1, 50))
def test_a_metric_stops_a_run_on_the_requested_side(
    value: float, limit: float, elapsed: float, seconds: float
) -> None:
    metrics = {"m": value}
    assert (EarlyStop("m", at_least=limit).reached(metrics, elapsed) is None) == (value < limit)
    assert (EarlyStop("m", at_most=limit).reached(metrics, elapsed) is None) == (value > limit)
    assert (EarlyStop(seconds=seconds).reached(None, elapsed) is None) == (elapsed < seconds)
    both = EarlyStop("m", at_least=limit, seconds=seconds)
    assert (both.reached(metrics, elapsed) is None) == (value < limit and elapsed < seconds)
    assert EarlyStop("m", at_least=limit).reached({"m": float("nan")}, elapsed) is None


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({}, "metric"), ({"metric": "a"}, "metric"), ({"at_least": 0.5}, "metric"),
        ({"metric": "a", "at_least": 0.5, "at_most": 0.5}, "metric"),
        ({"at_most": 0.5, "seconds": 1.0}, "metric"), ({"metric": 3, "at_most": 1}, "metric"),
        ({"metric": "a", "at_least": "0.5"}, "at_least"), ({"seconds": 0.0}, "seconds"),
        ({"metric": "a", "at_most": float("nan")}, "at_most"), ({"seconds": "60"}, "seconds"),
    ],
)  # fmt: skip
def test_a_stop_that_cannot_work_is_refused(settings: dict[str, Any], argument: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EarlyStop(**settings)
    assert caught.value.argument == argument


def test_a_stop_by_a_metric_that_nobody_computes_is_refused_before_any_message() -> None:
    strategy, federation = AsyncRobust(callbacks=[EarlyStop("a", at_least=1.0)]), Federation()
    with pytest.raises(ConfigError, match=r"^callbacks=.*evaluate_fn"):
        federation.run(strategy, start=AsyncRobust.start)
    assert federation.sent == []


@pytest.mark.parametrize(
    "callback", [EarlyStop(seconds=9.0), lambda *_: None], ids=["EarlyStop", "function"]
)
def test_flower_s_loop_is_refused_where_it_would_ignore_a_callback(callback: Any) -> None:
    with pytest.raises(ConfigError, match=r"^callbacks=.*call start"):
        Federation().run(AsyncRobust(callbacks=[callback]))
