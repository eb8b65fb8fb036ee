"""Differences between Flower's releases; the only file that uses Flower's private names."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from flwr.app import Context, Message

# Only Flower's latest releases export these from a public module.
ClientAppCallable = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, ClientAppCallable], Message]


@contextmanager
def pretend_task(run_id: int, node_id: int) -> Iterator[None]:
    """Pretend, inside the block, to be a Flower task of a run on a node.

    Parameters
    ----------
    run_id, node_id : int
        Origin of every Message that is created in the block.

    Notes
    -----
    From flwr 1.38 on a Message can only be created inside a task, and there is no public way to
    enter one. In earlier releases, and in any that store the identity differently, the block
    does nothing; in the latter Flower's own error says that there is no task.
    """
    identity = _task_identity()
    names = ("_task_id", "_run_id", "_node_id")
    if not all(hasattr(identity, name) for name in names):
        yield
        return
    before = [getattr(identity, name) for name in names]
    _write(identity, names, (1, run_id, node_id))
    try:
        yield
    finally:
        _write(identity, names, before)


def stamp_message(message: Message, message_id: str, run_id: int, src_node_id: int) -> None:
    """Set the metadata that Flower's own grids set when a message is pushed.

    Parameters
    ----------
    message : Message
        Modified.
    message_id : str
        The id by which its reply is pulled.
    run_id, src_node_id : int
        Its origin, which a new Message lacks before flwr 1.38.
    """
    # As Flower's grids do: these three have no setters.
    message.metadata.__dict__.update(
        _message_id=message_id, _run_id=run_id, _src_node_id=src_node_id
    )


def message_ids_of(
    message_ids: Iterable[str] | None, renamed: Mapping[str, Iterable[str]]
) -> list[str]:
    """Return the ids that `Grid.pull_messages` was given, whatever their parameter is called.

    flwr 1.43 renames the parameter `message_ids`; a grid of ours takes both names.

    Raises
    ------
    TypeError
        If there is not exactly one argument.
    """
    given = ([] if message_ids is None else [message_ids]) + list(renamed.values())
    if len(given) != 1:
        raise TypeError(f"pull_messages takes one argument, the message ids, not {len(given)}")
    return list(given[0])


def _task_identity() -> Any:
    """Return Flower's class for the identity of the current task; None before flwr 1.38."""
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError:
        return None
    return TaskIdentity


def _write(identity: Any, names: tuple[str, ...], values: Any) -> None:
    for name, value in zip(names, values, strict=True):
        setattr(identity, name, value)
