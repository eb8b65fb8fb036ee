"""Random changes of training images that keep their labels."""

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

PADDING = 2


def crop_and_flip(images: Tensor, generator: Generator) -> Tensor:
    """Shift each image by up to two pixels, padded with black, and mirror it with probability 1/2.

    Parameters
    ----------
    images : Tensor
        (n, channels, height, width), of any dtype; not written.
    generator : Generator
        On the CPU. The same state and batch give the same images, as the two gradients of μ²
        on one batch need.

    Returns
    -------
    Tensor
        As `images`, in new memory.
    """
    n, channels, height, width = images.shape
    down, right = torch.randint(2 * PADDING + 1, (2, n, 1), generator=generator)
    mirrored = torch.randint(2, (n, 1), generator=generator).bool()
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    return pad(images, (PADDING,) * 4)[
        torch.arange(n).reshape(n, 1, 1, 1),
        torch.arange(channels).reshape(1, channels, 1, 1),
        rows.reshape(n, 1, height, 1),
        columns.reshape(n, 1, 1, width),
    ]
