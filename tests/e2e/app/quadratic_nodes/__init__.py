"""A Flower app as a user of this package would write it: a quadratic, one node in three a liar."""
