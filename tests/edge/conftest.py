"""Flower messages outside a running task."""

from collections.abc import Iterator

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from flwr_byzasync.wire.flower_compat import post, task


@pytest.fixture(scope="session", autouse=True)
def _task_identity() -> Iterator[None]:
    """From flwr 1.38 a Message can only be built inside a task: pretend to be one, and stop."""
    with task(run_id=1, node_id=1):
        yield


@pytest.fixture(scope="session")
def message(_task_identity: None) -> Message:
    """A query that replies can answer."""
    content = RecordDict({"config": ConfigRecord()})
    query = Message(content, dst_node_id=5, message_type="train")
    post(query, "m", run_id=1, src_node_id=1)
    return query
