"""w-Bucketing (Karimireddy, He and Jaggi 2022, ICLR, arXiv 2006.09365): means of small groups."""

from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync._checks import check_integer
from flwr_byzasync.aggregators.bounds import sharp_bound
from flwr_byzasync.aggregators.numerics import column_blocks
from flwr_byzasync.aggregators.rule import (
    Aggregator,
    Law,
    MetaRule,
    RuleInfo,
    aggregate_float64,
    bound_of,
)


def bucketing_bound(lam: float, size: int, base: float) -> float:
    """Return ``((1 − λ) c + (b − 1) λ)/(1 − b λ)``, c the base's constant at b λ < 1/2."""
    return ((1.0 - lam) * base + (size - 1) * lam) / (1.0 - size * lam)


def _over_median(lam: float) -> float:
    return bucketing_bound(lam, 2, sharp_bound(2.0 * lam))


@dataclass(frozen=True)
class Bucketing(MetaRule):
    """Average the rows in small random groups, then apply the base.

    The rows of positive weight are put in a random order and cut into groups of b = `size`; the
    last group may be smaller. With equal weights the base gets the mean of each group, as
    published. Otherwise a group with weights ``s_1 >= s_2 >= ... >= s_b`` is split into layers:
    for each k, the base gets the mean of its k heaviest rows with weight ``k (s_k − s_{k+1})``.
    So each row enters with its full weight, and is averaged only with rows of the same weight.

    Parameters
    ----------
    base : Aggregator
        The rule applied to the means: any rule, including third-party ones.
    seed : int, default 0
        Seed of the order, >= 0. The i-th row of positive weight gets the i-th number of a random
        stream, the same at every call and on every device.
    size : int, default 2
        b >= 1, rows per group. The published experiments use 2.

    Raises
    ------
    ConfigError
        If `base` cannot be called or a setting is out of range.

    Guarantees
    ----------
    Liars with λS of the weight are in means with at most b λ S of it. With b λ < 1/2 and c the
    base's constant at b λ, ``‖A − x̄_G‖² <= ((1 − λ) c + (b − 1) λ)/(1 − b λ) ρ²`` for every
    order of the rows, proved in docs/theory/bucketing.md; nothing for b λ >= 1/2. The published
    result is a gain in expectation over orders drawn anew in each round.
    No rule's constant is below λ/(1 − 2λ).

    Cost
    ----
    O(m d) and an (m, d) copy in float64, then the base.

    Examples
    --------
    >>> import torch
    >>> from flwr_byzasync.aggregators import CoordinateWiseMedian
    >>> rows = torch.tensor([[1.0], [3.0]])
    >>> Bucketing(CoordinateWiseMedian())(rows, torch.tensor([1, 1]))
    tensor([2.])
    >>> Bucketing(CoordinateWiseMedian())(rows, torch.tensor([5, 1]))
    tensor([1.])
    """

    base: Aggregator
    seed: int = 0
    size: int = 2

    INFO: ClassVar[RuleInfo] = RuleInfo(
        name="bucketing",
        laws=frozenset(Law) - {Law.COPIES, Law.PERMUTATION},
        bound=_over_median,
        sources=("Karimireddy, He, Jaggi 2022, arXiv 2006.09365", "docs/theory/bucketing.md"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_integer("seed", self.seed, low=0, fix="pass for example seed=0")
        check_integer("size", self.size, low=1, fix="pass for example size=2")

    @property
    def trusted(self) -> tuple[int, ...]:
        """None: the base gets means, not rows."""
        return ()

    def bound(self, lam: float) -> float | None:
        """c_λ from the base's constant at b λ; None where there is none or b λ >= 1/2."""
        # A base that trusts a row would get a mean in its place.
        if self.size * lam >= 0.5 or super().trusted:
            return None
        base = bound_of(self.base, self.size * lam)
        return None if base is None else bucketing_bound(lam, self.size, base)

    def aggregate(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Return the base's unrounded result on the means."""
        order = keyed_order(weights, self.seed)
        return aggregate_float64(self.base, *means(rows, weights, order, min(self.size, len(rows))))


def keyed_order(weights: Tensor, seed: int) -> Tensor:
    """Return an order of the rows that depends on `seed` and on which weights are positive.

    Parameters
    ----------
    weights : Tensor
        (m,). Rows of weight zero come last, and do not affect the order of the others.
    seed : int
        The key.

    Returns
    -------
    Tensor
        (m,) int64 on the weights' device.
    """
    used = weights > 0
    keys = torch.tensor(_stream(seed, len(weights)), dtype=torch.float64, device=weights.device)
    rank = (used.cumsum(dim=0) - 1).clamp(min=0)
    return torch.where(used, keys[rank], 2.0).argsort(stable=True)


@lru_cache(maxsize=64)
def _stream(seed: int, length: int) -> tuple[float, ...]:
    """Return the first numbers in [0, 1) of a random stream."""
    random = Random(seed)
    return tuple(random.random() for _ in range(length))


def means(rows: Tensor, weights: Tensor, order: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the means of the heaviest rows of each group, and their weights.

    Parameters
    ----------
    rows, weights : Tensor
        (m, d) and (m,); the dtype of the weights is kept.
    order : Tensor
        (m,) int64, a permutation; each `size` consecutive rows form a group.
    size : int
        b in [1, m].

    Returns
    -------
    tuple of Tensor
        (n, d) float64 and (n,), n the multiple of b from m on; the weights sum to S.
    """
    short = -len(order) % size
    group = torch.cat([order, order[:1].expand(short)]).reshape(-1, size)
    grouped = torch.cat([weights[order], weights.new_zeros(short)]).reshape(-1, size)
    grouped, inside = grouped.sort(dim=1, descending=True, stable=True)
    group = group.gather(1, inside)
    count = torch.arange(1, size + 1, device=rows.device)
    layer = count * (grouped - torch.cat([grouped[:, 1:], torch.zeros_like(grouped[:, :1])], dim=1))
    used = (grouped > 0).unsqueeze(2)
    blocks = []
    for block in column_blocks(rows):
        x = torch.where(used, block[group], 0.0).to(torch.float64)
        # Relative to the group's heaviest row, so that rows of other groups cost no digits.
        offset = torch.where(used, x - x[:, :1], 0.0).cumsum(dim=1) / count.unsqueeze(1)
        blocks.append((x[:, :1] + offset).flatten(0, 1))
    return torch.cat(blocks, dim=1), layer.flatten()
