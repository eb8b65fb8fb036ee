"""The reference app's server: no reply and no network fault ends it."""

from pathlib import Path

import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Result

from apps.train import server_app
from apps.train.output import Output
from apps.train.report import final_table
from apps.train.server_app import identify
from flwr_byzasync import ConfigError
from flwr_byzasync.core.statistics import Statistics
from tests.apps.test_train import settings
from tests.fakes import Behaviour, FakeClock, FakeGrid, FakeNode


def reporting(partition: object) -> Behaviour:
    def behave(message: Message) -> RecordDict:
        return RecordDict({"metrics": MetricRecord({"partition-id": partition})})  # type: ignore[dict-item]

    return behave


def grid_of(*behaviours: Behaviour) -> FakeGrid:
    return FakeGrid(FakeClock(), {k: FakeNode(b, 0.0) for k, b in enumerate(behaviours)})


@pytest.fixture(autouse=True)
def _fake_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_app, "clock_of", lambda grid: (grid.clock, grid.clock.sleep))


def test_nodes_are_named_by_the_partitions_that_they_report() -> None:
    grid = grid_of(reporting(2), reporting(0), reporting(1))
    assert identify(grid, [0, 1, 2]) == {0: 2, 1: 0, 2: 1}


@pytest.mark.parametrize(
    "hostile",
    [
        reporting(0), reporting(-1), reporting(99), reporting(1.5), reporting([2, 2]),
        lambda m: RecordDict(), lambda m: Error(2, "boom"), lambda m: None,
    ],
)  # fmt: skip
def test_a_node_that_reports_no_partition_of_its_own_is_left_out(hostile: Behaviour) -> None:
    grid = grid_of(reporting(0), reporting(1), hostile)
    assert identify(grid, [0, 1, 2]) == {0: 0, 1: 1}


@pytest.mark.parametrize("call", ["on_pull", "on_push"])
def test_a_network_error_costs_at_most_one_name(call: str) -> None:
    grid, calls = grid_of(reporting(0), reporting(1), reporting(2)), []

    def once(_: object) -> bool:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("no route")
        return True

    setattr(grid, call, once)
    named = identify(grid, [0, 1, 2])
    assert len(named) >= 2 and all(node == partition for node, partition in named.items())


def test_an_output_folder_that_cannot_be_made_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^output-dir=.* a folder that can be made"):
        Output(settings(output_dir=str(tmp_path / "file")))


def table(attack: str, replies: dict[int, int], partitions: dict[int, int]) -> str:
    result = Result(evaluate_metrics_serverapp={1: MetricRecord({"accuracy": 0.5, "loss": 1.0})})
    chosen = settings(attack=attack, byzantine_nodes=1)
    return "\n".join(final_table(chosen, result, Statistics(replies), partitions, 1.0))


def test_the_table_names_the_attack_even_if_none_of_its_replies_was_used() -> None:
    text = table("sign_flip", {7: 0, 8: 3}, {7: 0, 8: 1})
    assert "sign_flip by nodes 0 .. 0" in text and "0.0%" in text


def test_the_table_says_unknown_where_a_node_reported_no_partition() -> None:
    assert "Byzantine weight  unknown" in table("sign_flip", {7: 1, 8: 3}, {8: 1})


def test_the_table_warns_when_liars_hold_more_than_byz_fraction() -> None:
    assert "Warning: Byzantine nodes held 75.0%" in table("sign_flip", {7: 3, 8: 1}, {7: 0, 8: 1})
    assert "Warning" not in table("none", {7: 3, 8: 1}, {7: 0, 8: 1})
