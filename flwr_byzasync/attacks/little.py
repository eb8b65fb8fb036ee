"""A little is enough: lies within the spread of honest vectors (Baruch et al. 2019, NeurIPS)."""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

from torch import Tensor

from flwr_byzasync._checks import check_choice, check_integer, check_number
from flwr_byzasync.attacks.attack import ALONE, AttackInfo, Knowledge, Needs
from flwr_byzasync.attacks.line_search import strongest
from flwr_byzasync.attacks.vector_statistics import clamped_like, moments, rows_of
from flwr_byzasync.errors import ConfigError

CHOICES = ("optimised", "paper", "published")
LOWEST, HIGHEST = 0.5, 0.999
"""The quantile is clipped to this range; it leaves [1/2, 1) after few replies or if S_B > S/2."""


@dataclass(frozen=True)
class Little:
    """Send ``μ − z σ``, the honest vectors' weighted mean and deviation per coordinate (ALIE).

    Parameters
    ----------
    z : {"paper", "published", "optimised"} or float, default "paper"
        How many deviations from the mean. With S the total weight, S_B the Byzantine weight
        including this reply and ``s = ⌊S/2 + 1⌋ − S_B``, the weight that liars lack for a majority:
        "paper", ``Φ⁻¹((S − S_B − s)/(S − S_B))``, as Dahan and Levy; "published",
        ``Φ⁻¹((S − s)/S)``, Baruch et al.'s ``(n − s)/n`` in weights. The quantile is clipped to
        [1/2, 0.999], so that z is in [0, 3.09]. "optimised": the z in [2⁻⁶, 2⁶] that moves the
        server's result farthest from μ. A number in [0, inf) is used as is.
    memory : int, default 10
        Number of its own earlier vectors that a node without better knowledge estimates from, >= 1.
        A deviation of 11 vectors is accurate to 22 % if they are independent; momenta are not, so
        μ² and momentum nodes underestimate it.

    Raises
    ------
    ConfigError
        If a parameter is not legal; from `craft`, if z is "paper" or "published" and the counts
        of replies are unknown, or "optimised" and the rule is unknown.

    Notes
    -----
    Before any honest vector is known, the node's own honest vector is sent.

    Examples
    --------
    >>> import torch
    >>> rows = torch.tensor([[0.0], [2.0]])
    >>> known = Knowledge(rows=rows, weights=torch.tensor([1, 1]))
    >>> Little(z=1.5).craft(torch.tensor([3.0]), known)
    tensor([-0.5000])
    """

    z: float | str = "paper"
    memory: int = 10

    INFO: ClassVar[AttackInfo] = AttackInfo(
        name="little",
        aliases=("alie",),
        needs=Needs.COLLUDERS,
        sources=(
            "Baruch et al. 2019, arXiv 1902.06156, algorithm 3",
            "Dahan and Levy 2024, arXiv 2501.09621, appendix on attacks: z in weights",
        ),
    )

    def __post_init__(self) -> None:
        fix = "pass for example z='paper' or z=1.5"
        if isinstance(self.z, str):
            check_choice("z", self.z, CHOICES, fix=fix)
        else:
            check_number("z", self.z, low=0, closed="left", fix=fix)
        check_integer("memory", self.memory, low=1, fix="pass for example memory=10")

    @property
    def needs(self) -> Needs:
        """Everything for an optimised z, else what the class declares."""
        return Needs.EVERYTHING if self.z == "optimised" else self.INFO.needs

    @property
    def needs_rule(self) -> bool:
        """Whether the strength is optimised against the server's rule."""
        return self.z == "optimised"

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent."""
        rows = rows_of(knowledge)
        if rows is None:
            return honest.clone()
        mean, deviation = moments(rows)

        def crafted(z: float) -> Tensor:
            return clamped_like(mean - z * deviation, honest)

        if self.z == "optimised":
            return crafted(strongest(crafted, rows, mean, knowledge))
        return crafted(quantile(self.z, knowledge) if isinstance(self.z, str) else self.z)


def quantile(formula: str, knowledge: Knowledge) -> float:
    """Return z of the formula "paper" or "published".

    Raises
    ------
    ConfigError
        If the counts of replies are unknown.

    Examples
    --------
    >>> counted = Knowledge(honest_weight=60, byzantine_weight=40)
    >>> round(quantile("paper", counted), 4), round(quantile("published", counted), 4)
    (0.9027, 1.2265)
    """
    honest, byzantine = knowledge.honest_weight, knowledge.byzantine_weight
    if honest is None or byzantine is None:
        legal = "a number if the counts of replies are unknown"
        raise ConfigError("z", formula, legal, "pass for example z=1.5")
    total = honest + byzantine
    lacking = math.floor(total / 2 + 1) - byzantine
    base = honest if formula == "paper" else total
    share = (base - lacking) / base if base else LOWEST  # before any honest reply
    return NormalDist().inv_cdf(min(max(share, LOWEST), HIGHEST))
