"""Label flip: train honestly on wrong labels (Biggio et al. 2012; here as in Dahan, Levy)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from flwr_byzasync.attacks.attack import AttackInfo, Needs


@dataclass(frozen=True)
class LabelFlip:
    """Train on labels ``C − 1 − y`` for C classes.

    The task applies it to the data; a client mod has no access to data.

    Examples
    --------
    >>> import torch
    >>> LabelFlip().transform(torch.tensor([0, 1, 9]), classes=10)
    tensor([9, 8, 0])
    """

    INFO: ClassVar[AttackInfo] = AttackInfo(
        name="label_flip",
        needs=Needs.OWN_LABELS,
        sources=("Dahan and Levy 2024, arXiv 2501.09621, section 5",),
    )

    def transform(self, labels: Tensor, classes: int) -> Tensor:
        """Return the flipped labels, of the same shape and dtype."""
        return classes - 1 - labels
