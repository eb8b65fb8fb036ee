"""Fall of empires: a negative inner product with the honest mean (Xie et al. 2020, UAI)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flwr_byzasync._checks import check_choice, check_integer, check_number
from flwr_byzasync.attacks.attack import ALONE, AttackInfo, Knowledge, Needs
from flwr_byzasync.attacks.line_search import strongest
from flwr_byzasync.attacks.vector_statistics import clamped_like, moments, rows_of


@dataclass(frozen=True)
class Empire:
    """Send ``−ε μ``, μ the weighted mean of the honest vectors (inner-product manipulation, IPM).

    Parameters
    ----------
    epsilon : float or "optimised", default 0.1
        In (0, inf). 0.1 in both papers: small, so that lies stay close to the other vectors.
        "optimised": the ε in [2⁻⁶, 2⁶] that moves the server's result farthest from μ.
    memory : int, default 10
        Number of its own earlier vectors that a node without better knowledge estimates from, >= 1.

    Raises
    ------
    ConfigError
        If a parameter is not legal; from `craft`, if ε is "optimised" and the rule is
        unknown.

    Notes
    -----
    Before any honest vector is known, the node's own honest vector is sent.

    Examples
    --------
    >>> import torch
    >>> known = Knowledge(rows=torch.tensor([[1.0], [3.0]]), weights=torch.tensor([1, 1]))
    >>> Empire().craft(torch.tensor([3.0]), known)
    tensor([-0.2000])
    """

    epsilon: float | str = 0.1
    memory: int = 10

    INFO: ClassVar[AttackInfo] = AttackInfo(
        name="empire",
        aliases=("ipm",),
        needs=Needs.COLLUDERS,
        sources=(
            "Xie et al. 2020, arXiv 1903.03936",
            "Dahan and Levy 2024, arXiv 2501.09621, section 5: epsilon = 0.1",
        ),
    )

    def __post_init__(self) -> None:
        fix = "pass for example epsilon=0.1 or epsilon='optimised'"
        if isinstance(self.epsilon, str):
            check_choice("epsilon", self.epsilon, ("optimised",), fix=fix)
        else:
            check_number("epsilon", self.epsilon, low=0, closed="neither", fix=fix)
        check_integer("memory", self.memory, low=1, fix="pass for example memory=10")

    @property
    def needs(self) -> Needs:
        """Everything for an optimised ε, else what the class declares."""
        return Needs.EVERYTHING if self.epsilon == "optimised" else self.INFO.needs

    @property
    def needs_rule(self) -> bool:
        """Whether the strength is optimised against the server's rule."""
        return self.epsilon == "optimised"

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent."""
        rows = rows_of(knowledge)
        if rows is None:
            return honest.clone()
        mean = moments(rows).mean

        def crafted(epsilon: float) -> Tensor:
            return clamped_like(-epsilon * mean, honest)

        if isinstance(self.epsilon, str):
            return crafted(strongest(crafted, rows, mean, knowledge))
        return crafted(self.epsilon)
