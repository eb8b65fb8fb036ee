"""Flower messages outside a running task."""

from collections.abc import Iterator

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity


@pytest.fixture(scope="session", autouse=True)
def _task_identity() -> Iterator[None]:
    """From flwr 1.41 a Message can only be built inside a task: pretend to be one, and stop."""
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    yield
    for name, value in before.items():
        setattr(TaskIdentity, name, value)


@pytest.fixture(scope="session")
def message(_task_identity: None) -> Message:
    """A query that replies can answer."""
    content = RecordDict({"config": ConfigRecord()})
    query = Message(content, dst_node_id=5, message_type="train")
    query.metadata.__dict__["_message_id"] = "m"
    return query
