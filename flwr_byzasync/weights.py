"""Weight policies: the weight of each row from the server's own counters, and a cap on shares.

Nothing that a client reports enters a weight. A policy maps the accepted replies of each node and
the age of its row, as counted by the server, to one weight per row; `capped` bounds the share of
any row under any policy.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from flwr_byzasync._checks import check_choice, check_number, coerce_numbers
from flwr_byzasync.errors import ConfigError

EPS = torch.finfo(torch.float64).eps
FIX = "pass 'counts', 'uniform' or for example StalenessDiscount(power=0.5)"


@runtime_checkable
class WeightPolicy(Protocol):
    """Anything that turns the server's counters into weights, called as ``policy(counts, ages)``.

    `counts` (m,) int64 >= 1 holds the accepted replies of each node, `ages` (m,) int64 >= 0
    the server steps since the query of each row was sent, both on the host and not to be
    written. The result is (m,), finite and non-negative with a positive sum.
    """

    def __call__(self, counts: Tensor, ages: Tensor, /) -> Tensor:
        """Return the weights."""
        ...


@dataclass(frozen=True)
class Counts:
    """The number of accepted replies, ``s_i`` (Dahan and Levy 2024); allows incremental rules.

    Examples
    --------
    >>> Counts()(torch.tensor([3, 1]), torch.tensor([0, 9]))
    tensor([3, 1])
    """

    def __call__(self, counts: Tensor, ages: Tensor) -> Tensor:
        """Return the counts."""
        del ages
        return counts


@dataclass(frozen=True)
class Uniform:
    """One for every node, ``u_i = 1``: the number of liars bounds their share, not their replies.

    Examples
    --------
    >>> Uniform()(torch.tensor([3, 1]), torch.tensor([0, 9]))
    tensor([1, 1])
    """

    def __call__(self, counts: Tensor, ages: Tensor) -> Tensor:
        """Return ones."""
        del ages
        return torch.ones_like(counts)


@dataclass(frozen=True)
class StalenessDiscount:
    """Counts discounted by the age of the row: ``u_i = s_i (1 + τ_i)^−a``.

    τ_i is the number of server steps since the query of row i was sent, so the row of a node that
    left loses weight with every step.

    Parameters
    ----------
    power : float, default 0.5
        a in (0, 10].

    Raises
    ------
    ConfigError
        If `power` is out of range.

    Notes
    -----
    The polynomial discount of FedAsync (Xie, Koyejo and Gupta 2019, arXiv 1903.03934, section
    5), which applies it once, to the step size of an arriving model. Here rows stay, so it is
    applied to each row at every step. All weights change with every step, so incremental rules
    are called from scratch. Robustness is unaffected: the bounds of the rules hold for any
    weights, with the liars' share measured in these weights.

    Examples
    --------
    >>> StalenessDiscount(power=0.5)(torch.tensor([3, 4]), torch.tensor([8, 0]))
    tensor([1., 4.], dtype=torch.float64)
    """

    power: float = 0.5

    def __post_init__(self) -> None:
        coerce_numbers(self)
        fix = "pass for example power=0.5"
        check_number("power", self.power, low=0, high=10, closed="right", fix=fix)

    def __call__(self, counts: Tensor, ages: Tensor) -> Tensor:
        """Return the discounted counts in float64."""
        return counts * (1.0 + ages.to(torch.float64)) ** -self.power


@dataclass(frozen=True)
class Capped:
    """A policy under a cap: ``capped(policy(counts, ages), max_share)``.

    f nodes then hold at most ``f·max_share`` of the weight, however fast they reply; without a
    cap a Byzantine node that does not compute can obtain any share. While the cap cuts, rules are
    called from scratch. A node is an id of the SuperLink: where SuperNodes need no registered
    key, a client may reconnect under new ids, each with a share of its own.

    Parameters
    ----------
    policy : WeightPolicy
        For example ``Counts()``.
    max_share : float
        Largest share of the weight that one node may hold, in (0, 1]. With fewer than
        1/max_share nodes all weigh the same.

    Raises
    ------
    ConfigError
        If `policy` is not a weight policy, or `max_share` is out of range.

    Examples
    --------
    >>> Capped(Counts(), max_share=0.4)(torch.tensor([1, 1, 9]), torch.tensor([0, 0, 0]))
    tensor([1.0000, 1.0000, 1.3333], dtype=torch.float64)
    """

    policy: WeightPolicy
    max_share: float

    def __post_init__(self) -> None:
        coerce_numbers(self)
        if isinstance(self.policy, str | type) or not callable(self.policy):
            legal, fix = "a policy called as policy(counts, ages)", "pass for example Counts()"
            raise ConfigError("policy", self.policy, legal, fix)
        _check_weights(self.policy)
        fix = "pass for example max_share=0.2, or leave Capped out"
        check_number("max_share", self.max_share, low=0, closed="right", high=1, fix=fix)

    def __call__(self, counts: Tensor, ages: Tensor) -> Tensor:
        """Return the capped weights."""
        return capped(self.policy(counts, ages), self.max_share)


def capped(weights: Tensor, max_share: float) -> Tensor:
    """Bound every share: ``u_i = min(s_i, u*)``, u* the largest with ``max u_i <= c Σ u``.

    Parameters
    ----------
    weights : Tensor
        (m,) on the host, non-negative with a positive sum.
    max_share : float
        c in (0, 1], replaced by 1/m while c m < 1, m the number of positive weights: then no
        u > 0 but equal ones would do.

    Returns
    -------
    Tensor
        The weights themselves if no share is above c, else (m,) float64. A share counts as
        above c if it is so by more than the rounding of a sum of m floats.

    Guarantees
    ----------
    Any f nodes hold at most f·c of the weight, however many replies they send. Proof: u* exists,
    because g(u) = c Σ min(s_i, u) − u is continuous with g(0) = 0 and, as c m >= 1, g(u) =
    (c m − 1) u >= 0 for u up to the smallest positive s_i. With u_i = min(s_i, u*) every u_i is
    at most max u_i <= c Σ u, so a set F of f nodes has Σ_F u_i <= f max u_i <= f c Σ u. Neither
    step reads the s_i of F. Liars cannot gain by shrinking the honest nodes' weights either: the
    bound is on the share. For f·c < 1/2 a robust rule with λ >= f·c keeps its guarantee.

    The order of the weights is kept, u <= s, capping twice is capping once, and ``capped(a s) =
    a capped(s)``. g is concave, so g >= 0 exactly up to u* and u* is the root on the piece
    ``s_(k+1) <= u < s_(k)`` of the sorted weights where k of them are cut:
    ``u* = c R_k / (1 − c k)``, R_k the sum of the weights below.

    Cost
    ----
    O(m log m), on the host.

    Examples
    --------
    A liar with 900 of 908 replies, among 8 nodes with one each:

    >>> counts = torch.tensor([1] * 8 + [900])
    >>> capped(counts, max_share=0.2)
    tensor([1., 1., 1., 1., 1., 1., 1., 1., 2.], dtype=torch.float64)
    >>> capped(torch.tensor([1, 1, 1, 1]), max_share=0.25)
    tensor([1, 1, 1, 1])
    """
    positive = int((weights > 0).sum())
    share = max(max_share, 1.0 / max(positive, 1))
    slack = 1.0 + 4 * len(weights) * EPS
    if math.isinf(float(weights.sum())):
        # Only proportions matter, and now the sum is finite.
        weights = weights / len(weights)
    if not positive or float(weights.max()) <= share * float(weights.sum()) * slack:
        return weights
    sizes = weights.to(torch.float64)
    return sizes.clamp(max=_limit(sorted(sizes[weights > 0].tolist()), share))


def _limit(values: list[float], share: float) -> float:
    """Return u* for rising positive values, the largest of which holds more than its share."""
    # below[j]: the sum of the j smallest, added from the small end, never a difference of sums.
    below = [0.0, *accumulate(values)]
    for cut in range(1, len(values)):
        kept = len(values) - cut
        least, room = values[kept - 1], 1.0 - share * cut
        root = share * below[kept] / room if room > 0 else math.inf
        if root >= least:
            break
    return min(max(root, least), values[kept])


POLICIES: Mapping[str, Callable[[], WeightPolicy]] = MappingProxyType(
    {"counts": Counts, "uniform": Uniform, "staleness": StalenessDiscount}
)
"""Policies by name, with their default settings."""


def weight_policy(weights: str | WeightPolicy) -> WeightPolicy:
    """Return the weight policy for a name, or the policy passed.

    Parameters
    ----------
    weights : {"counts", "uniform", "staleness"} or WeightPolicy
        A name, or a policy.

    Raises
    ------
    ConfigError
        If the name is unknown, or the policy does not return valid weights.
    """
    if isinstance(weights, str) or not callable(weights) or isinstance(weights, type):
        return POLICIES[check_choice("weights", weights, POLICIES, fix=FIX)]()
    _check_weights(weights)
    return weights


def _check_weights(policy: WeightPolicy) -> None:
    """Try a policy on one to three nodes, so that a broken one fails before any message is sent.

    Raises
    ------
    ConfigError
        Unless it returns one finite non-negative weight per node, with a positive sum.
    """
    legal = "a policy called as policy(counts, ages) that returns one weight >= 0 per node"
    try:
        usable = all(
            _are_weights(policy(torch.arange(1, m + 1), torch.arange(m)), m) for m in (1, 2, 3)
        )
    except Exception as error:
        raise ConfigError("weights", policy, legal, FIX) from error
    if not usable:
        raise ConfigError("weights", policy, legal, FIX)


def _are_weights(weights: Tensor, m: int) -> bool:
    right = weights.shape == (m,) and bool(weights.isfinite().all() and (weights >= 0).all())
    return right and float(weights.sum()) > 0
