"""Runs one cell on a virtual clock in this process."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from apps.paper.cells import ARRIVALS, Cell
from apps.paper.nodes import attack_of, nodes_of
from apps.train.settings import is_omniscient
from apps.train.tasks import Split, discover
from flwr_byzasync import AsyncRobust, Liveness, Quorum, VirtualGrid, aggregators, buffer_names
from flwr_byzasync.adversary import OmniscientGrid
from flwr_byzasync.optimizers import SGD, AnyTimeSGD, Iterates, Optimizer
from flwr_byzasync.simulation import PaperArrivals

FOREVER = 1e12
"""Seconds: the paper has no time limits, and the slowest node takes hours."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracy and loss after some replies."""

    reply: int
    accuracy: float
    loss: float
    seconds: float
    final: bool = False


@dataclass(frozen=True)
class BeforeFirstStep(Iterates):
    """The state of `SkipFirstStep` before its first direction."""


@dataclass(frozen=True)
class SkipFirstStep:
    """An optimizer that skips the first direction.

    In the paper's code the first reply of each node makes no step; the strategy would make its
    first step with the last of them.

    Parameters
    ----------
    optimizer : Optimizer
        For all other directions.
    """

    optimizer: Optimizer

    def init(self, start: Tensor) -> Iterates:
        """Return the state at the initial model, before the first direction."""
        state = self.optimizer.init(start)
        return BeforeFirstStep(state.start, state.w, state.x)

    def step(self, state: Iterates, direction: Tensor) -> Iterates:
        """Return the state after one step, or after the skipped one."""
        if isinstance(state, BeforeFirstStep):
            return Iterates(state.start, state.w, state.x)
        return self.optimizer.step(state, direction)


def run(cell: Cell, data_dir: str = "", download: bool = False) -> list[Evaluation]:
    """Run a cell.

    Parameters
    ----------
    cell : Cell
        Its settings.
    data_dir : str
        Folder of the data set.
    download : bool, default False
        Whether it may be downloaded.

    Returns
    -------
    list of Evaluation
        In order; the last is final. The same bits on every run on the same machine: one torch
        thread, so parallel cells change nothing.
    """
    with one_thread():
        return _run(cell, data_dir, download)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one torch thread; restore their number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(cell: Cell, data_dir: str, download: bool) -> list[Evaluation]:
    task = discover()[cell.dataset]
    training, test = load(cell.dataset, data_dir, download)
    arrivals = arrivals_of(cell)
    app = nodes_of(cell, task, training, arrivals.order(cell.replies))
    model = task.make_model(cell.model, cell.seed)
    strategy = strategy_of(cell, model)
    evaluations: list[Evaluation] = []
    began = time.perf_counter()

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        accuracy, loss = measure(model, arrays, test)
        reply = strategy.statistics().accepted if server_round else 0
        evaluations.append(Evaluation(reply, accuracy, loss, time.perf_counter() - began))

    attack = attack_of(cell)
    seeded = {"seed": cell.seed}
    with VirtualGrid(app, cell.nodes, run_config=seeded, arrivals=arrivals) as grid:
        byzantine = grid.node_ids[: cell.byzantine]
        result = strategy.start(
            OmniscientGrid(grid, attack, byzantine, rule=strategy.aggregator, seed=cell.seed)
            if is_omniscient(attack)
            else grid,
            ArrayRecord(model.state_dict()),
            num_rounds=cell.replies // cell.evaluate_every,
            timeout=FOREVER,
            evaluate_fn=evaluate,
        )
    accepted = strategy.statistics().accepted
    if evaluations[-1].reply < accepted:  # diverged: all nodes were quarantined in mid-round
        accuracy, loss = measure(model, result.arrays, test)
        evaluations.append(Evaluation(accepted, accuracy, loss, time.perf_counter() - began))
    return [*evaluations[:-1], replace(evaluations[-1], final=True)]


def arrivals_of(cell: Cell) -> PaperArrivals:
    """Return the arrivals of a cell."""
    return PaperArrivals(
        nodes=cell.nodes,
        byzantine=cell.byzantine,
        byz_fraction=cell.byz_fraction,
        within=cell.within,  # type: ignore[arg-type]
        turns=ARRIVALS[cell.arrivals],  # type: ignore[arg-type]
        seed=cell.seed,
    )


def strategy_of(cell: Cell, model: nn.Module) -> AsyncRobust:
    """Return the strategy of a cell: AnyTime-SGD for μ², plain SGD for the others."""
    optimizer: Optimizer = SGD(lr=cell.lr)
    if cell.optimizer == "mu2":
        optimizer = AnyTimeSGD(lr=cell.lr, gamma=cell.gamma)
    return AsyncRobust(
        aggregators.build(cell.rule, cell.rule_fraction),
        SkipFirstStep(optimizer) if cell.arrivals == "paper" else optimizer,
        quorum=Quorum(cell.nodes),
        updates_per_round=cell.evaluate_every,
        buffers=buffer_names(model),
        liveness=Liveness(reply_timeout=FOREVER, min_reply_timeout=FOREVER, poll_interval=1.0),
    )


@cache
def load(dataset: str, data_dir: str, download: bool) -> tuple[Split, Split]:
    """Return training and test examples, read once per process."""
    return discover()[dataset].load(data_dir, download)


def measure(model: nn.Module, arrays: ArrayRecord, test: Split) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy on the test set; the loss may be infinite."""
    model.load_state_dict(arrays.to_torch_state_dict())
    model.eval()
    correct, loss = 0, 0.0
    with torch.inference_mode():
        batches = zip(torch.split(test.inputs, 128), torch.split(test.labels, 128), strict=True)
        for inputs, labels in batches:
            if inputs.ndim == 4:  # convolutions of this size are three times as fast
                inputs = inputs.to(memory_format=torch.channels_last)
            outputs = model(inputs)
            correct += int((outputs.argmax(dim=1) == labels).sum())
            loss += float(nn.functional.cross_entropy(outputs, labels, reduction="sum"))
    size = len(test.labels)
    return correct / size, loss / size if math.isfinite(loss) else math.inf
