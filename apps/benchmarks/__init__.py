"""Figures that README and docs show, each measured by a command: `python -m apps.benchmarks`."""
