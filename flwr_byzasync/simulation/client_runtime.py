"""A ClientApp called as a SuperNode would, and the SuperLink's own error replies."""

from copy import deepcopy

from flwr.app import Context, Error, Message, RecordDict

from flwr_byzasync.wire.flower_compat import ClientAppCallable, pretend_task, stamp_message

RUN_ID = 1
SUPERLINK = 1
"""Node id of the SuperLink, the source of its error replies."""
RAISED, UNAVAILABLE, NODE_GONE = 2, 3, 5
"""Flower's error codes."""


def run_client(
    app: ClientAppCallable, query: Message, context: Context
) -> tuple[Message, RecordDict]:
    """Return an app's reply, and the state to keep.

    Everything is copied, as if sent over a network: an app can neither modify the server's
    objects nor keep half of its changes when it raises, which makes an error reply.
    """
    before = deepcopy(context.state)
    with pretend_task(RUN_ID, context.node_id):
        try:
            reply = app(deepcopy(query), context)
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp returned {type(reply).__name__}, no Message")
            return deepcopy(reply), deepcopy(context.state)
        except (Exception, SystemExit) as error:
            described = Error(code=RAISED, reason=_described(error))
            return Message(described, reply_to=query), before


def superlink_error(message_id: str, code: int, reason: str) -> Message:
    """Return an error reply of the SuperLink; only the id of an unknown message is known."""
    query = Message(RecordDict(), dst_node_id=SUPERLINK, message_type="system")
    stamp_message(query, message_id, RUN_ID, SUPERLINK)
    return Message(Error(code=code, reason=reason), reply_to=query)


def _described(error: BaseException) -> str:
    """Return an exception in Flower's words; its own ``str`` may raise as well."""
    try:
        return f"{type(error)}:<'{error}'>"
    except Exception:
        return f"{type(error)}"
