"""Weighted robust aggregation rules, one per file; see docs/algorithm.md for the mathematics."""

from flwr_byzasync.aggregators.arc import ARC
from flwr_byzasync.aggregators.bucketing import Bucketing
from flwr_byzasync.aggregators.bulyan import Bulyan
from flwr_byzasync.aggregators.centered_clipping import CenteredClipping
from flwr_byzasync.aggregators.cge import CGE
from flwr_byzasync.aggregators.clipping import Clipping
from flwr_byzasync.aggregators.ctma import CTMA
from flwr_byzasync.aggregators.geometric import GeometricMedian
from flwr_byzasync.aggregators.krum import Krum
from flwr_byzasync.aggregators.mda import MDA
from flwr_byzasync.aggregators.meamed import Meamed
from flwr_byzasync.aggregators.mean import Mean
from flwr_byzasync.aggregators.median import CoordinateWiseMedian
from flwr_byzasync.aggregators.monna import MoNNA
from flwr_byzasync.aggregators.multi_krum import MultiKrum
from flwr_byzasync.aggregators.nnm import NNM
from flwr_byzasync.aggregators.registry import build, discover
from flwr_byzasync.aggregators.rfa import RFA
from flwr_byzasync.aggregators.rule import Aggregator, Law, RuleInfo, WeightedRule
from flwr_byzasync.aggregators.trimmed_mean import TrimmedMean

__all__ = [
    "ARC",
    "CGE",
    "CTMA",
    "MDA",
    "NNM",
    "RFA",
    "Aggregator",
    "Bucketing",
    "Bulyan",
    "CenteredClipping",
    "Clipping",
    "CoordinateWiseMedian",
    "GeometricMedian",
    "Krum",
    "Law",
    "Meamed",
    "Mean",
    "MoNNA",
    "MultiKrum",
    "RuleInfo",
    "TrimmedMean",
    "WeightedRule",
    "build",
    "discover",
]
