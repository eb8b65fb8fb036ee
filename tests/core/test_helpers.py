"""Helpers return what rules and strategies accept."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flwr_byzasync import ConfigError, buffer_names, byz_fraction
from flwr_byzasync._checks import check_byz_fraction
from flwr_byzasync.core.layout import ModelLayout

COUNTS = st.integers(1, 10_000).flatmap(
    lambda nodes: st.tuples(st.integers(0, (nodes - 1) // 2), st.just(nodes))
)


@given(COUNTS)
def test_every_minority_has_a_legal_fraction_at_most_five_points_above_its_share(
    counts: tuple[int, int],
) -> None:
    liars, nodes = counts
    fraction = check_byz_fraction("byz_fraction", byz_fraction(liars, nodes))
    excess = fraction - liars / nodes
    assert excess <= 0.05 + 1e-12
    assert excess > 0 if liars else fraction == 0


@given(COUNTS, st.integers(2, 5))
def test_the_fraction_depends_on_the_share_alone(counts: tuple[int, int], times: int) -> None:
    liars, nodes = counts
    assert byz_fraction(times * liars, times * nodes) == byz_fraction(liars, nodes)


@given(COUNTS)
def test_more_liars_never_mean_a_smaller_fraction(counts: tuple[int, int]) -> None:
    liars, nodes = counts
    assert liars == 0 or byz_fraction(liars - 1, nodes) < byz_fraction(liars, nodes)


def test_four_of_ten_have_the_fraction_of_the_reference_app() -> None:
    assert byz_fraction(4, 10) == 0.45


@pytest.mark.parametrize(
    ("liars", "nodes", "named"),
    [
        (5, 10, "byzantine_nodes"),
        (1, 2, "byzantine_nodes"),
        (-1, 10, "byzantine_nodes"),
        (0.4, 10, "byzantine_nodes"),
        (0, 0, "nodes"),
        (1, 2.5, "nodes"),
    ],
)
def test_counts_without_an_honest_majority_are_refused_by_name(
    liars: int, nodes: int, named: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{named}="):
        byz_fraction(liars, nodes)


class Shared(nn.Module):
    """A module with a buffer under two names, one that is not saved, and tied parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2)
        self.again = self.norm
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.register_buffer("scale", torch.ones(1))
        self.one = nn.Linear(2, 2, bias=False)
        self.other = nn.Linear(2, 2, bias=False)
        self.other.weight = self.one.weight


def test_buffers_are_those_of_the_state_dict_under_every_name() -> None:
    model = Shared()
    names = buffer_names(model)
    assert set(names) == {
        "scale",
        *(f"{m}.{b}" for m in ("norm", "again") for b in model.norm._buffers),
    }
    assert "scratch" in dict(model.named_buffers())
    layout = ModelLayout.of(model.state_dict(), names)
    assert {"one.weight", "other.weight", "norm.weight"} <= set(layout.parameters.names)
    assert set(layout.buffers.names) | set(layout.counters.names) == set(names)


def test_a_model_without_buffers_has_none() -> None:
    assert buffer_names(nn.Linear(1, 1)) == []


def test_anything_but_a_module_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"torch\.nn\.Module"):
        buffer_names(nn.Linear(1, 1).state_dict())  # type: ignore[arg-type]
