"""What drives the core over a Flower grid: the arrival loop, rounds, evaluation, checkpointing."""
