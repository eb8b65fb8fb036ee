"""Time of a run on a virtual clock, compared with a plain loop of the same arithmetic.

One cell of figure 2 (w-CWMed, sign flip) by `AsyncRobust` on `VirtualGrid`, and by a loop without
Flower that computes the same two gradients per arrival and sorts for the weighted median. Both
end with the same model, bit for bit. They alternate in one process, with one torch thread.
"""

import argparse
import time

import torch
from flwr.app import ArrayRecord

from apps.paper import nodes, run
from apps.paper.cells import Cell
from apps.paper.figures import cells_of
from apps.paper.plain import plain
from apps.train import client_app
from apps.train.tasks import discover
from flwr_byzasync._checks import check_integer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--dataset", default="fashion-mnist")
    parser.add_argument("--data-dir", default="", help="folder of the data set")
    parser.add_argument("--replies", type=int, default=3750)
    parser.add_argument("--turns", type=int, default=1, help="runs of each")


def main(options: argparse.Namespace) -> None:
    """Run both in turn and print a Markdown table."""
    for name in ("replies", "turns"):
        check_integer(name, getattr(options, name), low=1, fix=f"pass for example --{name} 1")
    every = {"replies": options.replies, "evaluate_every": options.replies}
    cells = cells_of("fig2", [1], options.dataset, **every)
    cell = next(c for c in cells if (c.rule, c.attack) == ("cwmed", "sign_flip"))
    discover()[cell.dataset].check(options.data_dir)
    run.load(cell.dataset, options.data_dir, False)
    print("| turn | loop | s | s in gradients | s in all else | times the plain loop |")
    print("|---|---|---|---|---|---|")
    for turn in range(1, options.turns + 1):
        loop = plain(cell, options.data_dir)
        strategy, gradients, arrays = timed(cell, options.data_dir)
        model = arrays.to_torch_state_dict()
        if not all(torch.equal(value, model[name]) for name, value in loop.arrays.items()):
            raise AssertionError("the strategy and the plain loop end with different models")
        for name, seconds, inside in (
            ("plain, sort", loop.seconds, loop.gradient_seconds),
            ("AsyncRobust on VirtualGrid", strategy, gradients),
        ):
            ratio = seconds / loop.seconds
            print(
                f"| {turn} | {name} | {seconds:.1f} | {inside:.1f} | {seconds - inside:.1f} "
                f"| {ratio:.2f} |",
                flush=True,
            )


def timed(cell: Cell, data_dir: str) -> tuple[float, float, ArrayRecord]:
    """Return seconds without evaluation, seconds in gradients, and the final arrays."""
    inside = 0.0
    original_gradient, original_measure = client_app.batch_gradient, run.measure
    kept: list[ArrayRecord] = []

    def gradient(*arguments: object) -> object:
        nonlocal inside
        began = time.perf_counter()
        try:
            return original_gradient(*arguments)  # type: ignore[arg-type]
        finally:
            inside += time.perf_counter() - began

    def measure(model: object, arrays: ArrayRecord, test: object) -> tuple[float, float]:
        del model, test
        kept.append(arrays)
        return 0.0, 0.0

    patched, whole = nodes.__dict__, run.__dict__
    patched["batch_gradient"], whole["measure"] = gradient, measure
    try:
        began = time.perf_counter()
        run.run(cell, data_dir)
        return time.perf_counter() - began, inside, kept[-1]
    finally:
        patched["batch_gradient"], whole["measure"] = original_gradient, original_measure
