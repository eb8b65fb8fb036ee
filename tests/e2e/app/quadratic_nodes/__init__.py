"""A Flower app of a user of this package: a quadratic, one Byzantine node in three."""
