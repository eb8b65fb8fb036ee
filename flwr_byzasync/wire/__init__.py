"""Flower messages <-> tensors: what queries and replies look like, and what is valid in one."""
