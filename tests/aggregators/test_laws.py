"""The declared laws of every rule, and what holds for all rules."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from flwr_byzasync.aggregators import Aggregator, CoordinateWiseMedian, Law, build, discover
from flwr_byzasync.aggregators.rule import laws_of
from flwr_byzasync.testing import LawError, Weighted
from flwr_byzasync.testing.cases import Trial
from flwr_byzasync.testing.conformance import check_edges, check_laws, claim_of
from flwr_byzasync.testing.edges import EDGES
from flwr_byzasync.testing.laws import LAWS
from tests.generators import every_rule, rule_names, search, weighted

RULES = every_rule()

every = pytest.mark.parametrize(
    "rule", [pytest.param(rule, id=name) for name, rule in RULES.items()]
)


def test_every_rule_is_under_test() -> None:
    assert set(RULES) == set(rule_names()) and len(RULES) >= len(discover())


# --- the laws, by the kit that a third party uses ----------------------------------------------
@every
def test_a_rule_keeps_the_laws_that_it_declares(rule: Aggregator) -> None:
    for check in EDGES:
        check(claim_of(rule))
    check_laws(claim_of(rule), search(part=8))


@pytest.mark.slow
@every
def test_a_long_search_breaks_no_law_that_a_rule_declares(rule: Aggregator) -> None:
    # A composition has its parts' laws: each part is searched alone as well.
    check_edges(claim_of(rule), seconds=60.0)
    check_laws(claim_of(rule), search(part=4 if hasattr(rule, "base") else 1))


# --- a law that is not declared does not hold --------------------------------------------------
def of(rows: list[list[float]], weights: list[int]) -> Trial:
    case = Weighted(torch.tensor(rows, dtype=torch.float64), torch.tensor(weights))
    order = tuple(reversed(range(len(weights))))
    return Trial(case, order, torch.ones(1, dtype=torch.float64), 2.0**30, 3, 0.0)


UNDECLARED = [
    # nu = 1e-6 is a length: rows closer than that are averaged, the same rows apart are not.
    ("rfa", Law.SCALE, of([[0.0], [0.0], [1e-7]], [1, 1, 1])),
    ("ctma(rfa)", Law.SCALE, of([[0.0], [-3e-8], [3e-8], [4e-8]], [3, 1, 1, 1])),
    ("cwmed-unweighted", Law.COPIES, of([[0.0], [1.0]], [1, 3])),
    ("ctma(mean)-unweighted", Law.COPIES, of([[0.0], [1.0]], [1, 3])),
]


@pytest.mark.parametrize(("name", "law", "trial"), UNDECLARED)
def test_a_law_that_is_not_declared_does_not_hold(name: str, law: Law, trial: Trial) -> None:
    rule = build(name, byz_fraction=0.25)
    assert law not in laws_of(rule)
    with pytest.raises(LawError, match=f"^{law.name} is broken"):
        LAWS[law](claim_of(rule), trial)


def test_a_composition_keeps_only_what_its_base_keeps() -> None:
    assert laws_of(build("ctma(rfa)-unweighted", 0.2)) == set(Law) - {Law.SCALE, Law.COPIES}


def test_a_third_party_function_declares_no_law() -> None:
    assert laws_of(lambda x, _: x[0]) == frozenset()


# --- what our own rules keep beyond the kit ----------------------------------------------------
@every
def test_inputs_without_a_result_give_nan(rule: Aggregator) -> None:
    for value, count, size in product((torch.nan, torch.inf, -torch.inf), (1, 2, 5), (1, 3, 8)):
        rows = torch.arange(float(count * size)).reshape(count, size)
        rows[0, -1] = value
        assert bool(rule(rows, torch.ones(count)).isnan().all()), (value, count, size)
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]])
    for weights in ([2.0, -1.0, 1.0], [0.0] * 3, [1.0, torch.nan, 1.0], [1.0, torch.inf, 1.0],
                    [0, -3, 1]):  # fmt: skip
        assert bool(rule(rows, torch.tensor(weights)).isnan().all()), weights


SHAPES: dict[str, list[tuple[Tensor, Tensor]]] = {
    "rows": [
        (torch.zeros(3), torch.ones(3)),
        (torch.zeros(0, 3), torch.ones(0)),
        (torch.zeros(2, 3, 1), torch.ones(2)),
        (torch.zeros(2, 3, dtype=torch.int64), torch.ones(2)),
    ],
    "weights": [
        (torch.zeros(2, 3), torch.ones(3)),
        (torch.zeros(2, 3), torch.ones(2, 1)),
        (torch.zeros(2, 3), torch.ones(2, dtype=torch.complex64)),
    ],
}


@every
def test_shapes_that_do_not_fit_are_named(rule: Aggregator) -> None:
    for name, cases in SHAPES.items():
        for rows, weights in cases:
            with pytest.raises(ValueError, match=f"^{name} have shape"):
                rule(rows, weights)


# --- the median's convention -------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(case=weighted("floats"))
def test_equal_weights_give_the_median_of_numpy(dtype: type, case: Weighted) -> None:
    rows = case.rows.numpy().astype(dtype)
    result = CoordinateWiseMedian()(torch.from_numpy(rows), torch.ones(len(rows)))
    assert np.array_equal(result.numpy(), np.median(rows, axis=0))


@pytest.mark.parametrize("count", [2, 6, 10, 1000])
def test_floating_halves_whose_sums_round_still_give_the_midpoint(count: int) -> None:
    rows = torch.arange(float(count), dtype=torch.float64).unsqueeze(1)
    weights = torch.full((count,), 0.1, dtype=torch.float64)
    assert float(CoordinateWiseMedian()(rows, weights)) == (count - 1) / 2


def test_integer_weights_are_compared_exactly_beyond_float64() -> None:
    rows = torch.tensor([[0.0], [1.0]])
    assert float(CoordinateWiseMedian()(rows, torch.tensor([2**60, 2**60 + 1]))) == 1.0
