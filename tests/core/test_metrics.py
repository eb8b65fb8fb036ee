"""The median of what nodes report, at a cost linear in what they report."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_byzasync.aggregators import CoordinateWiseMedian
from flwr_byzasync.core.metrics import Metrics, median_metrics


def by_name(reports: Sequence[tuple[Metrics, float]]) -> dict[str, float | list[float]]:
    """The reference: name by name, it looks at every node for each."""
    total = sum(weight for _, weight in reports)
    result: dict[str, float | list[float]] = {}
    for name in sorted({name for metrics, _ in reports for name in metrics}):
        by_length: dict[int, list[tuple[tuple[float, ...], float]]] = {}
        for metrics, weight in reports:
            value = metrics.get(name)
            if isinstance(value, tuple):
                by_length.setdefault(len(value), []).append((value, weight))
            elif value is not None:
                by_length.setdefault(-1, []).append(((value,), weight))
        for length, group in by_length.items():
            if 2 * sum(weight for _, weight in group) > total:
                values = torch.tensor([value for value, _ in group], dtype=torch.float64)
                weights = torch.tensor([weight for _, weight in group])
                median = CoordinateWiseMedian()(values, weights).tolist()
                result[name] = median[0] if length == -1 else median
    return result


NUMBERS = st.floats(-1e299, 1e299)
VALUES = NUMBERS | st.lists(NUMBERS, min_size=1, max_size=3).map(tuple)
REPORTS = st.dictionaries(st.sampled_from(["", "a", "b", "loss", "ü", "\n"]), VALUES, max_size=5)
WEIGHTS = st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.0, 1 / 3, 5.0, 1e-9, 1e9])


@given(st.lists(st.tuples(REPORTS, WEIGHTS), max_size=8))
def test_the_median_is_that_of_each_name_on_its_own(reports: list[tuple[Metrics, float]]) -> None:
    got, expected = median_metrics(reports), by_name(reports)
    assert repr(got) == repr(expected)  # every bit, the signs of zeros, and the order


class Counted(Mapping[str, float]):
    """Metrics that count how often they are looked up."""

    looked_up = 0

    def __init__(self, names: list[str]) -> None:
        self._names = dict.fromkeys(names, 1.0)

    def __getitem__(self, name: str) -> float:
        Counted.looked_up += 1
        return self._names[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def test_names_of_a_node_s_own_cost_no_look_at_any_other_node() -> None:
    nodes, names = 40, 50
    own = [Counted([f"{node}:{k}" for k in range(names)]) for node in range(nodes)]
    Counted.looked_up = 0
    assert median_metrics([(metrics, 1.0) for metrics in own]) == {}
    assert Counted.looked_up <= 2 * nodes * names
