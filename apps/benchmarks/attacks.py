"""The reference app under attack: final accuracy by rule and attack, over several seeds.

Each cell is a real `flwr run` of this repository: ten simulated nodes, four of them Byzantine,
1,000 accepted replies.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from apps.benchmarks.local_flower import LocalFlower

CELLS = (
    ("ctma(gm)", "sign_flip"),
    ("mean", "sign_flip"),
    ("ctma(gm)", "label_flip"),
    ("mean", "label_flip"),
    ("ctma(gm)", "none"),
    ("mean", "none"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED")


def main(options: argparse.Namespace) -> None:
    """Run all cells and print a Markdown table."""
    print("| rule | attack | accuracy by seed | mean | Byzantine weight | command to result |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        flower = LocalFlower(Path(folder) / "flower")
        try:
            for rule, attack in CELLS:
                runs = [_run(flower, Path(folder), rule, attack, seed) for seed in options.seeds]
                accuracies, shares, seconds = zip(*runs, strict=True)
                print(
                    f"| `{rule}` | {attack} | {', '.join(f'{a:.3f}' for a in accuracies)} "
                    f"| {statistics.mean(accuracies):.3f} "
                    f"| {min(shares):.0%} to {max(shares):.0%} | {max(seconds):.0f} s at most |",
                    flush=True,
                )
        finally:
            flower.stop()


def _run(
    flower: LocalFlower, folder: Path, rule: str, attack: str, seed: int
) -> tuple[float, float, float]:
    """Return accuracy, Byzantine share of the weight, and seconds from command to result."""
    output = folder / f"{rule}-{attack}-{seed}"
    run = flower.run(
        f'aggregator="{rule}" attack="{attack}" seed={seed} output-dir="{output}"', seconds=600
    )
    if run.status != "finished:completed":
        raise RuntimeError(f"{rule}, {attack}, seed {seed}: {run.tail()}")
    result = json.loads((output / "result.json").read_text())
    byzantine = range(result["config"]["byzantine-nodes"]) if attack != "none" else ()
    weights = result["weights"]
    share = sum(weights[str(node)] for node in byzantine) / sum(weights.values())
    return result["accuracy"], share, run.seconds
