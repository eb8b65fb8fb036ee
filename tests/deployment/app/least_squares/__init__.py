"""A Flower app that the deployment tests run: least squares, with clients on NumPy alone."""
