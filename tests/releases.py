"""Which release of Flower is installed, and how to skip tests that need a newer one."""

from importlib.metadata import version

import pytest

INSTALLED = tuple(int(part) for part in version("flwr").split(".")[:2])


def since(major: int, minor: int, why: str) -> pytest.MarkDecorator:
    """Skip, and say why, where Flower is older."""
    return pytest.mark.skipif(
        (major, minor) > INSTALLED, reason=f"needs flwr {major}.{minor}: {why}"
    )
