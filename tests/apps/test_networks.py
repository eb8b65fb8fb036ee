"""The networks for images, and their augmentation."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from apps.train.tasks import discover
from apps.train.tasks.augmentation import crop_and_flip
from apps.train.tasks.networks import Standardise


@given(st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_pixels_are_scaled_to_one_and_standardised_by_channel(channels: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    pixels = torch.tensor(draw.integers(0, 256, (6, channels, 5, 4), dtype=np.uint8))
    scaled = pixels.double() / 255
    mean, deviation = scaled.mean(dim=(0, 2, 3)), scaled.std(dim=(0, 2, 3))
    scaled_pixels = Standardise(tuple(mean.tolist()), tuple(deviation.tolist()))(pixels)
    assert scaled_pixels.dtype == torch.float32 and scaled_pixels.shape == pixels.shape
    torch.testing.assert_close(
        scaled_pixels.mean(dim=(0, 2, 3)), torch.zeros(channels), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(scaled_pixels.std(dim=(0, 2, 3)), torch.ones(channels))


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        ("mnist", (1, 28, 28), 66_230),
        ("fashion-mnist", (1, 28, 28), 66_230),
        ("cifar10", (3, 32, 32), 89_730),
    ],
)
def test_the_cnn_is_the_paper_s_network(name: str, shape: tuple[int, ...], parameters: int) -> None:
    task = discover()[name]
    assert next(iter(task.models)) == "cnn"
    model = task.make_model("cnn", seed=1)
    assert sum(p.numel() for p in model.parameters()) == parameters
    pixels = torch.randint(256, (5, *shape), dtype=torch.uint8)
    p, first = dict(enumerate(model.parameters())), model[0]
    h = functional.max_pool2d(functional.relu(functional.conv2d(first(pixels), p[0], p[1])), 2)
    h = functional.max_pool2d(functional.relu(functional.conv2d(h, p[2], p[3])), 2).flatten(1)
    h = functional.linear(h, p[4], p[5])
    h = functional.linear(
        functional.relu(functional.batch_norm(h, None, None, p[6], p[7], training=True)), p[8], p[9]
    )
    torch.testing.assert_close(model.train()(pixels), h)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_a_network_for_images_sends_its_parameters_and_batch_norm_s_buffers(
    name: str,
) -> None:
    expected = {"cnn": {"running_mean", "running_var", "num_batches_tracked"}, "mlp": set()}
    for key, buffers in expected.items():
        model = discover()[name].make_model(key, seed=1)
        names = {n for n, _ in model.named_parameters()} | {n for n, _ in model.named_buffers()}
        assert set(model.state_dict()) == names
        assert {n.split(".")[-1] for n, _ in model.named_buffers()} == buffers
        norms = sum(isinstance(m, nn.BatchNorm1d) for m in model.modules())
        assert norms == (1 if key == "cnn" else 0)


def variants(image: Tensor) -> list[Tensor]:
    """All shifts by up to two pixels, padded with black, and the mirror image of each."""
    _, height, width = image.shape
    images = []
    for down in range(-2, 3):
        for right in range(-2, 3):
            moved = torch.zeros_like(image)
            for y in range(max(0, -down), min(height, height - down)):
                for x in range(max(0, -right), min(width, width - right)):
                    moved[:, y, x] = image[:, y + down, x + right]
            images += [moved, moved.flip(2)]
    return images


@given(st.integers(0, 2**32 - 1), st.integers(0, 3), st.sampled_from([(1, 5, 5), (3, 4, 6)]))
@settings(max_examples=15, deadline=None)
def test_augmentation_shifts_and_mirrors_as_the_generator_decides(
    seed: int, n: int, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(1, 256, (n, *shape), dtype=torch.uint8, generator=generator)
    kept, state = images.clone(), generator.get_state()
    changed = crop_and_flip(images, generator)
    assert torch.equal(images, kept) and changed.dtype == torch.uint8
    assert all(
        any(torch.equal(new, v) for v in variants(old))
        for old, new in zip(images, changed, strict=True)
    )
    generator.set_state(state)
    assert torch.equal(crop_and_flip(images, generator), changed)


def test_augmentation_draws_all_fifty_changes_equally_often() -> None:
    image = torch.arange(1, 26, dtype=torch.uint8).reshape(1, 5, 5)
    changed = crop_and_flip(image.expand(2_000, 1, 5, 5), torch.Generator().manual_seed(0))
    counts = torch.tensor([int((changed == v).flatten(1).all(1).sum()) for v in variants(image)])
    assert counts.sum() == 2_000
    # 40 expected of each: 15 and 75 are four and more deviations away.
    assert counts.min() > 15 and counts.max() < 75
