"""A mod makes any ClientApp Byzantine: what is sent, what is remembered, when it is sent."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flwr_byzasync import ConfigError, Gradient, Query, client_app
from flwr_byzasync.adversary.client_mods import attack_mod
from flwr_byzasync.attacks import (
    Empire,
    Flood,
    Gaussian,
    Knowledge,
    Little,
    Mimic,
    MinMax,
    SignFlip,
    Sleeper,
    SlowDown,
    StaleReplay,
    VectorAttack,
)
from flwr_byzasync.estimators import mu2, sgd
from tests.fakes import FakeClock, context_of

Tensors = dict[str, torch.Tensor]


def noisy(query: Query) -> Gradient:
    """Gradient x + z with the batch z drawn from the query's generator."""
    z = torch.randn(1, 2, generator=query.generator)
    return Gradient({"w": query.parameters["w"] + z}, metrics={"z": float(z[0, 0])})


def query(value: float, count: int = 0, kind: str = "train") -> Message:
    """Return a query as AsyncRobust sends it."""
    keys = {"byz.query": 0, "byz.count": count, "byz.payload": "momentum"}
    arrays = ArrayRecord({"w": torch.tensor([[value, value]])})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord(keys)})
    return Message(content, dst_node_id=1, message_type=kind)


def sent(reply: Message, key: str = "arrays") -> Tensors:
    return reply.content.array_records[key].to_torch_state_dict()


def vector_of(reply: Message) -> list[float]:
    return sent(reply)["w"].flatten().tolist()


def lying(attack: VectorAttack | None, **settings: Callable[..., object]) -> ClientApp:
    """Return a ClientApp that honestly sends the query's arrays, with an attack as a mod."""
    mod = attack_mod(lambda context: attack, **settings)  # type: ignore[arg-type]
    return client_app(lambda query: Gradient(dict(query.parameters)), estimator=sgd(), mods=[mod])


def trained(model: Tensors, attack: VectorAttack, **after: torch.Tensor) -> Tensors:
    """Return what a FedAvg-style app sends whose training gives `after`, under an attack."""
    app = ClientApp(mods=[attack_mod(lambda context: attack)])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        # A mod that looked at the query afterwards would find nothing.
        message.content["arrays"] = ArrayRecord({})
        content = RecordDict(
            {"arrays": ArrayRecord(dict(after)), "metrics": MetricRecord({"num-examples": 7})}
        )
        return Message(content, reply_to=message)

    content = RecordDict({"arrays": ArrayRecord(dict(model)), "config": ConfigRecord({"lr": 0.1})})
    return sent(app(Message(content, dst_node_id=1, message_type="train"), context_of()))


def test_a_sign_flipping_node_negates_what_it_sends_and_nothing_else() -> None:
    mod = attack_mod(lambda context: SignFlip(scale=2.0))
    liar = client_app(noisy, estimator=mu2(), mods=[mod])
    honest = client_app(noisy, estimator=mu2())
    at_liar, at_honest = context_of(), context_of()
    for count, value in enumerate((1.0, 3.0, -2.0)):
        # The recursion stays honest: every vector is the honest one, negated.
        lie = sent(liar(query(value, count), at_liar))["w"]
        assert torch.equal(lie, -2.0 * sent(honest(query(value, count), at_honest))["w"])


def test_a_mod_leaves_honest_nodes_alone() -> None:
    context = context_of()
    assert vector_of(lying(None)(query(3.0), context)) == [3.0, 3.0]
    assert "byz.attack" not in context.state


def test_a_mod_touches_train_replies_only() -> None:
    app = lying(SignFlip())

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    assert vector_of(app(query(1.0, kind="evaluate"), context_of())) == [1.0, 1.0]


def test_only_some_nodes_lie_if_the_attack_is_chosen_from_the_context() -> None:
    def attack(context: Context) -> VectorAttack | None:
        return SignFlip() if context.node_config["partition-id"] == 1 else None

    app = client_app(
        lambda query: Gradient(dict(query.parameters)), estimator=sgd(), mods=[attack_mod(attack)]
    )
    replies = [vector_of(app(query(1.0), context_of(node))) for node in (0, 1)]
    assert replies == [[1.0, 1.0], [-1.0, -1.0]]


# --- models as replies ---------------------------------------------------------------------------
def test_where_replies_are_models_the_pseudo_gradient_is_attacked() -> None:
    model, after = torch.tensor([1.0, 2.0]), torch.tensor([1.5, 5.0])
    assert torch.equal(trained({"w": model}, SignFlip(), w=after)["w"], 2 * model - after)
    # The step is reversed, and three times as long:
    lie = trained({"w": model}, SignFlip(scale=3.0), w=after)["w"]
    assert torch.equal(lie, model + 3 * (model - after))


