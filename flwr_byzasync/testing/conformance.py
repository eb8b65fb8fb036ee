"""`check_aggregator`: test every claim made about a rule."""

from collections.abc import Callable, Collection, Sequence
from fractions import Fraction
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings, target
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from flwr_byzasync._checks import check_byz_fraction, check_integer, check_number
from flwr_byzasync.aggregators.rule import Aggregator, Law, bound_of, checked_constant, laws_of
from flwr_byzasync.audit.inequality import exact_share, worst
from flwr_byzasync.errors import ConfigError
from flwr_byzasync.testing.adversarial_cases import BoundCase, bound_cases, witnesses
from flwr_byzasync.testing.cases import KINDS, MAX_ROWS, Trial, Weighted, trials
from flwr_byzasync.testing.claim import Claim, LawError, shown
from flwr_byzasync.testing.edges import EDGES, check_time
from flwr_byzasync.testing.laws import ALWAYS, LAWS

LARGEST_SHARE = 0.45
"""Largest λ at which a bound is checked if neither the rule nor the caller sets one."""
EXACT = frozenset({Law.COPIES, Law.PERMUTATION, Law.TRANSLATION, Law.SCALE, Law.WEIGHT_SCALE})
"""Laws that compare two calls; they need rows whose translation and scaling do not round."""
ROUNDING = 1e-9
"""Relative excess of a ratio over a bound that counts as rounding of the result."""
LARGEST_FLOAT32 = 1e37


def check_aggregator(
    rule: Aggregator,
    *,
    laws: Collection[Law | str] | None = None,
    bound: Callable[[float], float | None] | None = None,
    byz_fraction: float | None = None,
    trusted: Sequence[int] | None = None,
    max_rows: int | None = None,
    max_examples: int = 200,
    tolerance: float = 1e-9,
    seconds: float = 5.0,
    derandomize: bool = True,
    device: str | torch.device = "cpu",
) -> None:
    """Check a rule against everything it declares, and against what every rule must satisfy.

    Parameters
    ----------
    rule : Aggregator
        Called as ``rule(rows, weights)``; a plain function is fine.
    laws : collection of Law or str, optional
        Laws to check, as members or names; by default those it declares (``rule.laws``), none
        for a function.
    bound : callable, optional
        λ -> c, or None where nothing is claimed; by default ``rule.bound`` if it exists. The check
        is ``‖A − x̄_G‖² <= c ρ²`` for every G of weight at least (1 − λ)S.
    byz_fraction : float, optional
        Largest λ in [0, 1/2) for which the bound is checked; by default ``rule.byz_fraction``, or
        0.45. Smaller values are checked too.
    trusted : sequence of int, optional
        Rows that must be honest for the bound; by default ``rule.trusted``, or none.
    max_rows : int, optional
        Largest number of rows to call the rule with; if set, time is not checked. No limit by
        default.
    max_examples : int, default 200
        Inputs drawn for each of three groups of checks.
    tolerance : float, default 1e-9
        Allowed difference of two results that should be equal, relative to the rows' spread.
    seconds : float, default 5.0
        Time limit for 1,000 rows of 30 coordinates; generous enough for a rule of cubic cost.
    derandomize : bool, default True
        Use the same inputs in every run; pass False for new inputs in each.
    device : str or torch.device, default "cpu"
        Device on which the rule is called.

    Raises
    ------
    LawError
        An AssertionError with the law, the smallest failing input and the observed values.
    ConfigError
        If an argument is out of range.

    Examples
    --------
    >>> from flwr_byzasync.aggregators import CoordinateWiseMedian
    >>> check_aggregator(CoordinateWiseMedian(), max_examples=20)
    >>> check_aggregator(CoordinateWiseMedian(), bound=lambda lam: 1.0, max_examples=20)
    ... # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    flwr_byzasync.testing.claim.LawError: BOUND is broken: distance² <= c · deviation² ...
    """
    claim = claim_of(
        rule,
        laws=laws,
        bound=bound,
        trusted=trusted,
        max_rows=max_rows,
        tolerance=tolerance,
        device=device,
    )
    check_number("seconds", seconds, low=0.0, closed="neither", fix="pass for example seconds=5")
    check_integer("max_examples", max_examples, low=1, fix="pass for example max_examples=200")
    share = getattr(rule, "byz_fraction", LARGEST_SHARE) if byz_fraction is None else byz_fraction
    limit = exact_share(check_byz_fraction("byz_fraction", share))
    claim.bound(float(limit))  # an invalid constant is refused before the search
    search = settings(
        max_examples=max_examples,
        derandomize=derandomize,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    check_claim(claim, limit, search, seconds)


def check_claim(claim: Claim, limit: Fraction, search: settings, seconds: float = 5.0) -> None:
    """Check all of a claim, edge cases first: they are cheap and explain most failures."""
    check_edges(claim, seconds)
    check_laws(claim, search)
    check_bound(claim, limit, search)


def claim_of(
    rule: Aggregator,
    *,
    laws: Collection[Law | str] | None = None,
    bound: Callable[[float], float | None] | None = None,
    trusted: Sequence[int] | None = None,
    max_rows: int | None = None,
    tolerance: float = 1e-9,
    device: str | torch.device = "cpu",
) -> Claim:
    """Return the claims about a rule: the caller's, otherwise those it declares itself."""
    if not callable(rule):
        raise ConfigError("rule", rule, "called as rule(rows, weights)", "pass a rule or function")
    if max_rows is not None:
        check_integer("max_rows", max_rows, low=1, fix="pass for example max_rows=10")
    if bound is not None and not callable(bound):
        raise ConfigError("bound", bound, "a function of λ", "pass for example lambda lam: 2.0")
    fix = "pass for example tolerance=1e-6"
    return Claim(
        rule,
        laws_of(rule) if laws is None else _laws(laws),
        (lambda lam: bound_of(rule, lam) if bound is None else checked_constant(bound(lam))),
        _trusted(getattr(rule, "trusted", ()) if trusted is None else trusted),
        max_rows,
        check_number("tolerance", tolerance, low=0.0, fix=fix),
        torch.device(device),
    )


def _laws(laws: object) -> frozenset[Law]:
    """Return laws passed as members or by name."""
    names = [law.name if isinstance(law, Law) else law for law in _items("laws", laws)]
    if not all(name in Law.__members__ for name in names):
        legal = f"a collection of {', '.join(Law.__members__)}"
        raise ConfigError("laws", laws, legal, "pass for example {Law.COPIES}")
    return frozenset(Law[name] for name in names)


def _trusted(rows: object) -> tuple[int, ...]:
    fix = "pass for example trusted=(0,)"
    return tuple(check_integer("trusted", row, low=0, fix=fix) for row in _items("trusted", rows))


def _items(name: str, value: object) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Collection):
        raise ConfigError(name, value, "a collection", f"pass for example {name}=()")
    return tuple(value)


