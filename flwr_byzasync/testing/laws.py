"""The laws, one check each: those a rule declares, and those that every rule must satisfy."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from flwr_byzasync.aggregators.rule import Law
from flwr_byzasync.testing.cases import Trial, Weighted
from flwr_byzasync.testing.claim import Claim, LawError, shown

Check = Callable[[Claim, Trial], None]
ROUNDINGS = 8
"""Units of rounding of the largest value by which two equal results may differ."""


# --- declared laws -----------------------------------------------------------------------------
def check_copies(claim: Claim, trial: Trial) -> None:
    """Check that an integer weight s means s copies of the row."""
    rows, weights = trial.case
    copies = rows.repeat_interleave(weights, dim=0)
    if claim.covers(len(copies)):
        ones = torch.ones(len(copies), dtype=torch.int64)
        _same(claim, Law.COPIES, trial.case, claim.call(copies, ones), "on the copies")


def check_permutation(claim: Claim, trial: Trial) -> None:
    """Check that the order of the rows does not matter."""
    (rows, weights), order = trial.case, list(trial.order)
    other = claim.call(rows[order], weights[order])
    _same(claim, Law.PERMUTATION, trial.case, other, f"in the order {order}")


def check_translation(claim: Claim, trial: Trial) -> None:
    """Check that moving all rows by t moves the result by t."""
    rows, weights = trial.case
    moved = claim.call(rows + trial.vector, weights)
    _same(
        claim,
        Law.TRANSLATION,
        trial.case,
        moved,
        f"moved by {shown(trial.vector)}",
        lambda result: result + trial.vector,
    )


def check_scale(claim: Claim, trial: Trial) -> None:
    """Check that scaling all rows by a > 0 scales the result by a."""
    rows, weights = trial.case
    scaled, a = claim.call(rows * trial.factor, weights), trial.factor
    _same(claim, Law.SCALE, trial.case, scaled / a, f"scaled by {a:g} and back")


def check_weight_scale(claim: Claim, trial: Trial) -> None:
    """Check that scaling all weights by a > 0 changes nothing."""
    rows, weights = trial.case
    other = claim.call(rows, _times(weights, trial.weight_factor))
    _same(claim, Law.WEIGHT_SCALE, trial.case, other, f"weights times {trial.weight_factor:.17g}")


def check_agreement(claim: Claim, trial: Trial) -> None:
    """Check that equal rows give exactly that row."""
    row = trial.case.rows[0]
    case = Weighted(row.repeat(len(trial.case.rows), 1), trial.case.weights)
    result = claim.call(*case)
    if not torch.equal(result, row):
        observed = {"result": shown(result), "difference": shown(result - row)}
        raise LawError(Law.AGREEMENT.name, f"{Law.AGREEMENT.value}, to the bit", case, observed)


def check_hull(claim: Claim, trial: Trial) -> None:
    """Check that each coordinate lies between the smallest and the largest of the rows."""
    rows = trial.case.rows[trial.case.weights > 0]
    low, high = rows.amin(dim=0), rows.amax(dim=0)
    rounding = ROUNDINGS * torch.finfo(rows.dtype).eps * rows.abs().amax(dim=0)
    result = claim.call(*trial.case)
    if not bool((result >= low - rounding).all() and (result <= high + rounding).all()):
        observed = {"result": shown(result), "lowest": shown(low), "highest": shown(high)}
        raise LawError(Law.HULL.name, Law.HULL.value, trial.case, observed)


LAWS: Mapping[Law, Check] = MappingProxyType(
    {
        Law.COPIES: check_copies,
        Law.PERMUTATION: check_permutation,
        Law.TRANSLATION: check_translation,
        Law.SCALE: check_scale,
        Law.WEIGHT_SCALE: check_weight_scale,
        Law.AGREEMENT: check_agreement,
        Law.HULL: check_hull,
    }
)
"""The check of each law. The first five need rows on which translation and scaling are exact."""


# --- laws of every rule ------------------------------------------------------------------------
def check_unwritten(claim: Claim, trial: Trial) -> None:
    """Check that inputs are not written, and that results are new memory."""
    inputs = Weighted(*(t.to(claim.device, copy=True) for t in trial.case))
    result = claim.raw(*inputs)
    first = result.detach().clone()
    law, observed = "UNWRITTEN", {"result": shown(first)}
    if not _unchanged(inputs, trial.case):
        raise LawError(law, "a rule does not write its inputs", trial.case, observed)
    alias = "a result is new memory: writing to it changes neither inputs nor later results"
    try:
        result.detach().fill_(7.0)
    except RuntimeError as error:
        raise LawError(law, alias, trial.case, {**observed, "raised": error}) from error
    if not _unchanged(inputs, trial.case):
        raise LawError(law, alias, trial.case, observed)
    again = claim.raw(*inputs)
    if not torch.equal(first.nan_to_num(), again.nan_to_num()):
        observed["second call"] = shown(again)
        expected = "the same inputs give the same result, to the bit"
        raise LawError("REPEATABLE", expected, trial.case, observed)


def check_absent(claim: Claim, trial: Trial) -> None:
    """Check that rows of weight zero are as if absent, whatever they hold."""
    rows, weights = trial.case
    extra, none = torch.full_like(rows[:2], trial.filling), torch.zeros_like(weights[:2])
    # A trusted row is identified by its index, so no row may be inserted before it.
    before = 0 if claim.trusted else len(none)
    padded = Weighted(
        torch.cat([extra[:before], rows, extra]), torch.cat([none[:before], weights, none])
    )
    if claim.covers(len(padded.rows)):
        other = claim.call(*padded)
        note = f"beside rows of weight zero that hold {trial.filling}"
        _same(claim, "ABSENT", trial.case, other, note)


def check_weight_dtypes(claim: Claim, trial: Trial) -> None:
    """Check that integer and floating weights of the same value agree."""
    rows, weights = trial.case
    for dtype in (torch.float32, torch.uint8):
        other = claim.call(rows, weights.to(dtype))
        _same(claim, "WEIGHT_DTYPES", trial.case, other, f"with weights of {dtype}")


ALWAYS: Mapping[str, Check] = MappingProxyType(
    {
        "UNWRITTEN": check_unwritten,
        "ABSENT": check_absent,
        "WEIGHT_DTYPES": check_weight_dtypes,
    }
)
"""Checks that need no declaration."""
EXPECTED = {
    "ABSENT": "rows of weight zero are as if absent",
    "WEIGHT_DTYPES": "integer and floating weights of the same value agree",
}


def _same(
    claim: Claim,
    law: Law | str,
    case: Weighted,
    other: Tensor,
    note: str,
    transform: Callable[[Tensor], Tensor] = lambda result: result,
) -> None:
    """Raise unless `other` equals the transformed result up to rounding."""
    result = claim.call(*case)
    expected = transform(result)
    used = case.rows[case.weights > 0]
    spread = (used - used[0]).abs().max()
    unit = torch.finfo(case.rows.dtype).eps
    largest = torch.stack([t.abs().max() for t in (used, expected)]).max()
    allowed = float(claim.tolerance * spread + ROUNDINGS * unit * largest)
    difference = float((other - expected).abs().max())
    if not difference <= allowed:
        name, expectation = (law.name, law.value) if isinstance(law, Law) else (law, EXPECTED[law])
        observed = {
            "result": shown(result),
            "expected": shown(expected),
            "got": f"{shown(other)}, {note}",
            "difference": f"{difference:.3g}, allowed {allowed:.3g}",
        }
        raise LawError(name, expectation, case, observed)


def _times(weights: Tensor, factor: float) -> Tensor:
    """Return weights times a factor, in float64 unless both are integers."""
    return weights * factor if isinstance(factor, int) else weights.double() * factor


def _unchanged(inputs: Weighted, before: Weighted) -> bool:
    return all(torch.equal(a.cpu(), b) for a, b in zip(inputs, before, strict=True))
