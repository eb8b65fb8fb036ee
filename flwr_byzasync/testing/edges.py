"""Edge cases: fixed inputs at the edges of a rule's domain, the same for every rule."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from flwr_byzasync.aggregators.rule import Law
from flwr_byzasync.testing.cases import Weighted
from flwr_byzasync.testing.claim import Claim, LawError, shown

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
MANY, LONG = 1000, 30
"""Rows and coordinates of the timed input."""


def check_dtypes(claim: Claim) -> None:
    """Check that results have the rows' dtype, shape and device, and are finite."""
    for dtype in DTYPES:
        rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9.0]], dtype=dtype)
        _finite(claim, rows, torch.tensor([1, 2, 1]))


def check_one_row(claim: Claim) -> None:
    """Check that one row gives a result: exactly that row, if AGREEMENT is declared."""
    for dtype in DTYPES:
        row = torch.tensor([[0.1, -3e4, 1e-7]], dtype=dtype)
        _agreed(claim, row, torch.tensor([0.3]))


def check_equal_rows(claim: Claim) -> None:
    """Check that equal rows give a result: exactly that row, if AGREEMENT is declared."""
    _agreed(claim, torch.zeros(4, 3), torch.tensor([1, 2, 0, 5]))
    _agreed(claim, torch.full((2, 1), 0.1), torch.tensor([0.1, 0.2]))


def check_zero_weights(claim: Claim) -> None:
    """Check that rows of weight zero may hold any value."""
    for value in (0.0, 1e30, torch.nan, torch.inf, -torch.inf):
        rows = torch.tensor([[1.0, 2.0], [3.0, 4.0], [value, value]])
        _finite(claim, rows, torch.tensor([1, 2, 0]))
        if not claim.trusted:
            _finite(claim, rows.flip(0), torch.tensor([0.0, 2.0, 1.0]))


def check_halves(claim: Claim) -> None:
    """Check that two rows of equal weight give their midpoint.

    A convention of this package, for rules that declare PERMUTATION and TRANSLATION.
    """
    symmetric = {Law.PERMUTATION, Law.TRANSLATION} <= claim.laws
    if not symmetric or not claim.covers(2):
        return
    rows = torch.tensor([[0.0, 4.0], [2.0, 0.0]], dtype=torch.float64)
    middle = rows.mean(dim=0)
    for weights in ([1, 1], [3, 3], [0.1, 0.1]):
        case = Weighted(rows, torch.tensor(weights))
        result = claim.call(*case)
        if not torch.allclose(result, middle, rtol=0.0, atol=max(claim.tolerance, 1e-7)):
            expected = "two rows of equal weight give their midpoint"
            observed = {"result": shown(result), "expected": shown(middle)}
            raise LawError("HALVES", expected, case, observed)


def check_tenths(claim: Claim) -> None:
    """Check that weights of 0.1 give the same as weights of 1, if WEIGHT_SCALE is declared.

    Sums of 0.1 round: the sum of six is not exactly twice the sum of three.
    """
    for count in (2, 6, 10):
        if Law.WEIGHT_SCALE not in claim.laws or not claim.covers(count):
            continue
        rows = torch.arange(float(count), dtype=torch.float64).unsqueeze(1)
        case = Weighted(rows, torch.full((count,), 0.1, dtype=torch.float64))
        result, whole = claim.call(*case), claim.call(rows, torch.ones(count))
        if not torch.allclose(result, whole, rtol=0.0, atol=max(claim.tolerance, 1e-12) * count):
            observed = {"result": shown(result), "with weights of 1": shown(whole)}
            raise LawError(Law.WEIGHT_SCALE.name, Law.WEIGHT_SCALE.value, case, observed)


def check_huge(claim: Claim) -> None:
    """Check that rows of ±3e38 in float32 and of 1e90 in float64 give finite results."""
    rows = torch.tensor([[3e38, 3e38], [-3e38, 3e38], [3e38, -3e38], [1.0, 2.0]])
    _finite(claim, rows, torch.tensor([1, 1, 2, 1]))
    _finite(claim, rows[:2], torch.tensor([1, 1]))
    _finite(claim, rows.sign().double() * 1e90, torch.tensor([1, 1, 2, 1]))


def check_time(claim: Claim, seconds: float) -> None:
    """Check that 1,000 rows of 30 coordinates take at most `seconds`, best of three runs.

    Skipped for a rule with a limit on its rows, which declares that its cost explodes.
    """
    if claim.max_rows is not None:
        return
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(MANY, LONG, generator=generator)
    weights = torch.randint(1, 50, (MANY,), generator=generator)
    taken = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        _finite(claim, rows, weights)
        taken = min(taken, time.perf_counter() - start)
        if taken <= seconds:
            return
    expected = f"{MANY} rows of {LONG} coordinates take at most {seconds:g} s"
    raise LawError("TIME", expected, Weighted(rows, weights), {"seconds": f"{taken:.1f}"})


EDGES: tuple[Callable[[Claim], None], ...] = (
    check_dtypes,
    check_one_row,
    check_equal_rows,
    check_zero_weights,
    check_halves,
    check_tenths,
    check_huge,
)


def _finite(claim: Claim, rows: Tensor, weights: Tensor) -> None:
    if not claim.covers(len(rows)):
        return
    result = claim.call(rows, weights)
    if not bool(result.isfinite().all()):
        observed = {"result": shown(result)}
        expected = "finite rows of positive weight give a finite result"
        raise LawError("DEFINED", expected, Weighted(rows, weights), observed)


def _agreed(claim: Claim, rows: Tensor, weights: Tensor) -> None:
    _finite(claim, rows, weights)
    if Law.AGREEMENT in claim.laws and claim.covers(len(rows)):
        result = claim.call(rows, weights)
        if not torch.equal(result, rows[0]):
            observed = {"result": shown(result), "expected": shown(rows[0])}
            expected = f"{Law.AGREEMENT.value}, to the bit"
            raise LawError(Law.AGREEMENT.name, expected, Weighted(rows, weights), observed)
