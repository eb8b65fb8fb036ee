"""Applications of flwr_byzasync; in the repository and the Flower app bundle, not in the wheel."""
