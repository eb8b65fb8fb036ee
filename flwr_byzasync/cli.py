"""The command ``byzasync``: ``byzasync audit RULE`` searches a rule for its worst cases."""

import argparse
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

import torch

from flwr_byzasync import __version__
from flwr_byzasync._checks import check_byz_fraction
from flwr_byzasync.aggregators import Aggregator, build, discover
from flwr_byzasync.aggregators.rule import bound_of
from flwr_byzasync.audit import worst_case
from flwr_byzasync.audit.case import RuleError
from flwr_byzasync.audit.report import AuditRow, ascii_plot, example, figure, matrix, table
from flwr_byzasync.errors import ConfigError

LAMBDAS = (0.1, 0.25, 0.4)
CURVE = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45)
CENTRES = {"ctma": ("cwmed", "gm")}
"""What ``--all`` puts under a rule that has a base; other rules than these get w-CWMed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments, the process's by default.

    Returns
    -------
    int
        0; 1 if a ratio above a stated bound was found.

    Raises
    ------
    SystemExit
        With code 2 after one sentence, if an argument is not legal; with 0 after ``--help``.
    """
    given = _parser().parse_args(argv)
    # Sums are split by the number of threads: with one, a seed finds the same everywhere.
    torch.set_num_threads(1)
    try:
        for lam in given.lam:
            check_byz_fraction("lam", lam)
        if given.out is not None:
            _check_folder(given.out)
        return _audit_all(given) if given.all else _audit(given)
    except ConfigError as error:
        print(f"byzasync: {error}", file=sys.stderr)
    except RuleError as error:
        print(f"byzasync: {given.rule} is no rule: {error}.", file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"byzasync: {message}; see {self.prog} --help.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="byzasync", description="Tools for flwr-byzasync.")
    parser.add_argument("--version", action="version", version=f"byzasync {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    audit = commands.add_parser(
        "audit",
        help="search a rule for its worst cases",
        description="Search for rows, weights, and honest rows G that hold 1 - λ of the weight, "
        "such that |result - mean of G|² / variance of G is as large as can be; compare it with "
        "the constant that the rule states. Exit code 1 if more than stated was found.",
    )
    which = audit.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "rule",
        nargs="?",
        metavar="RULE",
        help="a rule such as 'ctma(gm)', or a rule of your own as module:attribute; "
        "byz_fraction=λ is passed where it is taken",
    )
    which.add_argument("--all", action="store_true", help="all rules of the package, as markdown")
    at = audit.add_mutually_exclusive_group()
    at.add_argument("--lam", nargs="+", type=float, default=LAMBDAS, metavar="λ", help="shares")
    at.add_argument("--curve", action="store_true", help="λ = 0.05, 0.1, ..., 0.45, and a curve")
    audit.add_argument(
        "--rows", type=int, default=5, metavar="N", help="largest number of rows (%(default)s)"
    )
    audit.add_argument(
        "--evaluations",
        type=int,
        default=20_000,
        metavar="N",
        help="calls of the rule at each λ (%(default)s)",
    )
    audit.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of the search (%(default)s)"
    )
    audit.add_argument("--table", action="store_true", help="print the table as markdown")
    audit.add_argument("--show", action="store_true", help="print the worst case at every λ")
    audit.add_argument(
        "--out", type=Path, metavar="DIR", help="write audit.md, and audit.png with --curve"
    )
    return parser


def _audit(given: argparse.Namespace) -> int:
    lines, refused = _search(given.rule, given)
    if not lines:
        raise next(iter(refused.values()))
    shown = f"{given.rule}: {_budget(given)}\n\n{table(lines, markdown=given.table)}"
    print(shown)
    if given.curve:
        print(f"\n{ascii_plot(lines)}")
    for line in lines:
        if given.show or line.broken or line.unbounded:
            print(f"\n{example(line)}")
    for lam, error in refused.items():
        print(f"\nλ = {lam:g} is left out: {error}")
    if given.out is not None:
        marked = f"{given.rule}: {_budget(given)}\n\n{table(lines, markdown=True)}\n"
        (given.out / "audit.md").write_text(marked, encoding="utf-8")
        if given.curve and not figure(given.rule, lines, given.out / "audit.png"):
            print("\nNo audit.png: matplotlib is not there; pip install matplotlib.")
    return int(any(line.broken for line in lines))


