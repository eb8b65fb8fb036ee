"""Choosing λ for a rule from the number of nodes that may be Byzantine."""

from fractions import Fraction

from flwr_byzasync._checks import check_integer
from flwr_byzasync.errors import ConfigError

ROOM = Fraction(1, 20)
"""Largest margin added to the share of nodes."""


def byz_fraction(byzantine_nodes: int, nodes: int) -> float:
    """Return λ for f Byzantine nodes of m: ``f/m + min(0.05, (1/2 − f/m)/2)``.

    Weights count replies, and f of m equally fast nodes send f/m of the replies only on average:
    hence the margin. After k replies per node, with times between replies of coefficient of
    variation v, the liars' share has a standard deviation of about
    ``v sqrt(f/m (1 − f/m) / (m k))``: 0.016 for 4 of 10, k = 10 and v = 1/3. There 0.05 is three
    standard deviations, from the tenth reply of each node on. With f = 0 there is no margin, and
    it never exceeds half of the distance to 1/2.

    It does not protect against liars that reply faster than others: `Capped` weights and
    `Liveness(max_rate=...)` do.

    Parameters
    ----------
    byzantine_nodes : int
        f, the nodes that may be Byzantine, in [0, m/2).
    nodes : int
        m, all nodes, >= 1.

    Returns
    -------
    float
        λ in [0, 1/2).

    Raises
    ------
    ConfigError
        If a count is out of range. From half of the nodes on the two sides cannot be told apart.

    Examples
    --------
    >>> byz_fraction(4, 10), byz_fraction(1, 10), byz_fraction(0, 10), byz_fraction(9, 19)
    (0.45, 0.15, 0.0, 0.4868421052631579)
    """
    m = check_integer(
        "nodes", nodes, low=1, fix="pass the number of all nodes, Byzantine ones included"
    )
    fix = "pass the number of nodes that may be Byzantine"
    f = check_integer("byzantine_nodes", byzantine_nodes, low=0, fix=fix)
    share = Fraction(f, m)
    if share >= Fraction(1, 2):
        legal = f"fewer than half of the {m} nodes"
        raise ConfigError("byzantine_nodes", f, legal, "add nodes that you trust")
    return float(share + min(ROOM, (Fraction(1, 2) - share) / 2)) if f else 0.0
