"""The rule protocol, the laws a rule may declare, and the base classes of this package."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from numbers import Real
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from flwr_byzasync.aggregators.numerics import all_finite, as_weights
from flwr_byzasync.errors import ConfigError

LARGEST_SUM = 2.0**62
"""Limit on the sum of integer weights: twice a cumulative sum stays inside int64."""


@runtime_checkable
class Aggregator(Protocol):
    """Anything that turns latest vectors and weights into one direction.

    A rule is called as ``rule(rows, weights)``: `rows` is a floating (m, d) tensor, `weights`
    is (m,), non-negative with a positive sum, integer or floating; the strategy passes both on
    one device. The result is a new (d,) tensor of the rows' dtype and device; inputs are never
    written.
    """

    def __call__(self, rows: Tensor, weights: Tensor, /) -> Tensor:
        """Aggregate."""
        ...


class Law(Enum):
    """Properties that a rule may declare; the tests check exactly the declared ones."""

    COPIES = "an integer weight s means s copies of the row"
    PERMUTATION = "the order of the rows does not matter"
    TRANSLATION = "moving all rows by t moves the result by t"
    SCALE = "scaling all rows by a > 0 scales the result by a"
    WEIGHT_SCALE = "scaling all weights by a > 0 changes nothing"
    AGREEMENT = "rows that are all equal give that row"
    HULL = "each coordinate lies between the smallest and the largest of the rows"


@dataclass(frozen=True)
class RuleInfo:
    """Declaration of a class of rules.

    Parameters
    ----------
    name : str
        Name in `discover` and in run-configs.
    laws : frozenset of Law
        Properties that hold for all inputs.
    bound : callable or None
        λ -> c_λ such that ``‖A(x, s) − x̄_G‖² <= c_λ ρ²`` for every G of weight at least
        (1 − λ)S; None if no constant exists or is proved.
    sources : tuple of str
        References for the definition and the bound.
    published : callable or None
        λ -> the constant in the literature, to compare with `bound`; None if there is none.
    balanced : bool
        Whether honest rows cannot all lie far on one side of the result, as for a median; `CTMA`
        around such a centre has a sharper constant. See docs/theory/medians.md.
    """

    name: str
    laws: frozenset[Law]
    bound: Callable[[float], float] | None
    sources: tuple[str, ...]
    published: Callable[[float], float] | None = None
    balanced: bool = False


class WeightedRule(ABC):
    """Base of this package's rules: computes in float64, and rounds once at the end.

    A subclass is a frozen dataclass with a ``INFO`` and an `aggregate`. A third party's rule
    need not derive from it: any `Aggregator` is accepted everywhere.
    """

    INFO: ClassVar[RuleInfo]

    @abstractmethod
    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the unrounded result.

        Parameters
        ----------
        rows : Tensor
            (m, d), m >= 1, as the caller passed them.
        weights : Tensor
            (m,) float64 or int64 on the rows' device. Rows of weight zero must not matter.

        Returns
        -------
        Tensor
            (d,) float64. Unspecified if a row of positive weight is not finite.
        """

    @property
    def laws(self) -> frozenset[Law]:
        """Laws that this instance satisfies; a composition satisfies only those of its parts."""
        return self.INFO.laws

    def bound(self, lam: float) -> float | None:
        """c_λ of this instance at Byzantine share `lam`, or None where nothing is proved.

        For a rule with a field `byz_fraction` it is the constant at that share, for any `lam` up
        to it.
        """
        return self._declared(self.INFO.bound, lam)

    def published(self, lam: float) -> float | None:
        """Return the constant of this instance in the literature, or None."""
        return self._declared(self.INFO.published, lam)

    def _declared(
        self, constant: Callable[[float], float | None] | None, lam: float
    ) -> float | None:
        mine = getattr(self, "byz_fraction", lam)
        return None if constant is None or lam > mine else constant(mine)

    @property
    def trusted(self) -> tuple[int, ...]:
        """Rows that must be honest for `bound` to hold: it covers the sets G that contain them."""
        return ()

    def __call__(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Aggregate rows with weights.

        Parameters
        ----------
        rows : Tensor
            (m, d) floating. Finite; squares must stay inside float64: norms up to 1e150, while
            rows closer than 1e-150 may count as equal.
        weights : Tensor
            (m,) non-negative with positive sum, integer or floating. Used in int64 or float64,
            never in the rows' dtype; the sum of integers must be below 2⁶². Rows of weight zero
            count as absent.

        Returns
        -------
        Tensor
            (d,) of the rows' dtype and device, sharing memory with no input. All NaN if a
            positively weighted row is not finite, a weight is negative, infinite or NaN, all
            are zero, or the sum of integers is too large. Raising would need a synchronisation
            with the device.

        Raises
        ------
        ValueError
            If the shapes do not fit or rows are not floating, which needs no values to be read.
        """
        _check_shapes(rows, weights)
        used = as_weights(weights, rows.device)
        result = self.aggregate(rows, used)
        total = used.sum(dtype=torch.float64)
        largest = math.inf if used.is_floating_point() else LARGEST_SUM
        usable = all_finite(rows, used) & (used >= 0).all() & (total > 0) & (total < largest)
        return torch.where(usable, result, torch.nan).to(rows.dtype)


class MetaRule(WeightedRule):
    """Base of the meta-rules: rules over another rule, their field `base`.

    `bound_over` and `published_bound_over` map the constant of the base to that of the subclass.

    Raises
    ------
    ConfigError
        If `base` cannot be called.
    """

    base: Aggregator

    def __post_init__(self) -> None:
        if not callable(self.base):
            legal = "a rule, called as rule(rows, weights)"
            raise ConfigError("base", self.base, legal, "pass for example GeometricMedian()")

    @property
    def laws(self) -> frozenset[Law]:
        """Its own laws that the base satisfies as well."""
        return self.INFO.laws & laws_of(self.base)

    @property
    def trusted(self) -> tuple[int, ...]:
        """The base's, because rows keep their positions."""
        trusted: tuple[int, ...] = getattr(self.base, "trusted", ())
        return trusted

    def bound_over(self, lam: float, base: float) -> float | None:  # noqa: ARG002 - for subclasses
        """c_λ over a base with constant `base` at λ, or None where nothing is proved."""
        return None

    def published_bound_over(self, lam: float, base: float) -> float | None:  # noqa: ARG002 - the same
        """Return the literature's constant over a base with constant `base`, or None."""
        return None

    def bound(self, lam: float) -> float | None:
        """c_λ at λ = `byz_fraction` for any share up to it, else None."""
        return self._composed(lam, bound_of, self.bound_over)

    def published(self, lam: float) -> float | None:
        """Return the same from the constants in the literature."""
        return self._composed(lam, published_of, self.published_bound_over)

    def _composed(
        self,
        lam: float,
        of: Callable[[Aggregator, float], float | None],
        bound_over: Callable[[float, float], float | None],
    ) -> float | None:
        def constant(mine: float) -> float | None:
            base = of(self.base, mine)
            return None if base is None else bound_over(mine, base)

        return self._declared(constant, lam)


def aggregate_float64(rule: Aggregator, rows: Tensor, weights: Tensor) -> Tensor:
    """Return a rule's result in float64, unrounded if the rule is one of this package.

    Meta-rules measure distances to their base's result. Rounded to float32 it would be off by
    3e-5 for rows of norm 500, more than such rows may differ.
    """
    if isinstance(rule, WeightedRule):
        return rule.aggregate(rows, weights)
    return rule(rows.to(torch.float64), weights)


def laws_of(rule: Aggregator) -> frozenset[Law]:
    """Return the laws that a rule declares; none for a third party's rule without a declaration."""
    laws = getattr(rule, "laws", ())
    return frozenset(laws) if isinstance(laws, Collection) else frozenset()


def bound_of(rule: Aggregator, lam: float) -> float | None:
    """Return c_λ that a rule declares, or None.

    Raises
    ------
    ConfigError
        If the declared value is not a constant: no ratio would ever exceed NaN.
    """
    bound = getattr(rule, "bound", None)
    return checked_constant(bound(lam)) if callable(bound) else None


def checked_constant(value: object) -> float | None:
    """Return a constant c_λ as a float, or None where nothing is claimed.

    Raises
    ------
    ConfigError
        If it is not a real number >= 0.
    """
    if value is None:
        return None
    number = float(value) if isinstance(value, Real) else math.nan
    if isinstance(value, bool) or not number >= 0.0:
        legal, fix = "a number >= 0, or None", "return None where nothing is proved"
        raise ConfigError("bound(lam)", value, legal, fix)
    return number


def published_of(rule: Aggregator, lam: float) -> float | None:
    """Return the constant of a rule in the literature, or None."""
    return rule.published(lam) if isinstance(rule, WeightedRule) else None


def _check_shapes(rows: Tensor, weights: Tensor) -> None:
    if rows.ndim != 2 or rows.shape[0] == 0 or not rows.is_floating_point():
        raise ValueError(
            f"rows have shape {tuple(rows.shape)} and dtype {rows.dtype}: they must be a "
            "floating (m, d) tensor with m >= 1; stack the vectors with torch.stack."
        )
    if weights.shape != rows.shape[:1] or weights.is_complex():
        raise ValueError(
            f"weights have shape {tuple(weights.shape)} and dtype {weights.dtype}: they must be "
            f"({rows.shape[0]},) real numbers, one for each row."
        )
