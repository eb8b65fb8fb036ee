"""Runs cells in parallel processes, with a progress bar."""

import logging
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from apps.paper.cells import SHARED, Cell
from apps.paper.results import Results
from apps.paper.run import Evaluation, run


@dataclass(frozen=True)
class Job:
    """A cell and the folder of its data."""

    cell: Cell
    data_dir: str = ""
    download: bool = False


def run_job(job: Job) -> list[Evaluation]:
    """Run a cell in a worker process."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    return run(job.cell, job.data_dir, job.download)


def run_all(todo: Sequence[Job], results: Results, jobs: int, finished: int = 0) -> bool:
    """Run cells, and write the results of each when it ends.

    Parameters
    ----------
    todo : sequence of Job
        The unfinished cells.
    results : Results
        Where to write.
    jobs : int
        Processes, >= 1. Each has one torch thread, so their number changes no bit.
    finished : int
        Cells that earlier calls finished, for the progress bar.

    Returns
    -------
    bool
        False if it was interrupted or a cell failed; a failure does not stop the others.
    """
    if not todo:
        return True
    console, complete = Console(stderr=True), True
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # Not forked: a fork would inherit torch's threads and their locks.
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(min(jobs, len(todo)), mp_context=context)
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("cells", total=finished + len(todo), completed=finished)
        try:
            running: dict[Future[list[Evaluation]], Job] = {
                executor.submit(run_job, job): job for job in todo
            }
            waiting = set(running)
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    message, succeeded = _outcome(running[future].cell, future, results)
                    complete = complete and succeeded
                    progress.advance(bar)
                    progress.console.print(message, highlight=False, markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            _stop(executor)
            console.print("Interrupted. The same command goes on from the finished cells.")
            return False
        except BaseException:
            _stop(executor)
            raise
    executor.shutdown()
    return complete


def _outcome(cell: Cell, future: Future[list[Evaluation]], results: Results) -> tuple[str, bool]:
    """Write a cell's results; return a message, and whether it succeeded."""
    name = f"{cell.figure} {cell.attack} {cell.rule} {cell.optimizer} seed {cell.seed}"
    if cell.partition != SHARED:
        name = f"{name} {cell.partition}"
    error = future.exception()
    if error is not None:
        return f"{name}: FAILED, {type(error).__name__}: {error}", False
    final = future.result()[-1]
    results.add(cell, future.result())
    after = f"after {final.reply} replies, {final.seconds:.0f} s"
    return f"{name}: accuracy {final.accuracy:.3f} {after}", True


def _stop(executor: ProcessPoolExecutor) -> None:
    """End the workers without waiting for cells in progress."""
    workers = list((executor._processes or {}).values())
    executor.shutdown(wait=False, cancel_futures=True)
    for worker in workers:
        worker.terminate()
