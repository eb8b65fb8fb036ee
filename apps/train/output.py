"""The files of a run in output-dir: metrics.jsonl, result.json and the final model."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import Result
from safetensors.torch import save_file

from apps.train.settings import Settings
from flwr_byzasync import ConfigError, Statistics

Evaluate = Callable[[int, ArrayRecord], MetricRecord]


class Output:
    """Appends to ``metrics.jsonl`` during the run; writes ``result.json`` and the model at its end.

    Parameters
    ----------
    settings : Settings
        `output_dir` is an absolute path, created if missing; if it is empty, nothing is written.

    Raises
    ------
    ConfigError
        If the folder cannot be created or written to.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folder = Path(settings.output_dir) if settings.output_dir else None
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                # A resumed run appends to the entries of its earlier process.
                (self._folder / "metrics.jsonl").open("a" if settings.resume else "w").close()
            except OSError as error:
                legal = f"a folder that can be made and written to ({error.strerror})"
                fix = "pass another path, or '' to write nothing"
                raise ConfigError("output-dir", settings.output_dir, legal, fix) from error

    def recording(self, evaluate: Evaluate, statistics: Callable[[], Statistics]) -> Evaluate:
        """Return `evaluate`, with each result appended to ``metrics.jsonl``."""
        first = True

        def recorded(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            nonlocal first
            metrics = evaluate(server_round, arrays)
            if self._folder is not None:
                if first:
                    _keep_before(server_round, self._folder / "metrics.jsonl")
                first = False
                so_far = {"round": server_round, "replies": statistics().accepted}
                with (self._folder / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps({**so_far, **metrics}) + "\n")
            return metrics

        return recorded

    def finish(self, result: Result, statistics: Statistics, partitions: Mapping[int, int]) -> None:
        """Write the summary and the final model."""
        if self._folder is None:
            return
        rounds = max(result.evaluate_metrics_serverapp)
        last = result.evaluate_metrics_serverapp[rounds]
        weights = [(partitions.get(n, n), count) for n, count in statistics.replies.items()]
        summary = {
            "accuracy": last["accuracy"],
            "loss": last["loss"],
            "replies": statistics.accepted,
            "rounds": rounds,
            "steps": statistics.steps,
            "mean_staleness": statistics.mean_staleness,
            "rejected": {reason.name: count for reason, count in statistics.reasons.items()},
            "weights": {str(partition): weight for partition, weight in sorted(weights)},
            "config": {k.replace("_", "-"): v for k, v in asdict(self._settings).items()},
        }
        (self._folder / "result.json").write_text(json.dumps(summary, indent=2) + "\n")
        tensors = {k: v.contiguous() for k, v in result.arrays.to_torch_state_dict().items()}
        save_file(tensors, self._folder / "model.safetensors")


def _keep_before(server_round: int, path: Path) -> None:
    """Drop the entries of rounds that this process repeats, and an incomplete last line."""
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        with suppress(ValueError, TypeError, KeyError):
            if json.loads(line)["round"] < server_round:
                kept.append(line + "\n")
    path.write_text("".join(kept))
