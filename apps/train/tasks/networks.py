"""Networks for images, shared by all image data sets.

Source of `cnn`: Dahan and Levy, arXiv 2501.09621, section on experiments.
"""

import torch
from torch import Tensor, nn


class Standardise(nn.Module):
    """Pixels of 0 .. 255 -> (pixels / 255 − mean) / deviation by channel, in float32.

    The first layer of a network for images, so that data stay uint8 and a saved model takes raw
    pixels. It has no parameters or buffers: nothing of it is sent or aggregated.

    Parameters
    ----------
    mean, deviation : tuple of float
        Of the training pixels, scaled to [0, 1], by channel.

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
        """Standardise (..., channels, height, width); a single channel may be omitted."""
        shape = (self.channels, 1, 1) if self.channels > 1 else ()
        mean, deviation = (
            torch.tensor(values, device=pixels.device).reshape(shape)
            for values in (self.mean, self.deviation)
        )
        return (pixels / 255 - mean) / deviation


def cnn(pixels: Standardise, side: int, classes: int = 10) -> nn.Module:
    """Return the paper's network: two convolutions, batch norm, 66,230 parameters for 28x28x1.

    Convolution of 20 channels 5x5, pool 2, convolution of 50 channels 5x5, pool 2, fully
    connected to 50, batch norm, fully connected to `classes`; ReLU after all but the last.

    Parameters
    ----------
    pixels : Standardise
        First layer; its channels are those of the images.
    side : int
        Height and width of the images: a multiple of 4, >= 16.
    classes : int, default 10
        Number of outputs.
    """
    pooled = ((side - 4) // 2 - 4) // 2
    return nn.Sequential(
        *(pixels, nn.Conv2d(pixels.channels, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(50 * pooled * pooled, 50), nn.BatchNorm1d(50), nn.ReLU()),
        nn.Linear(50, classes),
    )


def mlp(pixels: Standardise, side: int, classes: int = 10) -> nn.Module:
    """Return a network with one hidden layer of 32 and ReLU: fast, no buffers.

    Parameters
    ----------
    pixels, side, classes
        As for `cnn`; any `side`.
    """
    inputs = pixels.channels * side * side
    return nn.Sequential(
        pixels, nn.Flatten(), nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, classes)
    )
