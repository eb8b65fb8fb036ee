"""The conformance kit itself: mutants are caught by the law they break, correct rules pass."""

import doctest
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor

from flwr_byzasync import ConfigError
from flwr_byzasync.aggregators import (
    CTMA,
    Aggregator,
    CoordinateWiseMedian,
    GeometricMedian,
    Law,
    Mean,
)
from flwr_byzasync.testing import LawError, Weighted, check_aggregator, shares, weighted_rows
from flwr_byzasync.testing.adversarial_cases import adversarial_rows, bound_cases
from flwr_byzasync.testing.cases import trials
from flwr_byzasync.testing.conformance import (
    check_bound,
    check_claim,
    check_inequality,
    check_laws,
    claim_of,
)
from flwr_byzasync.testing.edges import check_time
from flwr_byzasync.testing.mutants import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
MEDIAN = CoordinateWiseMedian()
# To find is enough here; the document shows the smallest input and the whole message.
FINDING = settings(
    max_examples=200,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def name_of(mutant: Mutant) -> str:
    return f"{getattr(mutant.rule, '__name__', mutant.rule)}: {mutant.caught}"


# --- what is caught ----------------------------------------------------------------------------
@pytest.mark.parametrize("mutant", MUTANTS, ids=name_of)
def test_a_broken_rule_is_caught_by_what_it_breaks(mutant: Mutant) -> None:
    claim = claim_of(mutant.rule, laws=mutant.laws, bound=mutant.bound)
    bounded = mutant.caught == "BOUND"
    check = check_bound if bounded else check_claim
    with pytest.raises(LawError) as caught:
        check(claim, Fraction(9, 20), settings(FINDING, max_examples=200 if bounded else 40))
    assert caught.value.law == mutant.caught


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=name_of)
def test_a_broken_rule_is_refuted_by_nothing_else(mutant: Mutant) -> None:
    claim = claim_of(mutant.rule, laws=mutant.laws, bound=mutant.bound)
    with pytest.raises(LawError) as caught:
        check_claim(claim, Fraction(9, 20), FINDING)
    assert caught.value.law == mutant.caught


def test_every_law_is_broken_by_a_mutant() -> None:
    always = {"BOUND", "HALVES", "UNWRITTEN", "REPEATABLE", "DEFINED", "ABSENT", "DTYPE"}
    assert {mutant.caught for mutant in MUTANTS} == {law.name for law in Law} | always


@pytest.mark.parametrize(
    ("lam", "factor"),
    [
        (0.25, 0.97),
        *(pytest.param(lam, 0.97, marks=pytest.mark.slow) for lam in (0.1, 0.4)),
        *(pytest.param(lam, 0.9, marks=pytest.mark.slow) for lam in (0.1, 0.25, 0.4)),
    ],
)
def test_a_bound_that_is_a_little_too_small_is_refuted(lam: float, factor: float) -> None:
    with pytest.raises(LawError, match="BOUND is broken") as caught:
        check_aggregator(
            MEDIAN,
            laws=(),
            bound=lambda share: factor / (1 - 2 * share),
            byz_fraction=lam,
            max_examples=100,
        )
    # One of two places, and slightly more than half of the weight in it.
    rows, weights = caught.value.case
    assert set(rows.flatten().tolist()) == {0.0, 1.0} and (weights > 0).sum() <= 4


@pytest.mark.parametrize("lam", [0.1, 0.4])
def test_a_bound_of_trimming_that_is_a_little_too_small_is_refuted(lam: float) -> None:
    rule = CTMA(GeometricMedian(), byz_fraction=lam)
    sharp = rule.bound(lam)
    assert sharp is not None
    with pytest.raises(LawError, match="BOUND is broken"):
        check_aggregator(rule, laws=(), bound=lambda _: 0.95 * sharp, max_examples=10)


def test_weights_of_another_dtype_must_mean_the_same() -> None:
    def integers_only(rows: Tensor, weights: Tensor) -> Tensor:
        return MEDIAN(rows, weights if not weights.is_floating_point() else (weights > 0).int())

    with pytest.raises(LawError, match="WEIGHT_DTYPES is broken"):
        check_laws(claim_of(integers_only), settings(FINDING, max_examples=20))


def test_the_time_of_a_rule_is_limited() -> None:
    with pytest.raises(LawError, match="TIME is broken: 1000 rows of 30 coordinates take at most"):
        check_time(claim_of(Mean()), seconds=1e-9)
    check_time(claim_of(Mean(), max_rows=10), seconds=1e-9)


