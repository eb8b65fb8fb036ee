"""A clock and a grid for tests: scripted nodes, no network, no waiting."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from flwr_byzasync.wire.flower_compat import stamp_message

Behaviour = Callable[[Message], RecordDict | Error | None]
"""What a node does with a message: reply, report an error, or stay silent."""


@dataclass
class FakeClock:
    """Time that passes only in `sleep`."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@dataclass
class FakeNode:
    """A node with a behaviour and a reply time."""

    behave: Behaviour
    seconds: float = 1.0
    connected: bool = True
    busy_until: float = 0.0


@dataclass
class FakeGrid(Grid):
    """Delivers messages to `FakeNode`s, and their replies when they are due.

    It stands for a network, which fails where `on_pull` or `on_push` raises.
    """

    over_network: ClassVar[bool] = True

    clock: FakeClock
    nodes: dict[int, FakeNode]
    waiting: dict[str, tuple[float, Message]] = field(default_factory=dict)
    sent: list[Message] = field(default_factory=list)
    on_pull: Callable[[list[str]], None] = lambda ids: None
    on_push: Callable[[Message], bool] = lambda message: True

    def set_run(self, run: Any) -> None:
        raise AssertionError("a strategy must not choose the run")

    @property
    def run(self) -> Any:
        raise RuntimeError("no run was set")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise AssertionError("deprecated in Flower")

    def sleep(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    def get_node_ids(self) -> list[int]:
        return [node_id for node_id, node in self.nodes.items() if node.connected]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            if not self.on_push(message):
                continue
            stamp_message(message, f"m{len(self.sent)}", run_id=1, src_node_id=1)
            self.sent.append(message)
            ids.append(message.metadata.message_id)
            node = self.nodes[message.metadata.dst_node_id]
            reply = node.behave(message)
            if reply is not None:
                node.busy_until = max(node.busy_until, self.clock.now) + node.seconds
                self.waiting[ids[-1]] = (node.busy_until, Message(reply, reply_to=message))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        ids = list(message_ids)
        self.on_pull(ids)
        ready = [
            (when, key) for key in ids for when, _ in [self.waiting.get(key, (torch.inf, None))]
            if when <= self.clock.now
        ]  # fmt: skip
        return [self.waiting.pop(key)[1] for _, key in sorted(ready)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        ids = self.push_messages(list(messages))
        self.clock.now += timeout or 0.0
        return self.pull_messages(ids)


def reply_to(
    message: Message,
    vector: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
    **changes: Any,
) -> RecordDict:
    """Return the reply of a well-behaved node whose vector is a function of each array."""
    content = message.content
    arrays = content.array_records["arrays"].to_torch_state_dict()
    reply = RecordDict({"arrays": ArrayRecord({k: _array(vector(v)) for k, v in arrays.items()})})
    if "buffers" in content:
        reply["buffers"] = content["buffers"]
    reply["metrics"] = MetricRecord({"train_loss": 1.0})
    config = content.config_records["config"]
    reply["config"] = ConfigRecord({k: config[k] for k in ("byz.query", "byz.payload")})
    for key, value in changes.items():
        reply[key] = value
    return reply


def _array(tensor: torch.Tensor) -> Any:
    return ArrayRecord({"x": tensor})["x"]  # type: ignore[dict-item]


def context_of(partition: int = 0, **run_config: Any) -> Context:
    """Return a node's Context."""
    node_config = {"partition-id": partition, "num-partitions": 2}
    return Context(
        run_id=1, node_id=10 + partition, node_config=node_config, state=RecordDict(),
        run_config=run_config,
    )  # fmt: skip
