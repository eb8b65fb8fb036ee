"""Laws of the weight policies and of the cap on one node's share."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from flwr_byzasync import ConfigError
from flwr_byzasync.weights import (
    POLICIES,
    Capped,
    Counts,
    StalenessDiscount,
    Uniform,
    WeightPolicy,
    capped,
    weight_policy,
)

TIGHT = 1e-12
"""Rounding of sums of a few dozen floats."""

many = st.one_of(st.integers(1, 50), st.integers(1, 10**12))
counts_of = st.lists(many, min_size=1, max_size=12).map(torch.tensor)
floats_of = st.lists(st.floats(1e-6, 1e9), min_size=1, max_size=12).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)
weights_of = st.one_of(counts_of, floats_of)
shares = st.floats(0.01, 1.0)


def cap_of(share: float, weights: Tensor) -> float:
    return max(share, 1.0 / len(weights))


@given(weights_of, shares, st.data())
def test_any_f_nodes_hold_at_most_f_times_the_cap(
    weights: Tensor, share: float, data: st.DataObject
) -> None:
    liars = data.draw(st.sets(st.integers(0, len(weights) - 1), min_size=1))
    u = capped(weights, share).double()
    held = float(u[sorted(liars)].sum())
    assert held <= len(liars) * cap_of(share, weights) * float(u.sum()) * (1 + TIGHT)


@given(weights_of, shares)
def test_the_cut_is_the_largest_that_bounds_every_share(weights: Tensor, share: float) -> None:
    u = capped(weights, share).double()
    limit, bound = float(u.max()), cap_of(share, weights)
    assert limit <= bound * float(u.sum()) * (1 + TIGHT)
    assume(limit < float(weights.max()) * (1 - 1e-6))
    more = weights.double().clamp(max=limit * (1 + 1e-6))
    # g falls by at least 1 − c k there, k the weights that are cut; c k < 1, but not by much.
    cut = int((weights.double() > limit * (1 + 1e-6)).sum())
    assume(1.0 - bound * cut > 1e-4)
    assert float(more.max()) > bound * float(more.sum())


@given(weights_of, shares)
def test_a_capped_weight_is_the_weight_or_the_common_limit(weights: Tensor, share: float) -> None:
    u = capped(weights, share).double()
    same = u == weights.double()
    assert bool((u <= weights.double()).all())
    assert bool((same | (u == u.max())).all())
    assert bool((u > 0).all())


@given(weights_of, shares)
def test_the_order_of_the_weights_is_kept(weights: Tensor, share: float) -> None:
    u = capped(weights, share)[weights.argsort()]
    assert bool((u.diff() >= 0).all())


@given(weights_of, shares)
def test_weights_within_the_cap_are_returned_untouched(weights: Tensor, share: float) -> None:
    within = float(weights.max()) <= share * float(weights.sum()) * (1 - TIGHT)
    u = capped(weights, share)
    assert (u is weights) or not within
    assert capped(weights, 1.0) is weights


@given(weights_of, shares)
def test_capping_twice_is_capping_once(weights: Tensor, share: float) -> None:
    once = capped(weights, share)
    assert capped(once, share) is once


@given(weights_of, shares, st.integers(-8, 8))
def test_scaling_the_weights_scales_what_is_capped(
    weights: Tensor, share: float, power: int
) -> None:
    scaled = capped(weights.double() * 2.0**power, share)
    assert torch.equal(scaled, capped(weights, share).double() * 2.0**power)


@given(counts_of, shares, st.lists(many, min_size=1, max_size=3))
def test_a_flooding_liar_s_share_is_bounded_for_every_count_it_reaches(
    honest: Tensor, share: float, floods: list[int]
) -> None:
    for reached in (*floods, 2**62):
        counts = torch.cat([honest, torch.tensor([reached])])
        u = capped(counts, share).double()
        assert float(u[-1]) <= cap_of(share, counts) * float(u.sum()) * (1 + TIGHT)


@given(counts_of, shares, many)
def test_more_replies_never_lower_a_node_s_own_weight(
    honest: Tensor, share: float, count: int
) -> None:
    less, more = (
        float(capped(torch.cat([honest, torch.tensor([n])]), share)[-1]) for n in (count, count + 1)
    )
    assert more >= less * (1 - TIGHT)


@given(counts_of)
def test_a_cap_below_one_mth_makes_all_nodes_equal(counts: Tensor) -> None:
    u = capped(counts, 0.5 / len(counts)).double()
    torch.testing.assert_close(u, counts.min().double().expand(len(counts)), rtol=1e-12, atol=0)


def test_without_a_cap_a_flooding_liar_passes_every_share() -> None:
    counts = torch.tensor([10] * 9 + [10_000])
    assert float(Counts()(counts, counts)[-1]) / float(counts.sum()) > 0.99


def test_rows_of_weight_zero_stay_at_zero_and_do_not_count_as_nodes() -> None:
    assert capped(torch.tensor([0.0, 0.0, 5.0, 1.0]), 0.3).tolist() == [0.0, 0.0, 1.0, 1.0]
    zeros = torch.zeros(3)
    assert capped(zeros, 0.3) is zeros


@pytest.mark.parametrize(
    "policy", [*(make() for make in POLICIES.values()), Capped(Uniform(), 0.5)]
)
@given(counts=counts_of, age=st.integers(0, 10**6))
def test_every_policy_gives_positive_weights_and_leaves_its_inputs_unwritten(
    policy: WeightPolicy, counts: Tensor, age: int
) -> None:
    ages = torch.arange(len(counts)) * age
    before = counts.clone(), ages.clone()
    u = policy(counts, ages)
    assert u.shape == counts.shape and bool((u > 0).all() and u.isfinite().all())
    assert torch.equal(counts, before[0]) and torch.equal(ages, before[1])


def test_counts_and_uniform_weights_are_whole_numbers_on_the_host() -> None:
    counts = torch.tensor([3, 1, 7])
    assert Counts()(counts, counts) is counts
    assert Uniform()(counts, counts).tolist() == [1, 1, 1]
    assert Uniform()(counts, counts).dtype == torch.int64


@given(counts_of, st.floats(0.01, 10))
def test_a_fresh_row_keeps_its_count_and_an_older_one_weighs_less(
    counts: Tensor, power: float
) -> None:
    policy, zero = StalenessDiscount(power), torch.zeros_like(counts)
    assert torch.equal(policy(counts, zero), counts.double())
    young, old = policy(counts, zero + 3), policy(counts, zero + 4)
    assert bool((old < young).all()) and bool((young < counts).all())


def test_the_staleness_discount_is_the_polynomial_one() -> None:
    u = StalenessDiscount(power=2.0)(torch.tensor([9, 4]), torch.tensor([2, 1]))
    assert u.tolist() == [1.0, 1.0]


def test_names_and_policies_mean_what_they_say() -> None:
    assert weight_policy("counts") == Counts()
    assert weight_policy("uniform") == Uniform()
    assert weight_policy("staleness") == StalenessDiscount(0.5)
    assert weight_policy(StalenessDiscount(1.0)) == StalenessDiscount(1.0)


def negative(counts: Tensor, ages: Tensor) -> Tensor:
    return -counts


def scalar(counts: Tensor, ages: Tensor) -> Tensor:
    return counts.sum()


def nothing(counts: Tensor, ages: Tensor) -> Tensor:
    return torch.zeros(2)


def infinite(counts: Tensor, ages: Tensor) -> Tensor:
    return counts / 0.0


def always_two(counts: Tensor, ages: Tensor) -> Tensor:
    return torch.ones(2)


def raises(counts: Tensor, ages: Tensor) -> Tensor:
    raise KeyError


@pytest.mark.parametrize(
    "weights",
    ["count", 3, None, Uniform, max, negative, scalar, nothing, infinite, always_two, raises],
)
def test_what_gives_no_weights_is_refused_by_name(weights: object) -> None:
    with pytest.raises(ConfigError, match=r"^weights=.* is not legal: it must be .*; pass "):
        weight_policy(weights)  # type: ignore[arg-type]


def test_weights_whose_sum_is_beyond_float64_are_capped_all_the_same() -> None:
    huge = torch.tensor([1e308, 1.5e308, 3e307], dtype=torch.float64)
    u = capped(huge, max_share=0.4)
    assert bool(u.isfinite().all()) and float(u.max() / u.sum()) == pytest.approx(0.4)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, float("nan"), "0.2", True])
def test_a_cap_outside_its_interval_is_refused(share: object) -> None:
    with pytest.raises(ConfigError, match=r"^max_share=.*\(0, 1\]; pass"):
        Capped(Counts(), share)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["counts", Counts, None, lambda counts, ages: -counts])
def test_a_cap_on_what_is_no_policy_is_refused(policy: object) -> None:
    with pytest.raises(ConfigError, match=r"^(policy|weights)=.*pass "):
        Capped(policy, 0.2)  # type: ignore[arg-type]


@pytest.mark.parametrize("power", [0.0, -1.0, 11, float("inf"), "1"])
def test_a_power_outside_its_interval_is_refused(power: object) -> None:
    with pytest.raises(ConfigError, match=r"^power=.*\(0, 10\]; pass"):
        StalenessDiscount(power)  # type: ignore[arg-type]
