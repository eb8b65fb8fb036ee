"""Partitions of the examples among the nodes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from apps.train.tasks import partitions
from flwr_byzasync import ConfigError


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Tensor, int]:
    labels = draw(st.lists(st.integers(0, 9), min_size=1, max_size=60))
    return torch.tensor(labels), draw(st.integers(1, len(labels)))


ALPHAS = st.floats(1e-300, 1.7e308).map(lambda a: f"dirichlet({a})")
TEXTS = st.just("iid") | ALPHAS | st.floats(0.01, 10).map(lambda a: f"dirichlet({a})")


@given(labelled(), TEXTS, st.integers(0, 2**63 - 1))
def test_every_example_belongs_to_one_node_and_every_node_has_one(
    data: tuple[Tensor, int], text: str, seed: int
) -> None:
    labels, nodes = data
    parts = partitions.build(text)(labels, nodes, seed)
    assert len(parts) == nodes and min(len(part) for part in parts) >= 1
    assert torch.cat(parts).sort().values.tolist() == list(range(len(labels)))
    again = partitions.build(text)(labels.clone(), nodes, seed)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))


def shares(text: str, seed: int) -> Tensor:
    """Return the share of each of 10 classes, of 1,000 examples each, at each of 10 nodes."""
    labels = torch.arange(10).repeat(1_000)
    parts = partitions.build(text)(labels, 10, seed)
    return torch.stack([labels[part].bincount(minlength=10) for part in parts]) / 1_000


@pytest.mark.parametrize("text", ["iid", "dirichlet(0.5)"])
def test_another_seed_gives_another_partition(text: str) -> None:
    assert not torch.equal(shares(text, seed=1), shares(text, seed=2))


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_shares_of_a_class_vary_as_the_dirichlet_distribution_does(alpha: float) -> None:
    drawn = torch.cat([shares(f"dirichlet({alpha})", seed) for seed in range(40)])
    # A share has mean 1/10 and variance (1/10)(9/10)/(10 α + 1).
    assert drawn.mean() == pytest.approx(0.1)
    assert drawn.var() == pytest.approx(0.09 / (10 * alpha + 1), rel=0.15)


def test_extreme_alphas_give_even_shares_or_one_node_per_class() -> None:
    assert (shares("dirichlet(1e9)", seed=1) - 0.1).abs().max() <= 0.002
    assert (shares("dirichlet(1e-9)", seed=1).max(dim=0).values > 0.99).all()


@pytest.mark.parametrize("text", ["iid", "dirichlet(1)"])
def test_more_nodes_than_examples_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^num-partitions=4 .* at most the 3"):
        partitions.build(text)(torch.tensor([0, 1, 0]), 4, 1)
