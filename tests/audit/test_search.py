"""The worst-case search: it approaches known constants, and breaks rules without one."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from flwr_byzasync.aggregators import CTMA, Aggregator, Mean, build
from flwr_byzasync.aggregators.bounds import sharp_bound
from flwr_byzasync.aggregators.monna import MoNNA
from flwr_byzasync.aggregators.rule import bound_of
from flwr_byzasync.audit import Case, exact_ratio, inequality, plain, worst_case
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.testing.mutants import (
    smoothed_by_the_farthest,
    trimmed_on_one_side,
    without_weights,
)

LAMBDAS = [0.25, *(pytest.param(lam, marks=pytest.mark.slow) for lam in (0.1, 0.4))]
BROKEN: dict[str, Aggregator] = {
    "mean": Mean(),
    "rfa": build("rfa"),
    "median without weights": without_weights,
    "Weiszfeld smoothed by the farthest row": smoothed_by_the_farthest,
    "trimming on one side": trimmed_on_one_side,
}


class Counted:
    """A rule that counts its calls and records its inputs."""

    def __init__(self, rule: Aggregator) -> None:
        self.rule, self.calls = rule, []

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        self.calls.append((rows.clone(), weights.clone()))
        return self.rule(rows, weights)


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize(
    ("name", "share", "evaluations"),
    [
        ("cwmed", 0.98, 1500),
        pytest.param("gm", 0.98, 1500, marks=pytest.mark.slow),
        pytest.param("ctma(cwmed)", 0.95, 5000, marks=pytest.mark.slow),
        pytest.param("ctma(gm)", 0.95, 3000, marks=pytest.mark.slow),
    ],
)
def test_the_search_comes_near_a_sharp_constant_and_never_above_it(
    name: str, share: float, evaluations: int, lam: float
) -> None:
    rule = build(name, byz_fraction=lam)
    bound = bound_of(rule, lam)
    assert bound is not None
    found = worst_case(rule, lam, evaluations=evaluations)
    assert share * bound <= found.ratio <= bound * (1 + 1e-9)


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("name", BROKEN)
def test_the_search_breaks_a_broken_rule(name: str, lam: float) -> None:
    assert worst_case(BROKEN[name], lam, evaluations=1000).ratio > 1e6 * sharp_bound(lam)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_search_breaks_trimming_around_the_mean(lam: float) -> None:
    assert worst_case(CTMA(Mean(), byz_fraction=lam), lam, evaluations=3000).ratio > 1e6


# --- what it returns is a case of the claim ------------------------------------------------------
def by_hand(rule: Aggregator, case: Case, lam: Fraction) -> float:
    """Check a case against the claim, and return its ratio from a fresh call."""
    held, total = int(case.weights[case.honest].sum()), int(case.weights.sum())
    assert (case.weights > 0).all() and held >= (1 - lam) * total
    result = rule(torch.from_numpy(case.rows), torch.from_numpy(case.weights))
    assert result.tolist() == case.result.tolist()
    share = case.weights[case.honest] / held
    mean = share @ case.rows[case.honest]
    variance = share @ ((case.rows[case.honest] - mean) ** 2).sum(axis=1)
    return float(((result.numpy() - mean) ** 2).sum() / variance)


@pytest.mark.parametrize("lam", [Fraction(0), Fraction(1, 3), Fraction(1, 10), Fraction(9, 20)])
def test_what_is_found_is_true_for_rows_that_may_be_honest(lam: Fraction) -> None:
    rule = build("cwmed")
    found = worst_case(rule, lam, evaluations=600, seed=3)
    assert by_hand(rule, found, lam) == pytest.approx(found.ratio, rel=1e-6)
    every = inequality.ratio(
        rule, torch.from_numpy(found.rows), torch.from_numpy(found.weights), lam
    )
    assert every >= found.ratio * (1 - 1e-6)


def test_a_share_with_many_digits_is_kept_exactly() -> None:
    found = worst_case(build("cwmed"), 1 / 3, evaluations=500)
    held = Fraction(int(found.weights[found.honest].sum()), int(found.weights.sum()))
    assert 0 <= held - (1 - Fraction(str(1 / 3))) < Fraction(1, 10**8)


def test_trusted_rows_are_honest() -> None:
    rule = MoNNA(byz_fraction=0.4, pivot=2)
    assert all(worst_case(rule, 0.4, evaluations=200, seed=s).honest[2] for s in range(5))


def test_the_same_seed_finds_the_same_case_and_another_seed_another() -> None:
    first, again, other = (
        worst_case(build("cwmed"), 0.3, evaluations=400, seed=s) for s in (5, 5, 6)
    )
    assert first.rows.tolist() == again.rows.tolist() and first.ratio == again.ratio
    assert first.rows.tolist() != other.rows.tolist()


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("evaluations", [100, pytest.param(1500, marks=pytest.mark.slow)])
def test_a_budget_is_kept(rows: int, evaluations: int) -> None:
    counted = Counted(build("cwmed"))
    worst_case(counted, 0.25, rows=rows, evaluations=evaluations)
    assert 0.9 * evaluations <= len(counted.calls) <= 1.1 * evaluations
    assert max(len(x) for x, _ in counted.calls) == rows
    assert {int(w.sum()) for _, w in counted.calls} == {10**9}


def test_a_result_that_is_not_finite_is_the_worst_there_is() -> None:
    found = worst_case(lambda rows, weights: rows[0] * torch.nan, 0.2, evaluations=100)
    assert found.ratio == np.inf


@pytest.mark.parametrize(
    ("argument", "settings"),
    [
        ("lam", {"lam": 0.5}),
        ("rows", {"rows": 1}),
        ("evaluations", {"evaluations": 99}),
        ("seed", {"seed": -1}),
    ],
)
def test_a_setting_that_cannot_work_is_refused(argument: str, settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError) as caught:
        worst_case(Mean(), **({"lam": 0.25} | settings))
    assert caught.value.argument == argument


# --- ratios --------------------------------------------------------------------------------------
def test_the_exact_ratio_is_exact_where_floats_are_not() -> None:
    rows = np.array([[1e8], [1e8 + 2.0**-20], [0.0]])
    weights, honest = np.array([1, 1, 1]), np.array([True, True, False])
    # The mean of G is a quarter of a unit of float64 away from both rows; ρ is 2⁻²¹.
    assert exact_ratio(rows, weights, honest, np.array([1e8 + 1.0])) == pytest.approx(
        (1 - 2.0**-21 - 1e-4) ** 2 * 2.0**42, rel=1e-6
    )


def test_rounding_of_equal_rows_does_not_count_as_unbounded() -> None:
    rows, weights, honest = np.ones((2, 1)), np.array([1, 1]), np.array([True, True])
    assert exact_ratio(rows, weights, honest, np.array([1.0 + 1e-15])) == 0.0
    assert exact_ratio(rows, weights, honest, np.array([1.0 + 1e-9])) == np.inf


def test_an_unbounded_case_stays_unbounded_in_round_numbers() -> None:
    worst = worst_case(Mean(), 0.1, evaluations=1000)
    plain_case = plain(Mean(), worst, 0.1)
    assert plain_case.ratio > 1e6 and plain_case.weights.sum() == 10
    assert (np.round(plain_case.rows, 3) == plain_case.rows).all()
    assert plain_case.weights[plain_case.honest].sum() >= 9


def test_a_case_in_round_numbers_is_about_as_bad_and_as_admissible() -> None:
    rule = build("ctma(cwmed)", byz_fraction=0.25)
    worst = worst_case(rule, 0.25, evaluations=1500)
    plain_case = plain(rule, worst, 0.25)
    assert plain_case.ratio >= 0.99 * worst.ratio
    assert by_hand(rule, plain_case, Fraction(1, 4)) == pytest.approx(plain_case.ratio, rel=1e-6)
    assert (np.round(plain_case.rows, 6) == plain_case.rows).all()
