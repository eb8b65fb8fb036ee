"""Hypothesis profiles, one thread for every test, and Flower messages outside a running task."""

import os
from collections.abc import Iterator

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from hypothesis import settings

from flwr_byzasync.wire.flower_compat import pretend_task, stamp_message

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True, print_blob=True)
settings.register_profile("night", max_examples=400, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

# Sums are split by the number of threads: with one, results do not depend on the machine.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _task_identity() -> Iterator[None]:
    """From flwr 1.38 a Message can only be built inside a task: pretend to be one, and stop."""
    with pretend_task(run_id=1, node_id=1):
        yield


@pytest.fixture(scope="session")
def message(_task_identity: None) -> Message:
    """A query that replies can answer."""
    content = RecordDict({"config": ConfigRecord()})
    query = Message(content, dst_node_id=5, message_type="train")
    stamp_message(query, "m", run_id=1, src_node_id=1)
    return query
