"""The share λ that a rule is told, given how many nodes may lie."""

from fractions import Fraction

from flwr_byzasync._checks import check_integer
from flwr_byzasync.errors import ConfigError

ROOM = Fraction(1, 20)
"""Most that is added to a share of nodes: five points."""


def byz_fraction(byzantine_nodes: int, nodes: int) -> float:
    """Return λ for a rule, given how many nodes may lie: ``f/m + min(0.05, (1/2 − f/m)/2)``.

    Replies are counted, and what f of m equally fast nodes have sent is f/m of them only on
    average; the room above f/m is for that. After k replies a node, with times between replies
    of coefficient of variation v, the liars' share has a standard deviation of about
    ``v sqrt(f/m (1 − f/m) / (m k))``: 0.016 for 4 of 10, k = 10 and v = 1/3. So 0.05 is three of
    them there, from the first ten replies of each on. No room is needed for 0 nodes, whose share
    is 0, and half of the way to 1/2 is the most that is taken.

    It is no defence against liars who answer faster than others: `max_share` and `max_pace` of
    `AsyncRobust` are.

    Parameters
    ----------
    byzantine_nodes : int
        f, the nodes that may lie, in [0, m/2).
    nodes : int
        m, all nodes, >= 1.

    Returns
    -------
    float
        λ in [0, 1/2).

    Raises
    ------
    ConfigError
        If a count is out of range: at half of the nodes nobody can tell sides apart.

    Examples
    --------
    >>> byz_fraction(4, 10), byz_fraction(1, 10), byz_fraction(0, 10), byz_fraction(9, 19)
    (0.45, 0.15, 0.0, 0.4868421052631579)
    """
    m = check_integer("nodes", nodes, low=1, fix="pass the number of nodes, liars included")
    fix = "pass the number of nodes that may lie"
    f = check_integer("byzantine_nodes", byzantine_nodes, low=0, fix=fix)
    share = Fraction(f, m)
    if share >= Fraction(1, 2):
        legal = f"fewer than half of the {m} nodes"
        raise ConfigError("byzantine_nodes", f, legal, "have more nodes that you trust")
    return float(share + min(ROOM, (Fraction(1, 2) - share) / 2)) if f else 0.0