# --- the three groups --------------------------------------------------------------------------
def check_edges(claim: Claim, seconds: float = 5.0) -> None:
    """Check a rule on fixed inputs at the edges of its domain."""
    for check in EDGES:
        check(claim)
    check_time(claim, seconds)


def check_laws(claim: Claim, search: settings) -> None:
    """Check a rule's laws on inputs that `search` draws."""
    most = MAX_ROWS if claim.max_rows is None else min(MAX_ROWS, claim.max_rows)
    exact = [LAWS[law] for law in Law if law in claim.laws & EXACT]
    rough = [LAWS[law] for law in Law if law in claim.laws - EXACT]

    def on_exact_rows(trial: Trial) -> None:
        for check in (ALWAYS["ABSENT"], ALWAYS["WEIGHT_DTYPES"], *exact):
            check(claim, trial)

    def on_any_rows(trial: Trial) -> None:
        for check in (ALWAYS["UNWRITTEN"], *rough):
            check(claim, trial)

    _run(search, trials(*KINDS, max_rows=most, trusted=claim.trusted), on_any_rows)
    _run(search, trials("integers", max_rows=most, trusted=claim.trusted), on_exact_rows)


def check_bound(claim: Claim, limit: Fraction, search: settings) -> None:
    """Check a rule's bound for shares up to `limit`, on inputs that `search` draws."""
    most = MAX_ROWS if claim.max_rows is None else min(MAX_ROWS, claim.max_rows)
    if all(claim.bound(float(limit * n / 20)) is None for n in range(21)):
        return

    def inequality(case: BoundCase) -> None:
        excess = check_inequality(claim, case)
        target(min(excess, 1e6), label="share of the bound")

    # Skipped with trusted rows: in these cases any row may belong to a liar.
    for case in () if claim.trusted or most < 4 else witnesses(limit):
        check_inequality(claim, case)
    _run(search, bound_cases(limit, max_rows=most, trusted=claim.trusted), inequality)


def check_inequality(claim: Claim, case: BoundCase) -> float:
    """Check ``‖A − x̄_G‖² <= c ρ²`` for every admissible G, in float64 and in float32.

    Returns
    -------
    float
        The largest ratio divided by c: 1 if the bound is attained.
    """
    (rows, weights), share = case
    constant = claim.bound(float(share))
    if constant is None:
        return 0.0
    nearest = 0.0
    for x in (rows, rows.clamp(-LARGEST_FLOAT32, LARGEST_FLOAT32).float()):
        result = claim.call(x, weights)
        found = worst(result, x, weights, share, claim.trusted)
        if found.ratio > constant * (1.0 + ROUNDING):
            observed = {
                "λ": str(share),
                "result": shown(result),
                "G": list(found.honest),
                "mean of G": list(found.mean),
                "distance": f"{found.distance:.6g}",
                "deviation": f"{found.deviation:.6g}",
                "ratio": f"{found.ratio:.6g}, allowed c = {constant:.6g}",
            }
            expected = "distance² <= c · deviation² for every G of weight at least (1 - λ) S"
            raise LawError("BOUND", expected, Weighted(x, weights), observed)
        if constant > 0.0:
            nearest = max(nearest, found.ratio / constant)
    return nearest


def _run(search: settings, cases: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Run a check on drawn cases, and raise its error for the smallest failing case."""

    @search
    @given(cases)
    def run(case: Any) -> None:
        check(case)

    try:
        run()
    except LawError as error:
        # Hypothesis adds the input as code, which the message already shows.
        error.__notes__ = []
        raise error.with_traceback(None) from error.__cause__
    except Flaky as error:
        raise AssertionError(
            "REPEATABLE is broken: a rule gave two results for the same inputs; it must not draw "
            "random numbers of its own or remember earlier calls."
        ) from error
