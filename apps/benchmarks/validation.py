"""The cost of validation: decoding one reply, compared with one w-CWMed step from scratch.

Per size: the step; `decode_reply` of a valid reply, and of one with values of 1e30, whose norm
takes a second pass; a bare copy of the values into a vector, whose time is subtracted to get that
of the checks alone; and Flower's own reading, `Array.numpy()`, into such a vector. Milliseconds,
medians of several calls in turn, one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from flwr_byzasync import VirtualGrid
from flwr_byzasync._checks import check_integer
from flwr_byzasync.aggregators import CoordinateWiseMedian
from flwr_byzasync.core.layout import ModelLayout
from flwr_byzasync.core.state import Update
from flwr_byzasync.wire.arrays import record_of
from flwr_byzasync.wire.keys import PAYLOAD, QUERY, MessageFormat
from flwr_byzasync.wire.replies import decode_reply

CPU = torch.device("cpu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--nodes", type=int, default=17)
    parser.add_argument("--sizes", type=int, nargs="+", default=[66_230, 10_000_000])
    # The number in the paper's network.
    parser.add_argument("--arrays", type=int, default=13, help="arrays per reply")
    parser.add_argument("--calls", type=int, default=7)


def main(options: argparse.Namespace) -> None:
    """Time each kind of work, and print a Markdown table."""
    for name in ("nodes", "arrays", "calls"):
        check_integer(name, getattr(options, name), low=1, fix=f"pass for example --{name} 1")
    for size in options.sizes:
        check_integer("sizes", size, low=options.arrays, fix="pass for example --sizes 66230")
    torch.set_num_threads(1)
    print(f"m = {options.nodes}, {options.arrays} arrays a reply, 1 thread\n")
    print("| d | step | decode | share | of it checks | share | of 1e30 | share | Flower's read |")
    print("|---" * 9 + "|")
    for size in options.sizes:
        took = measured(options.nodes, size, options.arrays, options.calls)
        print(f"| {size:,} | {_row(**took)} |", flush=True)


def measured(nodes: int, size: int, arrays: int, calls: int) -> dict[str, float]:
    """Return the median seconds of each kind of work."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(nodes, size, generator=generator)
    weights = torch.randint(1, 100, (nodes,), generator=generator)
    rule = CoordinateWiseMedian()
    reply, layout = reply_of(rows[0], arrays)
    huge, _ = reply_of(torch.full((size,), 1e30), arrays)
    works: dict[str, Callable[[], object]] = {
        "step": lambda: rule(rows, weights),
        "decode": lambda: decoded(reply, layout),
        "huge": lambda: decoded(huge, layout),
        "copy": lambda: copied(reply, layout),
        "flower": lambda: read_by_flower(reply, layout),
    }
    took: dict[str, list[float]] = {name: [] for name in works}
    for call in range(calls + 1):
        for name, work in works.items():
            rows.sum()  # evicts the caches, as a step between two replies does
            began = time.perf_counter()
            work()
            # The first call of each is a warm-up.
            if call > 0:
                took[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in took.items()}


def reply_of(vector: Tensor, arrays: int) -> tuple[Message, ModelLayout]:
    """Return a valid reply with a vector cut into arrays, and its layout."""
    cut = {f"layer{k}.weight": part for k, part in enumerate(vector.tensor_split(arrays))}
    content = RecordDict(
        {
            "arrays": record_of(cut),
            "metrics": MetricRecord({"num-examples": 10, "loss": 0.5}),
            "config": ConfigRecord({QUERY: 0, PAYLOAD: "momentum"}),
        }
    )
    with VirtualGrid(lambda message, _: message, 1) as grid:
        query = Message(RecordDict(), dst_node_id=grid.node_ids[0], message_type="train")
        grid.push_messages([query])
        return Message(content, reply_to=query), ModelLayout.of(cut)


def decoded(reply: Message, layout: ModelLayout) -> Update:
    """Decode and check a reply as the strategy does."""
    update = decode_reply(reply, layout, CPU, query=0, message_format=MessageFormat())
    if not isinstance(update, Update):
        raise RuntimeError(f"a valid reply was rejected: {update}")
    return update


def copied(reply: Message, layout: ModelLayout) -> Tensor:
    """Copy the last bytes of each array into a vector, unchecked."""
    flat, start = np.empty(layout.parameters.size, dtype=np.float32), 0
    record = reply.content.array_records["arrays"]
    for entry in layout.parameters.entries:
        data = record[entry.name].data
        flat[start : start + entry.size] = np.frombuffer(
            memoryview(data)[-4 * entry.size :], np.float32
        )
        start += entry.size
    return torch.from_numpy(flat)


def read_by_flower(reply: Message, layout: ModelLayout) -> Tensor:
    """Read a reply as Flower's strategies do, into a vector."""
    state = reply.content.array_records["arrays"].to_torch_state_dict()
    return layout.parameters.flatten(state)


def _row(step: float, decode: float, huge: float, copy: float, flower: float) -> str:
    cells = [f"{1e3 * step:.1f}"]
    for each in (decode, decode - copy, huge):
        cells += [f"{1e3 * each:.2f}", f"{each / step:.2%}"]
    return " | ".join([*cells, f"{1e3 * flower:.2f}"])