def test_a_rule_is_not_called_with_more_rows_than_it_accepts() -> None:
    def few(rows: Tensor, weights: Tensor) -> Tensor:
        if len(rows) > 5:
            raise ValueError("too many rows")
        return MEDIAN(rows, weights)

    with pytest.raises(LawError, match="DEFINED is broken"):
        check_aggregator(few)
    check_aggregator(few, laws=Law, bound=MEDIAN.bound, max_rows=5, max_examples=20, seconds=60.0)


@pytest.mark.slow
def test_a_trusted_row_is_in_every_honest_set_and_has_weight() -> None:
    def first(rows: Tensor, weights: Tensor) -> Tensor:
        assert weights[0] > 0
        nearest = ((rows - rows[0]).norm(dim=1) <= 0.0) & (weights > 0)
        return Mean()(rows, weights * nearest)

    # The first row may hold any share of G's weight: no constant covers it, its weight does.
    with pytest.raises(LawError, match="BOUND is broken"):
        check_bound(claim_of(first, bound=lambda _: 5e3, trusted=(0,)), Fraction(9, 20), FINDING)
    check_claim(claim_of(first, bound=lambda _: 1e5, trusted=(0,)), Fraction(9, 20), FINDING)


# --- what passes -------------------------------------------------------------------------------
def median_of_a_third_party(rows: Tensor, weights: Tensor) -> Tensor:
    kept, used_weights = rows[weights > 0], weights[weights > 0].double()
    values, order = kept.sort(dim=0)
    share = used_weights[order].cumsum(dim=0) / used_weights.sum()
    low, high = (share < 0.5 - 1e-9).sum(dim=0), (share <= 0.5 + 1e-9).sum(dim=0)
    a, b = (values.gather(0, i.unsqueeze(0))[0] for i in (low, high))
    return torch.where(a == b, a, a / 2 + b / 2)


@pytest.mark.parametrize(
    ("lam", "examples"),
    [(None, 10), *(pytest.param(lam, 50, marks=pytest.mark.slow) for lam in (None, 0.0, 0.3))],
)
def test_a_function_that_is_right_passes(lam: float | None, examples: int) -> None:
    check_aggregator(
        median_of_a_third_party,
        laws=Law,
        bound=lambda share: 1 / (1 - 2 * share),
        byz_fraction=lam,
        max_examples=examples,
        seconds=60.0,
    )


