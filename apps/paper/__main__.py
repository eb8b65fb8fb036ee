"""``python -m apps.paper FIGURE --data-dir DIR --out DIR``: the paper's experiments."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import NoReturn

from apps.paper import convex, sensitivity
from apps.paper.cells import ARRIVALS, Cell
from apps.paper.figures import FIGURES, cells_of, filtered, fraction_of, settings_of
from apps.paper.jobs import Job, run_all
from apps.paper.plot import draw
from apps.paper.results import Results, group_of
from apps.train import tasks
from flwr_byzasync import ConfigError
from flwr_byzasync._checks import check_choice

EPILOG = "Cells that are finished in --out are not run again."


ONE = {
    "rule": "default cwmed",
    "attack": "default sign_flip",
    "optimizer": "mu2, momentum or sgd; default mu2",
    "byz_fraction": "λ; default 0.3 for label_flip, else 0.4",
    "model": "default cnn, for digits mlp",
    "beta": "default -1: the optimizer's own",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Print the error as one line and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(prog="python -m apps.paper", description=__doc__, epilog=EPILOG)
    figures = top.add_subparsers(dest="figure", required=True, metavar="FIGURE", title="figures")
    for name, plan in FIGURES.items():
        figure = figures.add_parser(name, help=plan.shows, epilog=EPILOG)
        _add_common(figure)
        _add_run(figure)
    listing = figures.add_parser("list", help="print the cells of a figure with their settings")
    listing.add_argument("of", nargs="?", metavar="FIGURE", help="default: all")
    _add_common(listing)
    one = figures.add_parser("one", help="a single configuration", epilog=EPILOG)
    for field in fields(Cell):
        if field.name in ("figure", "seed", "dataset", "arrivals", "replies", "evaluate_every"):
            continue
        kind = field.type if callable(field.type) else str
        default = "the figure's" if field.default is MISSING else str(field.default)
        one.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=kind,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=ONE.get(field.name, f"default {default}"),
        )
    _add_common(one)
    _add_run(one)
    rates = figures.add_parser("convex", help="rates on convex problems, for the paper's claims")
    rates.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED")
    rates.add_argument("--only", nargs="+", default=[], metavar="KEY=VALUE", help="narrow runs")
    rates.add_argument("--replies", type=int, default=4096, help="longest horizon; default 4096")
    _add_run(rates, files=False)
    study = figures.add_parser("sensitivity", help="every rule under every attack", epilog=EPILOG)
    sensitivity.add_options(study)
    _add_run(study, files=False)
    return top


def _add_common(command: argparse.ArgumentParser) -> None:
    names = ", ".join(tasks.discover())
    command.add_argument("--dataset", metavar="NAME", help=f"{names}; default: the paper's own")
    command.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED")
    command.add_argument("--only", nargs="+", default=[], metavar="KEY=VALUE", help="narrow cells")
    command.add_argument(
        "--arrivals",
        default="paper",
        metavar="NAME",
        help=f"{' or '.join(ARRIVALS)}: as the published code, or the exact share λ",
    )
    command.add_argument("--replies", type=int, help="accepted replies; default: one epoch")
    command.add_argument("--evaluate-every", type=int, help="replies between evaluations")


def _add_run(command: argparse.ArgumentParser, files: bool = True) -> None:
    command.add_argument("--out", type=_folder, required=True, metavar="DIR", help="for results")
    command.add_argument("--jobs", type=int, default=1, help="parallel cells; default 1")
    if files:
        command.add_argument(
            "--data-dir", default="", metavar="DIR", help="folder of the data sets"
        )
        command.add_argument("--download", action="store_true", help="download the data set")


def _folder(text: str) -> Path:
    if not text or "\0" in text:
        raise argparse.ArgumentTypeError("must be the path of a folder")
    return Path(text)


def cells_from(options: argparse.Namespace) -> list[Cell]:
    """Return the cells of a command line, before ``--only`` is applied.

    Raises
    ------
    ConfigError
        If a setting is out of range.
    """
    if options.dataset is not None:
        fix = "pass for example --dataset fashion-mnist"
        check_choice("--dataset", options.dataset, tasks.discover(), fix=fix)
    optional = {key: getattr(options, key) for key in ("replies", "evaluate_every")}
    common = {key: value for key, value in optional.items() if value is not None}
    common["arrivals"] = options.arrivals
    if options.figure == "one":
        return _one(options, common)
    figures = [options.of] if getattr(options, "of", None) else [options.figure]
    return [
        cell
        for figure in (list(FIGURES) if figures == ["list"] else figures)
        for cell in cells_of(figure, options.seeds, options.dataset, **common)
    ]


def _one(options: argparse.Namespace, common: dict[str, object]) -> list[Cell]:
    names = {field.name for field in fields(Cell)} - {"figure", "seed", "dataset", "arrivals"}
    own = {name: getattr(options, name) for name in names if hasattr(options, name)}
    own = {name: value for name, value in own.items() if value is not None}
    attack = str(own.get("attack", "sign_flip"))
    dataset = options.dataset or "fashion-mnist"
    start = {"rule": "cwmed", "attack": attack, "optimizer": "mu2"}
    start |= {"byz_fraction": fraction_of(attack), "dataset": dataset}  # type: ignore[dict-item]
    settings = {**start, **settings_of(dataset), **own, **common}
    seeds = dict.fromkeys(options.seeds)
    return [Cell(figure="one", seed=seed, **settings) for seed in seeds]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    command = parser()
    options = command.parse_args(arguments)
    try:
        if options.figure == "convex":
            convex.main(options.out, options.seeds, options.replies, options.jobs, options.only)
            return 0
        if options.figure == sensitivity.FIGURE:
            return sensitivity.main(options)
        planned = cells_from(options)
        cells = filtered(planned, options.only)
        if options.figure == "list":
            print("\n".join(_settings(cell) for cell in cells))
            return 0
        for dataset in dict.fromkeys(cell.dataset for cell in cells):
            tasks.discover()[dataset].check(options.data_dir, options.download)
        if options.jobs < 1:
            raise ConfigError("--jobs", options.jobs, "an integer >= 1", "pass for example 2")
        results = Results(options.out)
    except (ConfigError, OSError) as error:
        print(f"{command.prog}: error: {error}", file=sys.stderr)
        return 2
    todo = [Job(cell, options.data_dir, options.download) for cell in results.unfinished(cells)]
    complete = run_all(todo, results, options.jobs, finished=len(cells) - len(todo))
    report(results, cells, planned)
    return 0 if complete else 1


def _settings(cell: Cell) -> str:
    return " ".join(f"{key}={value}" for key, value in asdict(cell).items())


def report(results: Results, cells: Sequence[Cell], planned: Sequence[Cell]) -> None:
    """Write the summary, print the rows of `cells`, and draw the figure's finished cells."""
    groups = {group_of(entry) for entry in results.of(cells)}
    if not groups:
        return
    for row in results.summarise():
        if group_of(row) in groups:
            deviation = f" ± {row['deviation']:.3f}" if row["deviation"] != "" else ""
            print(
                f"{row['attack']:<18} λ {row['byz_fraction']:<4g} {row['arrivals']:<9} "
                f"{row['optimizer']:<9} {row['rule']:<17} "
                f"{row['accuracy']:.3f}{deviation}  ({row['seeds']} seeds)"
            )
    picture = results.folder / f"{cells[0].figure}.png"
    draw(cells[0].figure, results.of(planned), picture)
    print(f"Written: {results.folder}/results.jsonl, summary.csv and {picture.name}")


if __name__ == "__main__":
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # as in `list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)