def test_integer_arrays_of_a_model_survive_and_order_and_dtypes_stay() -> None:
    model = {
        "wide": torch.ones(2, dtype=torch.float64),
        "steps": torch.tensor(3),
        "half": torch.ones(1, 2, dtype=torch.float16),
        "w": torch.ones(2),
    }
    after = {name: tensor + 1 for name, tensor in model.items()}
    lie = trained(model, SignFlip(), **after)
    assert list(lie) == list(model)
    assert [x.dtype for x in lie.values()] == [x.dtype for x in model.values()]
    assert [x.shape for x in lie.values()] == [x.shape for x in model.values()]
    assert int(lie.pop("steps")) == 4
    assert all(bool((x == 0).all()) for x in lie.values())


def test_a_reply_that_does_not_match_the_query_s_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^reply="):
        trained({"w": torch.ones(2)}, SignFlip(), w=torch.ones(3))


def test_an_unknown_payload_is_refused() -> None:
    message = query(1.0)
    message.content.config_records["config"]["byz.payload"] = "riddle"
    with pytest.raises(ConfigError, match=r"^byz\.payload='riddle'"):
        lying(SignFlip())(message, context_of())


def test_buffers_in_their_own_record_and_other_records_stay_honest() -> None:
    message = query(1.0)
    message.content["buffers"] = ArrayRecord({"mean": torch.tensor([0.5])})
    reply = lying(SignFlip())(message, context_of())
    assert vector_of(reply) == [-1.0, -1.0] and float(sent(reply, "buffers")["mean"]) == 0.5
    assert dict(reply.content["config"]) == {"byz.query": 0, "byz.payload": "momentum"}


def test_records_of_other_names_are_used() -> None:
    mod = attack_mod(lambda context: SignFlip(), arrayrecord_key="x", configrecord_key="c")
    app = client_app(
        lambda query: Gradient(dict(query.parameters)), estimator=sgd(), mods=[mod],
        arrayrecord_key="x", configrecord_key="c",
    )  # fmt: skip
    original = query(1.0).content
    content = RecordDict({"x": original["arrays"], "c": original["config"]})
    reply = app(Message(content, dst_node_id=1, message_type="train"), context_of())
    assert sent(reply, "x")["w"].tolist() == [[-1.0, -1.0]]


# --- what a node remembers -----------------------------------------------------------------------
def test_the_number_of_the_reply_survives_between_messages() -> None:
    app, context = lying(Sleeper(honest_for=2, hostile_for=1)), context_of()
    replies = [vector_of(app(query(1.0), context))[0] for _ in range(6)]
    assert replies == [1.0, 1.0, -1.0, 1.0, 1.0, -1.0]


