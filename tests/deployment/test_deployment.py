"""Real SuperLink, SuperNodes and `flwr run`, with TLS and keys, through the faults of a long run.

The events happen one after another in one deployment (see the fixtures). Some take a minute, since
Flower waits that long before it reports a node or a process as dead.
"""

import json
from collections.abc import Collection

import pytest

from tests.deployment.deployment import EVERY, ROUND, Deployment
from tests.deployment.story import DEAD, HOSTILE, Ended, Entry, Resumed, Unfinished

pytestmark = pytest.mark.deployment

SLOW_MACHINE = {"LOST", "EXPIRED", "UNSENT"}
"""Reasons that a slow machine may add."""


def test_it_trains_over_tls_with_nodes_that_are_registered(trained: list[Entry]) -> None:
    first, last = trained[0], trained[-1]
    assert first["round"] == first["accepted"] == 0
    assert last["loss"] < 0.7 * first["loss"]


def test_a_key_that_is_not_registered_is_refused(deployment: Deployment) -> None:
    stranger = deployment.start_supernode("stranger", 9, "honest")
    assert stranger.wait(timeout=180) == 1
    assert "Failed to activate SuperNode" in deployment.log_of("stranger")


def test_the_run_goes_on_while_a_reply_is_not_uploaded_to_its_end(
    deployment: Deployment, trained: list[Entry], unfinished: Unfinished
) -> None:
    before, after, node = unfinished.before, unfinished.after, deployment.ids["unfinished"]
    assert before["run"] == after["run"] and after["steps"] >= before["steps"] + 10
    assert after["replies"][node] == 0, "it was queried, and no reply of it was used"


def test_the_run_goes_on_after_a_supernode_is_killed_while_it_computes(
    deployment: Deployment, killed_node: Entry, survived: Entry
) -> None:
    victim = deployment.ids["victim"]
    assert survived["run"] == killed_node["run"]
    assert survived["steps"] >= killed_node["steps"] + 10
    assert survived["reasons"]["NODE_GONE"] >= 1
    assert survived["replies"][victim] <= killed_node["replies"][victim] + ROUND


def test_a_supernode_that_joins_in_the_middle_of_a_run_gets_weight(
    deployment: Deployment, killed_node: Entry, added_node: Entry
) -> None:
    added = deployment.ids["added"]
    assert added not in killed_node["replies"]
    assert added_node["replies"][added] >= 1 and added_node["weights"][added] > 0


def test_a_hostile_supernode_is_counted_by_reason_and_moves_nothing(
    deployment: Deployment, survived: Entry
) -> None:
    hostile, reasons = deployment.ids["hostile"], survived["reasons"]
    assert HOSTILE | DEAD <= reasons.keys() <= HOSTILE | DEAD | SLOW_MACHINE
    assert survived["replies"][hostile] == 0 and survived["weights"][hostile] == 0


def test_claims_in_metrics_give_no_weight(deployment: Deployment, survived: Entry) -> None:
    boastful, replies = deployment.ids["boastful"], survived["replies"]
    assert replies[boastful] >= 1
    share = replies[boastful] / sum(replies.values())
    assert survived["weights"][boastful] == pytest.approx(share)


def test_a_client_process_that_dies_costs_its_node_a_while_and_the_run_nothing(
    deployment: Deployment, survived: Entry
) -> None:
    dying = deployment.ids["dying"]
    assert (deployment.output / "died").exists()
    assert survived["reasons"]["CRASHED"] >= 1
    assert survived["replies"][dying] >= 1, "the node is queried again, and its reply counts"


def test_a_run_whose_server_is_killed_goes_on_from_its_newest_checkpoint(
    deployment: Deployment, trained: list[Entry], killed_server: Ended, resumed: Resumed
) -> None:
    # The victim is gone, but a checkpoint may still contain it.
    here = killed_server.replies.keys() - {deployment.ids["victim"]}
    check_goes_on(killed_server, resumed, here)
    assert resumed.entry["loss"] < 0.1 * trained[0]["loss"]


def test_a_run_whose_superlink_is_killed_goes_on_from_its_newest_checkpoint(
    deployment: Deployment, resumed: Resumed, lost_superlink: Ended, resumed_again: Resumed
) -> None:
    """Its nodes wait for the SuperLink, which on restart marks the run as failed."""
    assert deployment.listed(resumed.run)["status"] == "finished:failed"
    check_goes_on(lost_superlink, resumed_again, lost_superlink.replies.keys())
    # Flower stops the run, which saves a checkpoint: nothing is lost.
    assert lost_superlink.accepted >= lost_superlink.entry["accepted"]


def test_a_run_that_is_stopped_goes_on_from_its_newest_checkpoint(
    deployment: Deployment, resumed_again: Resumed, stopped: Ended, finished: Resumed
) -> None:
    assert deployment.listed(resumed_again.run)["status"] == "finished:stopped"
    check_goes_on(stopped, finished, stopped.replies.keys())


def check_goes_on(ended: Ended, resumed: Resumed, nodes: Collection[str]) -> None:
    """At most the replies since the last checkpoint are lost, and no counts of these nodes."""
    assert ended.entry["run"] != resumed.entry["run"] == resumed.run
    assert ended.accepted >= ended.entry["accepted"] - ROUND * EVERY
    assert f"Resuming from {ended.checkpoint.name}: " in resumed.log
    assert f" {ended.accepted} replies, after " in resumed.log
    assert resumed.entry["round"] <= ended.entry["round"] + 1
    # Equal if the last reply completed a round that was not evaluated before the end.
    assert resumed.entry["accepted"] >= ended.accepted
    assert all(resumed.entry["replies"][node] >= ended.replies[node] for node in nodes)


def test_the_last_run_finishes_all_rounds_of_the_first(
    deployment: Deployment, stopped: Ended, finished: Resumed
) -> None:
    losses = json.loads((deployment.output / "result.json").read_text())["losses"]
    assert sorted(map(int, losses)) == list(range(stopped.entry["round"] + 4))
    assert losses[max(losses, key=int)] < 0.05 * losses["0"]
    assert deployment.listed(finished.run)["status"] == "finished:completed"


def test_a_resumed_run_never_pulls_the_messages_of_another_run(
    deployment: Deployment, finished: Resumed
) -> None:
    assert "contains invalid IDs" not in deployment.log_of("superlink")
    assert finished.entry["reasons"]["LOST"] >= 1
