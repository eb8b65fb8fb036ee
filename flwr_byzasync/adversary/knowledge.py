"""What a Byzantine node knows, from vectors that it or its grid has observed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flwr_byzasync.attacks import Knowledge


def knowledge_of(vectors: Sequence[Tensor], counts: Sequence[int], **rest: Any) -> Knowledge:
    """Return knowledge of observed vectors, each with the weight that it counts for.

    Parameters
    ----------
    vectors : sequence of Tensor
        (d,) each; none if nothing was observed.
    counts : sequence of int
        Weight of each vector.
    **rest
        Other fields of `Knowledge`.
    """
    if not vectors:
        return Knowledge(rows=None, weights=None, **rest)
    weights = torch.tensor(list(counts), dtype=torch.int64)
    return Knowledge(rows=torch.stack(list(vectors)), weights=weights, **rest)
