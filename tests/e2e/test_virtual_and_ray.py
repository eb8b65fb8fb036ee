"""One app, twice: under `flwr run` with Ray, and on VirtualGrid in this process."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from apps.benchmarks.local_flower import LocalFlower
from tests.apps.virtual import run_app
from tests.releases import since

pytestmark = [
    pytest.mark.slow,
    since(1, 41, "the reference app is run by `flwr run --federation-config`"),
]

CHANGES = {
    "model": "mlp-bn",
    "byzantine_nodes": 0,
    "quorum": 1,
    "num_server_rounds": 2,
    "updates_per_round": 20,
}


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Ray's actors compute with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_one_thread")
def test_with_one_node_both_end_with_the_same_bits(flower: LocalFlower, tmp_path: Path) -> None:
    # With several nodes, Ray's order of arrivals is not reproducible.
    words = [f"{k.replace('_', '-')}={f'{v!r}'}" for k, v in CHANGES.items()]
    real = tmp_path / "real"
    run = flower.run(f"{' '.join(words)} device='cpu' output-dir='{real}'", nodes=1)
    assert run.status == "finished:completed", run.tail()
    result = run_app(tmp_path / "virtual", 1, **CHANGES)
    assert (result["replies"], result["steps"]) == (40, 40)
    virtual, simulated = (load_file(f / "model.safetensors") for f in (tmp_path / "virtual", real))
    assert virtual.keys() == simulated.keys()
    assert all(torch.equal(virtual[name], simulated[name]) for name in virtual)
