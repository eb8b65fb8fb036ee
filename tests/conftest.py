"""Hypothesis profiles, chosen by HYPOTHESIS_PROFILE, and one thread for every test."""

import os

import torch
from hypothesis import settings

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True, print_blob=True)
settings.register_profile("night", max_examples=400, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

# Sums are split by the number of threads: with one, results do not depend on the machine.
torch.set_num_threads(1)