def _audit_all(given: argparse.Namespace) -> int:
    """Audit every rule; one example for each that no constant holds for."""
    found = {name: _search(name, given)[0] for name in _names()}
    text = f"Worst ratio found / constant stated; {_budget(given)}.\n\n"
    text += f"{matrix(found, _lambdas(given))}\n"
    for name, lines in found.items():
        ruins = [line for line in lines if line.unbounded][-1:]
        for line in [line for line in lines if line.broken or given.show] or ruins:
            text += f"\n`{name}`\n\n```\n{example(line)}\n```\n"
    print(text, end="")
    if given.out is not None:
        (given.out / "audit.md").write_text(text, encoding="utf-8")
    return int(any(line.broken for lines in found.values() for line in lines))


def _search(
    text: str, given: argparse.Namespace
) -> tuple[list[AuditRow], dict[float, ConfigError]]:
    """Return what was found at each λ, and why at others the rule could not be made."""
    make = _maker(text)
    lines, refused = [], {}
    for lam in _lambdas(given):
        try:
            rule = make(lam)
        except ConfigError as error:
            refused[lam] = error
            continue
        except Exception as error:
            fix = f"correct it ({type(error).__name__}: {error})"
            raise ConfigError("RULE", text, f"one that can be made at λ = {lam:g}", fix) from error
        _check_bound(rule, lam)
        case = worst_case(
            rule, lam, rows=given.rows, evaluations=given.evaluations, seed=given.seed
        )
        lines.append(AuditRow(rule, lam, case))
    return lines, refused


def _maker(text: str) -> Callable[[float], Aggregator]:
    """Return λ -> rule, for the text of a rule or a third party's ``module:attribute``."""
    if ":" not in text:
        return lambda lam: build(text, byz_fraction=lam)
    module, _, attribute = text.partition(":")
    sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        made = getattr(importlib.import_module(module), attribute)
        settings = inspect.signature(made).parameters
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        legal = "module:attribute, a rule or a class of rules that can be imported"
        fix = f"correct it ({type(error).__name__}: {error})"
        raise ConfigError("RULE", text, legal, fix) from error
    finally:
        sys.path.pop(0)
    if "byz_fraction" in settings:
        return lambda lam: made(byz_fraction=lam)
    return lambda _: made() if isinstance(made, type) else made


def _check_bound(rule: Aggregator, lam: float) -> None:
    """Have a rule state its constant before the search: nobody wants to hear of it minutes later.

    Raises
    ------
    RuleError
        If that raises, or is no constant.
    """
    try:
        bound_of(rule, lam)
    except Exception as error:
        raise RuleError(f"bound({lam:g}) raised {type(error).__name__}: {error}") from error


def _names() -> list[str]:
    names = []
    for name, rule in discover().items():
        has_base = any(field.name == "base" for field in fields(rule))  # type: ignore[arg-type]
        bases = CENTRES.get(name, ("cwmed",))
        names += [f"{name}({base})" for base in bases] if has_base else [name]
    return names


def _lambdas(given: argparse.Namespace) -> Sequence[float]:
    lambdas: Sequence[float] = CURVE if given.curve else given.lam
    return lambdas


def _budget(given: argparse.Namespace) -> str:
    return f"up to {given.rows} rows, {given.evaluations} calls at each λ, seed {given.seed}"


def _check_folder(folder: Path) -> None:
    """Make the folder before the search: nobody wants to hear of it minutes later."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        legal = "a folder that exists or can be made"
        raise ConfigError("out", str(folder), legal, f"pass another ({error})") from error


if __name__ == "__main__":
    sys.exit(main())
