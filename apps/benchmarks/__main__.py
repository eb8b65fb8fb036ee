"""`python -m apps.benchmarks NAME`: run a measurement of README or docs, and print it."""

import argparse
import signal
import sys
from collections.abc import Sequence

from apps.benchmarks import arrivals, attacks, dropin, faults, rules, validation
from flwr_byzasync import ConfigError

BENCHMARKS = {
    "arrivals": arrivals,
    "attacks": attacks,
    "dropin": dropin,
    "faults": faults,
    "rules": rules,
    "validation": validation,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; return the exit code: 2 for a wrong argument."""
    parser = argparse.ArgumentParser(prog="python -m apps.benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True)
    for name, module in BENCHMARKS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        module.add_arguments(names.add_parser(name, help=summary, description=module.__doc__))
    options = parser.parse_args(arguments)
    # As an exception, so that a benchmark ends the processes that it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        BENCHMARKS[options.name].main(options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
