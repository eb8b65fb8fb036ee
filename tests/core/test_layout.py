"""A model's arrays and the flat vectors that stand for them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_byzasync import ConfigError
from flwr_byzasync.core.layout import Layout, ModelLayout, statistics_of

shapes = st.lists(st.lists(st.integers(0, 3), max_size=3).map(tuple), min_size=1, max_size=5)


@given(shapes)
def test_flatten_and_unflatten_are_inverse(sizes: list[tuple[int, ...]]) -> None:
    tensors = {f"p{k}": torch.randn(shape) for k, shape in enumerate(sizes)}
    layout = Layout.of(tensors)
    back = layout.unflatten(layout.flatten(tensors))
    assert list(back) == list(tensors)
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_flat_vectors_are_at_least_float32_and_as_wide_as_the_widest() -> None:
    half = Layout.of({"a": torch.zeros(1, dtype=torch.float16)})
    mixed = Layout.of({"a": torch.zeros(1), "b": torch.zeros(1, dtype=torch.float64)})
    assert (half.dtype, mixed.dtype) == (torch.float32, torch.float64)
    assert half.unflatten(torch.ones(1))["a"].dtype == torch.float16


def test_integers_stay_exact_in_a_flat_vector() -> None:
    large = torch.tensor(2**60 + 1)
    layout = Layout.of({"n": large, "flag": torch.tensor(True)})
    back = layout.unflatten(layout.flatten({"n": large, "flag": torch.tensor(True)}))
    assert layout.dtype == torch.int64
    assert back["n"] == large and back["flag"].dtype == torch.bool


def test_a_model_is_split_into_parameters_buffers_and_counters() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    buffers = [name for name, _ in model.named_buffers()]
    layout = ModelLayout.of(model.state_dict(), buffers)
    assert layout.parameters.names == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert layout.buffers.names == ("1.running_mean", "1.running_var")
    assert layout.counters.names == ("1.num_batches_tracked",)
    assert layout.order == tuple(model.state_dict())


def test_groups_merge_in_the_user_s_order() -> None:
    tensors = {"b": torch.zeros(1), "n": torch.tensor(1), "a": torch.ones(1)}
    layout = ModelLayout.of(tensors, buffers=["b"])
    assert list(layout.merge({"a": tensors["a"]}, {"b": tensors["b"]}, {"n": tensors["n"]})) == [
        "b", "n", "a",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("tensors", "buffers", "names"),
    [
        ({}, (), "initial_arrays"),
        ({"n": torch.tensor([1, 2])}, (), "initial_arrays"),
        ({"w": torch.empty(0)}, (), "initial_arrays"),
        ({"w": torch.ones(2)}, ("w",), "initial_arrays"),
        ({"w": torch.tensor([float("nan")])}, (), r"initial_arrays\['w'\]"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, (), r"initial_arrays\['w'\]"),
        ({"w": torch.ones(2)}, ("v",), "buffers"),
    ],
)
def test_a_model_that_cannot_be_trained_is_refused_by_name(
    tensors: dict[str, torch.Tensor], buffers: tuple[str, ...], names: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{names}=.* is not legal: it must be"):
        ModelLayout.of(tensors, buffers)


def test_batch_norm_statistics_are_detected_by_their_counters() -> None:
    norm = torch.nn.BatchNorm1d(2)
    inner = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    model = torch.nn.Sequential(inner, torch.nn.LayerNorm(2), norm)
    found = statistics_of(model.state_dict())
    floating = [k for k, b in model.named_buffers() if b.is_floating_point()]
    assert list(found) == floating and len(found) == 4
    assert statistics_of(norm.state_dict()) == ("running_mean", "running_var")
    # Without its counter a name proves nothing.
    assert statistics_of(["running_mean", "a.running_var", "b.num_batches_tracked"]) == ()
