"""Attacks as Flower client mods: any honest ClientApp becomes Byzantine without being changed."""

from collections.abc import Callable

from flwr.app import Context, Message, MessageType
from flwr.clientapp.typing import ClientAppCallable, Mod

from flwr_byzasync import records
from flwr_byzasync.attacks import VectorAttack
from flwr_byzasync.layout import Layout


def attack_mod(
    attack: Callable[[Context], VectorAttack | None], arrayrecord_key: str = "arrays"
) -> Mod:
    """Return a mod that replaces what the node sends.

    Parameters
    ----------
    attack : callable
        ``Context -> attack``, or None where this node is honest.
    arrayrecord_key : str
        As given to the strategy. Buffers stay honest.

    Returns
    -------
    Mod
        For ``ClientApp(mods=[...])``. Only train replies with content are touched.

    Examples
    --------
    Nodes 0 and 1 are Byzantine::

        from flwr_byzasync.attacks import SignFlip

        def attack(context):
            return SignFlip() if context.node_config["partition-id"] < 2 else None

        app = ClientApp(mods=[attack_mod(attack)])
    """

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        reply = call_next(message, context)
        chosen = attack(context)
        trains = message.metadata.message_type.split(".")[0] == MessageType.TRAIN
        if chosen is None or not trains or not reply.has_content():
            return reply
        arrays = records.tensors_of(reply.content.array_records[arrayrecord_key])
        layout = Layout.of(arrays)
        sent = chosen.craft(layout.flatten(arrays))
        reply.content[arrayrecord_key] = records.record_of(layout.unflatten(sent))
        return reply

    return mod
