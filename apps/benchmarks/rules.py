"""Time of one aggregation by rule, beside the weighted mean measured in the same run.

Rows are Gaussian, weights are counts; the ratio to the mean is what to compare, since machines
and their load differ. Medians of several calls, one torch thread unless told otherwise.
"""

import argparse
import statistics
import time

import torch

from flwr_byzasync import aggregators
from flwr_byzasync.errors import check_integer

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
    seconds: dict[str, list[float]] = {name: [] for name in RULES}
    for call in range(options.calls + 1):
        # In turn, so that a drift of the machine's speed meets every rule alike.
        for name, rule in rules.items():
            began = time.perf_counter()
            rule(rows, weights).cpu()
            if call > 0:
                seconds[name].append(time.perf_counter() - began)
    print(f"m = {options.nodes}, d = {options.size}, {options.threads} thread(s), {options.device}")
    print("| rule | ms | times the mean |")
    print("|---|---|---|")
    for name in RULES:
        ratios = [a / b for a, b in zip(seconds[name], seconds["mean"], strict=True)]
        milliseconds = 1e3 * statistics.median(seconds[name])
        print(f"| `{name}` | {milliseconds:.1f} | {statistics.median(ratios):.1f} |")
