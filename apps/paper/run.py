"""One cell run from its settings to its accuracies, on a virtual clock, in this process."""

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
"""Seconds: the paper's nodes have no time limits; the rarest of them is asked for hours."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured after so many replies."""

    reply: int
    accuracy: float
    loss: float
    seconds: float
    final: bool = False


@dataclass(frozen=True)
class BeforeFirstPass(Iterates):
    """The state of `AfterFirstPass` until it has let one direction pass."""


@dataclass(frozen=True)
class AfterFirstPass:
    """An optimizer that lets the first direction pass.

    In the paper's code the first replies of all nodes make no step, and the next reply makes
    the first. The strategy makes it with the last of the first replies.

    Parameters
    ----------
    optimizer : Optimizer
        Makes the other steps.
    """

    optimizer: Optimizer

    def init(self, start: Tensor) -> Iterates:
        """Return the state at the initial model, before the first pass."""
        state = self.optimizer.init(start)
        return BeforeFirstPass(state.start, state.w, state.x)

    def step(self, state: Iterates, direction: Tensor) -> Iterates:
        """Return the state after one step, or after the first pass."""
        if isinstance(state, BeforeFirstPass):
            return Iterates(state.start, state.w, state.x)
        return self.optimizer.step(state, direction)


def run(cell: Cell, data_dir: str = "", download: bool = False) -> list[Evaluation]:
    """Run a cell.

    Parameters
    ----------
    cell : Cell
        Its settings.
    data_dir : str
        Where the data set lies.
    download : bool, default False
        Whether it may be downloaded.

    Returns
    -------
    list of Evaluation
        In order; the last one is final. The same bits each time on the same machine: one torch
        thread, so that cells run side by side change nothing.
    """
    with one_thread():
        return _run(cell, data_dir, download)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one torch thread, and then again with as many as before."""
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
    found: list[Evaluation] = []
    began = time.perf_counter()

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        accuracy, loss = measure(model, arrays, test)
        reply = strategy.statistics().accepted if server_round else 0
        found.append(Evaluation(reply, accuracy, loss, time.perf_counter() - began))

    attack = attack_of(cell)
    seeded = {"seed": cell.seed}
    with VirtualGrid(app, cell.nodes, run_config=seeded, arrivals=arrivals) as grid:
        liars = grid.node_ids[: cell.byzantine]
        result = strategy.start(
            OmniscientGrid(grid, attack, liars, rule=strategy.aggregator, seed=cell.seed)
            if is_omniscient(attack)
            else grid,
            ArrayRecord(model.state_dict()),
            num_rounds=cell.replies // cell.evaluate_every,
            timeout=FOREVER,
            evaluate_fn=evaluate,
        )
    accepted = strategy.statistics().accepted
    if found[-1].reply < accepted:  # it diverged: every node was shut in the middle of a round
        accuracy, loss = measure(model, result.arrays, test)
        found.append(Evaluation(accepted, accuracy, loss, time.perf_counter() - began))
    return [*found[:-1], replace(found[-1], final=True)]


def arrivals_of(cell: Cell) -> PaperArrivals:
    """Return whose reply arrives when in a cell."""
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
        aggregators.build(cell.rule, cell.chosen_told),
        AfterFirstPass(optimizer) if cell.arrivals == "paper" else optimizer,
        quorum=Quorum(cell.nodes),
        updates_per_round=cell.evaluate_every,
        buffers=buffer_names(model),
        liveness=Liveness(reply_timeout=FOREVER, min_reply_timeout=FOREVER, poll_interval=1.0),
    )


@cache
def load(dataset: str, data_dir: str, download: bool) -> tuple[Split, Split]:
    """Return training and test examples, read once in each process."""
    return discover()[dataset].load(data_dir, download)


def measure(model: nn.Module, arrays: ArrayRecord, test: Split) -> tuple[float, float]:
    """Return accuracy and mean cross-entropy on the test set; the loss may be infinite."""
    model.load_state_dict(arrays.to_torch_state_dict())
    model.eval()
    right, loss = 0, 0.0
    with torch.inference_mode():
        batches = zip(torch.split(test.inputs, 128), torch.split(test.labels, 128), strict=True)
        for inputs, labels in batches:
            if inputs.ndim == 4:  # convolutions of this size are three times as fast
                inputs = inputs.to(memory_format=torch.channels_last)
            outputs = model(inputs)
            right += int((outputs.argmax(dim=1) == labels).sum())
            loss += float(nn.functional.cross_entropy(outputs, labels, reduction="sum"))
    size = len(test.labels)
    return right / size, loss / size if math.isfinite(loss) else math.inf
