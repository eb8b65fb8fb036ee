"""Time of one aggregation by rule, relative to the weighted mean in the same run.

Rows are Gaussian, weights are counts. Compare the ratio to the mean, since machines and their load
differ. For incremental rules also the time of one reply, which changes one row of the table.
Medians of several calls, by default one torch thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from flwr_byzasync import aggregators
from flwr_byzasync._checks import check_integer
from flwr_byzasync.aggregators.incremental import incremental_of
from flwr_byzasync.core.table import Table

RULES = ("mean", "cwmed", "rfa", "gm", "ctma(cwmed)", "ctma(gm)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--nodes", type=int, default=17)
    parser.add_argument("--size", type=int, default=66_230, help="parameters of the model")
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")


def main(options: argparse.Namespace) -> None:
    """Time all rules in turn, call by call, and print a Markdown table."""
    for name in ("nodes", "size", "calls", "threads"):
        check_integer(name, getattr(options, name), low=1, fix=f"pass for example --{name} 1")
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(options.nodes, options.size, generator=generator).to(options.device)
    weights = torch.randint(1, 100, (options.nodes,), generator=generator)
    rules = {name: aggregators.build(name, byz_fraction=0.4) for name in RULES}
    tables = {name: filled(rule, rows) for name, rule in rules.items() if incremental_of(rule)}
    calls: dict[str, list[float]] = {name: [] for name in RULES}
    replies: dict[str, list[float]] = {name: [] for name in RULES}
    for call in range(options.calls + 1):
        reply = torch.randn(options.size, generator=generator).to(options.device)
        # In turn, so that a drift of the machine's speed affects all rules alike. The first
        # call of each is a warm-up, and is not counted.
        for name, rule in rules.items():
            scratch = seconds(rule, rows, weights)
            kept = seconds(answer, tables[name], call, reply) if name in tables else 0.0
            if call > 0:
                calls[name].append(scratch)
                replies[name].append(kept)
    print(f"m = {options.nodes}, d = {options.size}, {options.threads} thread(s), {options.device}")
    print(report(calls, replies))


def filled(rule: aggregators.Aggregator, rows: Tensor) -> Table[object]:
    """Return a table with all rows, each sent once."""
    table: Table[object] = Table(rule, rows.shape[1], rows.dtype, rows.device)
    for index, row in enumerate(rows):
        table.replace(index, row)
    return table


def answer(table: Table[object], call: int, reply: Tensor) -> Tensor:
    """Replace one row, a different one in each call, and return the direction."""
    table.replace(call % len(table), reply)
    return table.direction()


def seconds(work: Callable[..., Tensor], *arguments: object) -> float:
    """Return the seconds until the result is on the host."""
    began = time.perf_counter()
    work(*arguments).cpu()
    return time.perf_counter() - began


def report(calls: dict[str, list[float]], replies: dict[str, list[float]]) -> str:
    """Return the Markdown table."""
    lines = [
        "| rule | ms | times the mean | ms a reply, kept up to date | times faster |",
        "|---|---|---|---|---|",
    ]
    for name, took in calls.items():
        middle = 1e3 * statistics.median(took)
        cells = [f"`{name}`", f"{middle:.1f}", f"{_ratio(took, calls['mean']):.1f}", "", ""]
        if any(kept := replies[name]):
            cells[3:] = f"{1e3 * statistics.median(kept):.1f}", f"{_ratio(took, kept):.1f}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(times: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, others, strict=True))