def test_honest_vectors_survive_between_messages_and_no_more_than_are_needed() -> None:
    app, context = lying(StaleReplay(age=2)), context_of()
    replies = [vector_of(app(query(value), context))[0] for value in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert replies == [1.0, 1.0, 1.0, 2.0, 3.0]
    assert list(context.state["byz.attack"]) == ["replies", "0", "1"]


def test_an_attack_without_memory_keeps_no_vectors() -> None:
    app, context = lying(SignFlip()), context_of()
    app(query(1.0), context)
    assert list(context.state["byz.attack"]) == ["replies"]


def test_a_vector_that_is_not_finite_is_not_remembered() -> None:
    app, context = lying(StaleReplay(age=9)), context_of()
    replies = [vector_of(app(query(value), context))[0] for value in (float("inf"), 2.0, 3.0)]
    assert replies == [float("inf"), 2.0, 2.0]


def test_vectors_of_another_model_are_not_used() -> None:
    app, context = lying(StaleReplay(age=9)), context_of()
    app(query(1.0), context)
    context.state["byz.attack"]["0"] = ArrayRecord({"x": torch.ones(7)})["x"]
    assert vector_of(app(query(2.0), context)) == [2.0, 2.0]


def test_an_attack_is_passed_no_more_vectors_than_it_needs() -> None:
    context = context_of()
    for value in (9.0, 1.0, 5.0):
        lying(Empire(epsilon=1.0, memory=3))(query(value), context)
    assert vector_of(lying(Empire(epsilon=1.0, memory=1))(query(3.0), context)) == [-4.0, -4.0]


def test_colluders_estimate_from_the_node_s_own_vectors() -> None:
    app, context = lying(Little(z=1.0, memory=2)), context_of()
    replies = [vector_of(app(query(value), context))[0] for value in (9.0, 1.0, 5.0, 3.0)]
    rows = [[9.0], [9.0, 1.0], [9.0, 1.0, 5.0], [1.0, 5.0, 3.0]]
    assert replies == pytest.approx([float(np.mean(x) - np.std(x)) for x in rows])


def test_a_base_s_vectors_are_remembered_for_it() -> None:
    app, context = lying(Flood(base=Empire(epsilon=1.0))), context_of()
    assert [vector_of(app(query(value), context))[0] for value in (2.0, 4.0)] == [-2.0, -3.0]


def test_an_attack_that_needs_everything_is_refused_in_favour_of_omniscient_grid() -> None:
    for attack in (Mimic(), Little(z="optimised"), Sleeper(base=Empire(epsilon="optimised"))):
        with pytest.raises(ConfigError, match="OmniscientGrid"):
            lying(attack)(query(1.0), context_of())


def test_a_strength_that_needs_counts_is_refused_where_there_are_none() -> None:
    with pytest.raises(ConfigError, match=r"z='paper'.*pass for example z=1\.5"):
        lying(Little())(query(1.0), context_of())


def test_what_a_node_knows_is_its_own_and_depends_on_seed_partition_and_reply() -> None:
    spied: list[Knowledge] = []

    class Spy(MinMax):
        def craft(self, honest: torch.Tensor, knowledge: Knowledge = Knowledge()) -> torch.Tensor:  # noqa: B008
            spied.append(knowledge)
            return honest.clone()

    context = context_of()
    for _ in range(2):
        lying(Spy())(query(1.0), context)
    assert [known.reply for known in spied] == [0, 1]
    assert spied[1].rows is not None and spied[1].rows.tolist() == [[1.0, 1.0]] * 2
    assert spied[1].weights is not None and spied[1].weights.tolist() == [1, 1]
    assert spied[1].rule is None and spied[1].honest_weight is spied[1].byzantine_weight is None

    def draw(seed: int = 1, partition: int = 0) -> list[list[float]]:
        torch.rand(1)  # the global generator must not matter
        app, node = lying(Gaussian()), context_of(partition, seed=seed)
        return [vector_of(app(query(1.0), node)) for _ in range(2)]

    assert draw() == draw() and draw()[0] != draw()[1]
    assert draw()[0] not in (draw(seed=2)[0], draw(partition=1)[0])


# --- when it is sent -----------------------------------------------------------------------------
def slow_app(attack: VectorAttack, clock: FakeClock) -> ClientApp:
    """Return a ClientApp whose honest work takes 2 s of a fake clock."""

    def gradient(query: Query) -> Gradient:
        clock.sleep(2.0)
        return Gradient(dict(query.parameters))

    mod = attack_mod(lambda context: attack, sleep=clock.sleep, clock=clock)
    return client_app(gradient, estimator=sgd(), mods=[mod])


def test_a_delay_is_slept_after_the_time_that_honest_work_took() -> None:
    clock = FakeClock()
    reply = slow_app(SlowDown(total_delay=30.0, base=SignFlip()), clock)(query(1.0), context_of())
    assert clock.now == 30.0 and vector_of(reply) == [-1.0, -1.0]


def test_time_already_spent_is_not_recovered() -> None:
    clock = FakeClock()
    slow_app(Flood(), clock)(query(1.0), context_of())
    assert clock.now == 2.0


def test_on_a_virtual_clock_nothing_sleeps() -> None:
    clock, context = FakeClock(), context_of()
    context.node_config["virtual-clock"] = True
    reply = slow_app(SlowDown(total_delay=30.0, base=SignFlip()), clock)(query(1.0), context)
    assert clock.now == 2.0 and vector_of(reply) == [-1.0, -1.0]


def test_draws_of_a_delay_are_seeded_by_the_reply() -> None:
    class Jitter(SlowDown):
        def delay(self, rng: np.random.Generator, honest_delay: float) -> float:
            return float(rng.uniform(1.0, 2.0))

    def times() -> list[float]:
        clock, context, past = FakeClock(), context_of(seed=1), [0.0]
        for _ in range(3):
            slow_app(Jitter(), clock)(query(1.0), context)
            past.append(clock.now)
        return np.diff(past).round(9).tolist()

    assert times() == times() and len(set(times())) == 3


# --- replies without content ---------------------------------------------------------------------
def test_a_client_app_that_raises_or_sends_nothing_is_left_alone() -> None:
    def raising(query: Query) -> Gradient:
        raise RuntimeError("boom")

    mod, context = attack_mod(lambda context: SignFlip()), context_of()
    with pytest.raises(RuntimeError, match="boom"):
        client_app(raising, estimator=sgd(), mods=[mod])(query(1.0), context)

    failed = Message(Error(2, "no"), reply_to=query(1.0))
    assert mod(query(1.0), context, lambda message, context: failed) is failed
    empty = Message(RecordDict(), reply_to=query(1.0))
    assert mod(query(1.0), context, lambda message, context: empty) is empty
    assert len(empty.content) == 0 and "byz.attack" not in context.state
