"""A NumPy app for Flower: a linear classifier of made-up points."""
