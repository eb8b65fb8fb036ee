"""Networks for images, one definition each whatever the data set.

Source of `cnn`: Dahan and Levy, arXiv 2501.09621, section on experiments.
"""

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Pixels of 0 .. 255 -> (pixels / 255 − mean) / deviation by channel, in float32.

    The first layer of a network for images, so that data stay bytes until they are used and a
    saved model takes what a camera gives. It has no parameters and no buffers: nothing of it
    travels or is aggregated.

    Parameters
    ----------
    mean, deviation : tuple of float
        Of the training set's pixels, scaled to [0, 1]; one for each channel.

    Examples
    --------
    >>> Standardise((0.5,), (0.25,))(torch.tensor([0, 255], dtype=torch.uint8))
    tensor([-2.,  2.])
    """

    def __init__(self, mean: tuple[float, ...], deviation: tuple[float, ...]) -> None:
        super().__init__()
        self.mean, self.deviation = mean, deviation

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.mean)

    def forward(self, pixels: Tensor) -> Tensor:
        """Standardise (..., channels, height, width); one channel may be left out."""
        shape = (self.channels, 1, 1) if self.channels > 1 else ()
        mean, deviation = (
            torch.tensor(values, device=pixels.device).reshape(shape)
            for values in (self.mean, self.deviation)
        )
        return (pixels / 255 - mean) / deviation


def cnn(pixels: Standardise, side: int, classes: int = 10) -> nn.Module:
    """Return the paper's network: two convolutions, batch norm, 66,230 parameters for 28x28x1.

    Convolution of 20 channels 5x5, pool 2, convolution of 50 channels 5x5, pool 2, fully
    connected to 50, batch norm, fully connected to `classes`; ReLU after each but the last.

    Parameters
    ----------
    pixels : Standardise
        First layer; its channels are those of the images.
    side : int
        Height and width of the images: 28, 32 or another multiple of 4 from 16 on.
    classes : int, default 10
        Number of outputs.
    """
    left = ((side - 4) // 2 - 4) // 2
    return nn.Sequential(
        *(pixels, nn.Conv2d(pixels.channels, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(50 * left * left, 50), nn.BatchNorm1d(50), nn.ReLU()),
        nn.Linear(50, classes),
    )


def mlp(pixels: Standardise, side: int, classes: int = 10) -> nn.Module:
    """Return one hidden layer of 32 with ReLU: a quick network without buffers.

    Parameters
    ----------
    pixels, side, classes
        As for `cnn`; any `side` is fine.
    """
    inputs = pixels.channels * side * side
    return nn.Sequential(
        pixels, nn.Flatten(), nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, classes)
    )
