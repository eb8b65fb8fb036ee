"""One local SuperLink for all end-to-end tests."""

from collections.abc import Iterator

import pytest

from apps.benchmarks.local_flower import LocalFlower


@pytest.fixture(scope="session")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFlower]:
    """Yield `flwr` with a SuperLink of its own, which ends with the tests."""
    local = LocalFlower(tmp_path_factory.mktemp("flower"))
    try:
        yield local
    finally:
        local.stop()
