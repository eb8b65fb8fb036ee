"""The measurements in README and docs, each by a command: `python -m apps.benchmarks`."""