@pytest.mark.parametrize("examples", [5, pytest.param(30, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", [MEDIAN, GeometricMedian(), CTMA(MEDIAN, byz_fraction=0.3)])
def test_a_rule_that_is_right_passes(rule: Aggregator, examples: int) -> None:
    check_aggregator(rule, max_examples=examples, seconds=60.0)


def test_a_function_that_declares_nothing_must_only_be_a_rule() -> None:
    def shrunk(rows: Tensor, weights: Tensor) -> Tensor:
        return Mean()(rows, weights) * 0.9

    check_aggregator(shrunk, max_examples=30, seconds=60.0)


# --- error messages ---------------------------------------------------------------------------
def test_the_same_check_finds_the_same_input() -> None:
    def shrunk(rows: Tensor, weights: Tensor) -> Tensor:
        return Mean()(rows, weights) * 0.9

    quick = settings(FINDING, max_examples=20)
    messages = []
    for _ in range(2):
        with pytest.raises(LawError, match="TRANSLATION is broken") as caught:
            check_laws(claim_of(shrunk, laws=[Law.TRANSLATION]), quick)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_an_exception_of_the_rule_is_shown_with_its_input() -> None:
    def raises(rows: Tensor, weights: Tensor) -> Tensor:
        raise KeyError("mine")

    with pytest.raises(LawError, match=r"DEFINED.*\n  rows .*\n.*\n  raised   KeyError: 'mine'"):
        check_aggregator(raises)


def test_the_error_crosses_processes() -> None:
    error = LawError("COPIES", "it holds", Weighted(torch.zeros(1, 1), torch.ones(1)), {"n": 1})
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.law == "COPIES"
    assert isinstance(error, AssertionError)


@pytest.mark.parametrize(
    ("claims", "names"),
    [
        ({"rule": "gm"}, "rule='gm'"),
        ({"byz_fraction": 0.5}, "byz_fraction=0.5"),
        ({"max_examples": 0}, "max_examples=0"),
        ({"max_rows": 0}, "max_rows=0"),
        ({"tolerance": -1.0}, "tolerance=-1.0"),
        ({"seconds": 0.0}, "seconds=0.0"),
        ({"byz_fraction": 0.5 - 1e-10}, "byz_fraction=0.4999999999"),
        ({"laws": Law.COPIES}, "laws=<Law.COPIES: .*>"),
        ({"laws": ["COPYING"]}, r"laws=\['COPYING'\]"),
        ({"laws": "COPIES"}, "laws='COPIES'"),
        ({"trusted": 0}, "trusted=0"),
        ({"trusted": (-1,)}, "trusted=-1"),
        ({"bound": "2λ"}, "bound='2λ'"),
        ({"bound": lambda lam: float("nan")}, r"bound\(lam\)=nan"),
        ({"bound": lambda lam: torch.tensor(2.0)}, r"bound\(lam\)=tensor\(2.\)"),
        ({"bound": lambda lam: -1.0}, r"bound\(lam\)=-1.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_argument_that_cannot_work_is_named(claims: dict[str, object], names: str) -> None:
    with pytest.raises(ConfigError, match=f"^{names} is not legal"):
        check_aggregator(**{"rule": MEDIAN, **claims})  # type: ignore[arg-type]


def test_laws_can_be_passed_by_name() -> None:
    assert claim_of(MEDIAN, laws=["COPIES", Law.HULL]).laws == {Law.COPIES, Law.HULL}
    with pytest.raises(LawError, match=r"^HULL is broken"):
        check_laws(
            claim_of(lambda rows, weights: MEDIAN(rows, weights) + 1, laws=["HULL"]), FINDING
        )


# --- what is drawn -----------------------------------------------------------------------------
@given(weighted_rows("integers", "far", "near", "floats", max_rows=5, trusted=(1,)))
def test_drawn_rows_are_finite_and_their_weights_positive_in_sum(case: Weighted) -> None:
    assert 2 <= len(case.rows) == len(case.weights) <= 5 and case.rows.isfinite().all()
    assert case.weights[1] > 0 and case.weights.min() >= 0 and not case.weights.is_floating_point()


@given(adversarial_rows(Fraction(3, 10), trusted=(0,)))
def test_rows_of_an_adversary_leave_a_trusted_row_its_weight(case: Weighted) -> None:
    assert case.weights[0] > 0 and case.weights.min() >= 0 and 4 <= len(case.rows) <= 7


@given(shares(torch.tensor([5, 3, 1]), limit=Fraction(2, 5)))
def test_shares_stay_below_their_limit(share: Fraction) -> None:
    assert 0 <= share <= Fraction(2, 5)


HARD: dict[str, Callable[[Weighted], bool]] = {
    "zero weights": lambda case: bool((case.weights == 0).any()),
    "exact halves": lambda case: bool((2 * case.weights == case.weights.sum()).any()),
    "duplicates": lambda case: len(case.rows) > len(case.rows.unique(dim=0)),
    "huge": lambda case: bool(case.rows.abs().max() > 1e80),
    "near ties": lambda case: (
        0.0 < float(torch.pdist(case.rows).min()) < 1e-5 and len(case.rows) > 2
    ),
}


def test_hard_cases_are_drawn() -> None:
    found = Counter[str]()

    @settings(FINDING, max_examples=300)
    @given(weighted_rows("integers", "far", "near", max_rows=5))
    def draw(case: Weighted) -> None:
        if len(case.rows) > 1:
            found.update(name for name, holds in HARD.items() if holds(case))

    draw()
    assert all(found[name] >= 3 for name in HARD), found


def test_the_inequality_reports_how_close_a_case_comes() -> None:
    claim = claim_of(MEDIAN)
    found = []

    @FINDING
    @given(bound_cases(limit=Fraction(2, 5)))
    def draw(attack: object) -> None:
        found.append(check_inequality(claim, attack))  # type: ignore[arg-type]

    draw()
    assert 0.97 < max(found) <= 1.0 + 1e-9


def test_a_trial_reorders_all_rows() -> None:
    @settings(FINDING, max_examples=30)
    @given(trials("integers"))
    def draw(trial: object) -> None:
        assert sorted(trial.order) == list(range(len(trial.case.rows)))  # type: ignore[attr-defined]

    draw()


# --- the package -------------------------------------------------------------------------------
@pytest.mark.slow
def test_only_the_kit_needs_hypothesis_and_says_so() -> None:
    script = (
        "import sys; sys.modules['hypothesis'] = None\n"
        "import flwr_byzasync, flwr_byzasync.aggregators\n"
        "try: import flwr_byzasync.testing\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    expected = 'flwr_byzasync.testing needs hypothesis: run pip install "flwr-byzasync[testing]".\n'
    assert done.stdout == expected


@pytest.mark.slow
def test_the_examples_in_the_documentation_are_true() -> None:
    page = str(ROOT / "docs" / "testing.md")
    result = doctest.testfile(page, module_relative=False, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 5 and result.failed == 0
