"""A NumPy app for Flower: a linear classifier on synthetic points."""
