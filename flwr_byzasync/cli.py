"""The ``byzasync`` command: ``byzasync audit RULE`` searches for a rule's worst cases."""

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
"""Bases that ``--all`` uses for meta-rules; w-CWMed for those not listed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; by default those of the process.

    Returns
    -------
    int
        0; 1 if a ratio above a stated bound was found.

    Raises
    ------
    SystemExit
        With code 2 after a one-sentence message if an argument is illegal; with 0 after ``--help``.
    """
    args = _parser().parse_args(argv)
    # The number of threads changes how sums are split: with one, a seed is reproducible.
    torch.set_num_threads(1)
    try:
        for lam in args.lam:
            check_byz_fraction("lam", lam)
        if args.out is not None:
            _check_folder(args.out)
        return _audit_all(args) if args.all else _audit(args)
    except ConfigError as error:
        print(f"byzasync: {error}", file=sys.stderr)
    except RuleError as error:
        print(f"byzasync: {args.rule} is not a valid rule: {error}.", file=sys.stderr)
    return 2


class _Parser(argparse.ArgumentParser):
    """A parser with one-sentence errors."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"byzasync: {message}; see {self.prog} --help.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="byzasync", description="Tools for flwr-byzasync.")
    parser.add_argument("--version", action="version", version=f"byzasync {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    audit = commands.add_parser(
        "audit",
        help="search for a rule's worst cases",
        description="Search for rows, weights, and a set G of honest rows that holds 1 - λ of the "
        "weight, to maximise |result - mean of G|² / variance of G, and compare it with the "
        "constant that the rule states. Exit code 1 if the stated constant is exceeded.",
    )
    which = audit.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "rule",
        nargs="?",
        metavar="RULE",
        help="a rule such as 'ctma(gm)', or your own rule as module:attribute; "
        "byz_fraction=λ is passed if it is a parameter",
    )
    which.add_argument("--all", action="store_true", help="every rule of the package, as markdown")
    at = audit.add_mutually_exclusive_group()
    at.add_argument(
        "--lam", nargs="+", type=float, default=LAMBDAS, metavar="λ", help="Byzantine shares"
    )
    at.add_argument("--curve", action="store_true", help="λ = 0.05, 0.1, ..., 0.45, and a curve")
    audit.add_argument(
        "--rows", type=int, default=5, metavar="N", help="largest number of rows (%(default)s)"
    )
    audit.add_argument(
        "--evaluations",
        type=int,
        default=20_000,
        metavar="N",
        help="calls of the rule per λ (%(default)s)",
    )
    audit.add_argument(
        "--seed", type=int, default=1, metavar="N", help="seed of the search (%(default)s)"
    )
    _add_output(audit)
    return parser


def _add_output(audit: argparse.ArgumentParser) -> None:
    audit.add_argument("--table", action="store_true", help="print the table as markdown")
    audit.add_argument("--show", action="store_true", help="print the worst case at every λ")
    audit.add_argument(
        "--out", type=Path, metavar="DIR", help="write audit.md, and audit.png with --curve"
    )


def _audit(args: argparse.Namespace) -> int:
    rows, refused = _search(args.rule, args)
    if not rows:
        raise next(iter(refused.values()))
    shown = f"{args.rule}: {_budget(args)}\n\n{table(rows, markdown=args.table)}"
    print(shown)
    if args.curve:
        print(f"\n{ascii_plot(rows)}")
    for row in rows:
        if args.show or row.broken or row.unbounded:
            print(f"\n{example(row)}")
    for lam, error in refused.items():
        print(f"\nλ = {lam:g} is skipped: {error}")
    if args.out is not None:
        marked = f"{args.rule}: {_budget(args)}\n\n{table(rows, markdown=True)}\n"
        (args.out / "audit.md").write_text(marked, encoding="utf-8")
        if args.curve and not figure(args.rule, rows, args.out / "audit.png"):
            print("\nNo audit.png: matplotlib is not installed; run pip install matplotlib.")
    return int(any(row.broken for row in rows))


def _audit_all(args: argparse.Namespace) -> int:
    """Audit every rule, with one example for each that has no constant."""
    found = {name: _search(name, args)[0] for name in _names()}
    text = f"Worst ratio found / constant stated; {_budget(args)}.\n\n"
    text += f"{matrix(found, _lambdas(args))}\n"
    for name, rows in found.items():
        unbounded = [row for row in rows if row.unbounded][-1:]
        for row in [row for row in rows if row.broken or args.show] or unbounded:
            text += f"\n`{name}`\n\n```\n{example(row)}\n```\n"
    print(text, end="")
    if args.out is not None:
        (args.out / "audit.md").write_text(text, encoding="utf-8")
    return int(any(row.broken for rows in found.values() for row in rows))


def _search(text: str, args: argparse.Namespace) -> tuple[list[AuditRow], dict[float, ConfigError]]:
    """Return the worst case at each λ, and the error at each λ for which the rule is not legal."""
    make = _maker(text)
    rows, refused = [], {}
    for lam in _lambdas(args):
        try:
            rule = make(lam)
        except ConfigError as error:
            refused[lam] = error
            continue
        except Exception as error:
            fix = f"correct it ({type(error).__name__}: {error})"
            raise ConfigError(
                "RULE", text, f"a rule that can be built at λ = {lam:g}", fix
            ) from error
        _check_bound(rule, lam)
        case = worst_case(rule, lam, rows=args.rows, evaluations=args.evaluations, seed=args.seed)
        rows.append(AuditRow(rule, lam, case))
    return rows, refused


def _maker(text: str) -> Callable[[float], Aggregator]:
    """Return λ -> rule, for the text of a rule or a ``module:attribute``."""
    if ":" not in text:
        return lambda lam: build(text, byz_fraction=lam)
    module, _, attribute = text.partition(":")
    sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        made = getattr(importlib.import_module(module), attribute)
        settings = inspect.signature(made).parameters
    except (Exception, SystemExit) as error:  # importing runs arbitrary code
        legal = "module:attribute, a rule or a class of rules that can be imported"
        fix = f"correct it ({type(error).__name__}: {error})"
        raise ConfigError("RULE", text, legal, fix) from error
    finally:
        sys.path.pop(0)
    if "byz_fraction" in settings:
        return lambda lam: made(byz_fraction=lam)
    return lambda _: made() if isinstance(made, type) else made


def _check_bound(rule: Aggregator, lam: float) -> None:
    """Ask a rule for its constant before the search, so that an error shows at once.

    Raises
    ------
    RuleError
        If that raises, or the constant is invalid.
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


def _lambdas(args: argparse.Namespace) -> Sequence[float]:
    lambdas: Sequence[float] = CURVE if args.curve else args.lam
    return lambdas


def _budget(args: argparse.Namespace) -> str:
    return f"up to {args.rows} rows, {args.evaluations} calls per λ, seed {args.seed}"


def _check_folder(folder: Path) -> None:
    """Create the folder before the search, so that an error shows at once."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        legal = "a folder that exists or can be created"
        raise ConfigError("out", str(folder), legal, f"pass another ({error})") from error


if __name__ == "__main__":
    sys.exit(main())
