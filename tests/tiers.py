"""Which tests plain `pytest` runs, and which need `pytest -m slow`."""

from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """Mark one case of a parametrized test as slow."""
    return pytest.param(*values, marks=pytest.mark.slow)


def searched(few: int, many: int) -> pytest.MarkDecorator:
    """Run a search twice: with `few` examples in the fast tier, and with `many` in the slow one.

    The test takes the number as its argument `examples`.
    """
    cases = [pytest.param(few, id="few"), pytest.param(many, id="many", marks=pytest.mark.slow)]
    return pytest.mark.parametrize("examples", cases)
