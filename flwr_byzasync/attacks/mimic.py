"""Mimic: every liar copies one honest node (Karimireddy, He, Jaggi 2022, ICLR)."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flwr_byzasync.attacks.attack import ALONE, AttackInfo, Knowledge, Needs
from flwr_byzasync.attacks.vector_statistics import (
    Rows,
    centred_gram,
    clamped_like,
    first_largest,
    moments,
    rows_of,
    unit_of,
)


@dataclass(frozen=True)
class Mimic:
    """Send the honest vector farthest from the mean along the direction of largest variance.

    With v the direction of largest weighted variance of the honest vectors and μ their mean,
    the row that maximises ``|⟨v, x_i − μ⟩|``. It looks like an honest vector, but with
    heterogeneous data it counts one node's data many times.

    Notes
    -----
    The paper estimates v over a first phase of training, by an online power iteration, then
    picks one node and copies it for the rest. Here v is exact for the latest vectors and
    recomputed for each reply, so the copied node can change: the attack is stateless, and the
    same knowledge gives the same reply. Among nodes equally far within 1e-9 it takes the first.
    Before any honest vector is known, the node's own honest vector is sent.

    Cost
    ----
    An n × n Gram matrix and its eigenvectors, O(n² d + n³).

    Examples
    --------
    >>> import torch
    >>> rows = torch.tensor([[1.0, 0.0], [-5.0, 1.0], [2.0, 0.0]])
    >>> known = Knowledge(rows=rows, weights=torch.tensor([1, 1, 1]))
    >>> Mimic().craft(torch.zeros(2), known)
    tensor([-5.,  1.])
    """

    INFO: ClassVar[AttackInfo] = AttackInfo(
        name="mimic",
        needs=Needs.EVERYTHING,
        sources=("Karimireddy et al. 2022, arXiv 2006.09365, section 4",),
    )

    def craft(self, honest: Tensor, knowledge: Knowledge = ALONE) -> Tensor:
        """Return the vector sent."""
        rows = rows_of(knowledge)
        if rows is None:
            return honest.clone()
        chosen = rows.vectors.index_select(0, _farthest(rows).reshape(1))[0]
        return clamped_like(chosen.to(torch.float64), honest)


def _farthest(rows: Rows) -> Tensor:
    """Return the index of the row farthest along the direction of largest variance, 0-dim."""
    gram = centred_gram(rows.vectors, moments(rows).mean, unit_of(rows.vectors))
    root = rows.shares.sqrt()
    # X'WX and W^½XX'W^½ have the same largest eigenvalue a; if u is the latter's eigenvector,
    # ⟨v, x_i − μ⟩ = √a u_i / √w_i.
    vectors: Tensor = torch.linalg.eigh(root.unsqueeze(1) * gram * root).eigenvectors
    distance = vectors[:, -1].abs() / root
    return first_largest(distance)
