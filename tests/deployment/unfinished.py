"""A SuperNode that announces a reply of some megabytes and never uploads its last part.

``python -m tests.deployment.unfinished ADDRESS CA_FILE KEY_FILE TOUCHED`` uses Flower's
client code; it touches the last file when the SuperLink expects a reply that will stay incomplete.
"""

import sys
import time
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response

BYTES = 4_000_000


def main(address: str, ca_file: str, key_file: str, touched: str) -> None:
    """Answer every message with an incomplete reply."""
    key = load_ssh_private_key(Path(key_file).read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    certificates = Path(ca_file).read_bytes()
    with http_request_response(address, False, certificates, (key, key.public_key())) as calls:
        node_id, receive, send, _, _, _, push_object, _ = calls
        TaskIdentity.task_id, TaskIdentity.node_id = 1, node_id
        while True:
            received = receive()
            if received is None:
                time.sleep(1.0)
                continue
            query = received[0]
            TaskIdentity.run_id = run_id = query.metadata.run_id
            content = RecordDict({"arrays": ArrayRecord({"weight": Array(np.zeros(BYTES // 8))})})
            reply = Message(content, reply_to=query)
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects = get_all_nested_objects(reply)
            missing, session = send(reply, get_object_tree(reply), 0.0)
            for object_id in sorted(missing, key=lambda each: len(objects[each].deflate()))[:-1]:
                push_object(run_id, session, object_id, objects[object_id].deflate())
            Path(touched).touch()


if __name__ == "__main__":
    main(*sys.argv[1:])
