"""A PyTorch app for Flower: a small CNN with batch norm, on handwritten digits."""
