"""What differs between Flower's releases; the one file that touches what is private in Flower."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Context, Message

# Flower exports these from a public module only in its latest releases.
ClientAppCallable = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, ClientAppCallable], Message]


@contextmanager
def pretend_task(run_id: int, node_id: int) -> Iterator[None]:
    """Pretend to be a Flower task of a run on a node, and stop.

    Parameters
    ----------
    run_id, node_id : int
        What Flower believes in the block: the origin of every Message made there.

    Notes
    -----
    From flwr 1.38 on a query can be made in a task only, and there is no public way to be one.
    Earlier releases make it anywhere; there the block does nothing. So it does where a release
    keeps the identity in another way: then Flower's own error says that there is none.
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
    """Write on a message what Flower's own grids write when it is pushed.

    Parameters
    ----------
    message : Message
        Written to.
    message_id : str
        By which its reply is asked for.
    run_id, src_node_id : int
        Where it comes from; before flwr 1.38 a new Message does not know.
    """
    # Flower's grids do the same: these three have no setters.
    message.metadata.__dict__.update(
        _message_id=message_id, _run_id=run_id, _src_node_id=src_node_id
    )


def _task_identity() -> Any:
    """Return the class that knows whose task this process runs; None before flwr 1.38."""
    try:
        from flwr.supercore.task_identity import TaskIdentity
    except ImportError:
        return None
    return TaskIdentity


def _write(identity: Any, names: tuple[str, ...], values: Any) -> None:
    for name, value in zip(names, values, strict=True):
        setattr(identity, name, value)
