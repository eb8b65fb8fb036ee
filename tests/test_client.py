"""The node half: one batch for both gradients, memory in Context.state, seeds that repeat."""

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from flwr_byzasync import Gradient, Query, client_app
from flwr_byzasync.estimators import Estimator, mu2, sgd
from tests.fakes import context_of


def query(value: float, count: int, number: int = 0, **extra: ArrayRecord) -> Message:
    arrays = ArrayRecord({"w": torch.tensor([[value, value]])})
    keys = {"byz.query": number, "byz.count": count, "byz.payload": "momentum"}
    content = RecordDict({"arrays": arrays, "config": ConfigRecord(keys), **extra})
    return Message(content, dst_node_id=1, message_type="train")


def noisy(query: Query) -> Gradient:
    """Gradient x + z with the batch z drawn from the query's generator."""
    z = torch.randn(1, 2, generator=query.generator)
    return Gradient({"w": query.parameters["w"] + z}, metrics={"z": float(z[0, 0])})


def sent(reply: Message) -> torch.Tensor:
    return reply.content["arrays"].to_torch_state_dict()["w"]


def answer(
    app: ClientApp, context: Context, value: float, count: int, number: int = 0
) -> torch.Tensor:
    return sent(app(query(value, count, number), context))


def test_a_reply_has_the_model_s_arrays_and_echoes_the_query() -> None:
    reply = client_app(noisy, estimator=sgd())(query(1.0, 0, number=9), context_of())
    assert set(reply.content) == {"arrays", "metrics", "config"}
    assert dict(reply.content["config"]) == {"byz.query": 9, "byz.payload": "momentum"}
    assert sent(reply).shape == (1, 2)


def test_mu2_uses_one_batch_for_both_points() -> None:
    app, context = client_app(noisy, estimator=mu2(beta=0.25)), context_of()
    first = answer(app, context, 1.0, 0)
    second = answer(app, context, 3.0, 1)
    z1 = first - 1.0
    z2 = second - 3.0 - 0.75 * (first - 1.0) + 0.0
    # d2 = (3 + z2) + 0.75 (d1 − (1 + z2)) = 3 + 0.25 z2 + 0.75 z1: the noise is averaged.
    expected_z2 = (second - 3.0 - 0.75 * z1) / 0.25
    fresh = answer(client_app(noisy, estimator=sgd()), context_of(), 3.0, 1) - 3.0
    torch.testing.assert_close(expected_z2, fresh)
    assert not torch.allclose(z1, fresh) and z2.shape == (1, 2)


def test_batches_depend_on_seed_partition_and_count_and_on_nothing_else() -> None:
    app = client_app(noisy, estimator=sgd())

    def draw(seed: int = 1, partition: int = 0, count: int = 0, number: int = 0) -> list[float]:
        torch.rand(1)  # the global generator must not matter
        context = context_of(partition, seed=seed)
        return answer(app, context, 0.0, count, number).flatten().tolist()

    assert draw() == draw(number=77)
    assert len({tuple(draw(**{key: 5})) for key in ("seed", "partition", "count")}) == 3
    assert draw(seed=5) != draw()


def test_memory_survives_between_messages_and_a_node_without_it_starts_afresh() -> None:
    app, context = client_app(noisy, estimator=mu2()), context_of()
    answer(app, context, 1.0, 0)
    remembered = answer(app, context, 3.0, 1)
    afresh = answer(app, context_of(), 3.0, 1)
    assert not torch.equal(remembered, afresh)
    torch.testing.assert_close(afresh, answer(client_app(noisy, estimator=sgd()),
                                              context_of(), 3.0, 1))  # fmt: skip


def test_a_vector_that_is_not_finite_is_not_remembered() -> None:
    app, context = client_app(noisy, estimator=mu2()), context_of()
    assert not answer(app, context, float("inf"), 0).isfinite().any()
    assert answer(app, context, 1.0, 0).isfinite().all()


def test_memory_of_another_model_is_not_used() -> None:
    app, context = client_app(noisy, estimator=mu2()), context_of()
    context.state["byz.memory"] = ArrayRecord({"0": torch.ones(7), "1": torch.ones(7)})
    assert torch.equal(answer(app, context, 1.0, 0), answer(app, context_of(), 1.0, 0))


def test_buffers_come_from_the_query_s_point_and_the_others_return_unchanged() -> None:
    def gradient(query: Query) -> Gradient:
        query.buffers["mean"].add_(query.parameters["w"].sum())
        return Gradient({"w": query.parameters["w"]}, buffers={"mean": query.buffers["mean"]})

    app, context = client_app(gradient, estimator=mu2()), context_of()
    for value in (1.0, 5.0):
        buffers = ArrayRecord({"mean": torch.tensor([0.5]), "n": torch.tensor(3)})
        reply = app(query(value, 0, buffers=buffers), context)
        returned = reply.content["buffers"].to_torch_state_dict()
        assert list(returned) == ["mean", "n"] and returned["n"] == 3
        assert returned["mean"].tolist() == [0.5 + 2 * value]


def test_estimator_and_device_can_be_chosen_from_the_context() -> None:
    def estimator(context: Context) -> Estimator:
        return mu2(beta=float(context.run_config["beta"]))

    app = client_app(noisy, estimator=estimator, device=lambda context: "cpu")
    context = context_of(beta=1.0)
    answer(app, context, 1.0, 0)
    torch.testing.assert_close(
        answer(app, context, 3.0, 1),
        answer(client_app(noisy, estimator=sgd()), context_of(), 3.0, 1),
    )


def test_a_gradient_function_that_raises_is_flower_s_to_report() -> None:
    def gradient(query: Query) -> Gradient:
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        client_app(gradient, estimator=sgd())(query(1.0, 0), context_of())
