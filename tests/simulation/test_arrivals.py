"""The paper's arrival process has the shares that the paper's code and text state."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flwr_byzasync import ConfigError
from flwr_byzasync.simulation.arrivals import PaperArrivals

fractions = st.floats(0.01, 0.49)


@st.composite
def processes(draw: st.DrawFn, turns: str | None = None) -> PaperArrivals:
    nodes = draw(st.integers(2, 20))
    return PaperArrivals(
        nodes,
        draw(st.integers(1, nodes - 1)),
        draw(fractions),
        within=draw(st.sampled_from(["id2", "id", "uniform"])),
        turns=turns or draw(st.sampled_from(["code", "faithful"])),  # type: ignore[arg-type]
        seed=draw(st.integers(0, 5)),
    )


def share(process: PaperArrivals, count: int) -> float:
    return sum(node < process.byzantine for node in process.order(count)) / count


@pytest.mark.parametrize(("lam", "expected"), [(0.4, 0.334), (0.3, 0.251)])
def test_the_code_gives_a_third_at_0_4_and_a_quarter_at_0_3(lam: float, expected: float) -> None:
    assert share(PaperArrivals(17, 8, lam), 3750) == pytest.approx(expected, abs=0.001)


@given(processes("faithful"), st.integers(1, 300))
def test_faithful_turns_keep_the_byzantine_share_at_lambda_or_just_below(
    process: PaperArrivals, more: int
) -> None:
    order, liars = process.order(process.nodes + more), process.byzantine
    # The first pass gives each Byzantine node one reply, whatever λ is.
    for count in range(process.nodes, process.nodes + more):
        lies = order[count] < process.byzantine
        assert lies == (liars + 1 <= process.byz_fraction * (count + 1) + 1e-9)
        liars += lies


@given(processes("code"), st.integers(1, 300))
def test_the_codes_turns_are_strictly_periodic(process: PaperArrivals, more: int) -> None:
    after = process.order(process.nodes + more)[process.nodes :]
    period = math.ceil(1 / process.byz_fraction)
    turns = [k for k, node in enumerate(after) if node < process.byzantine]
    assert turns == list(range(period - 1, more, period))


def test_the_period_of_the_codes_turns_can_restart() -> None:
    after = PaperArrivals(4, 2, 0.4, restart_every=5).order(4 + 10)[4:]
    assert [k for k, node in enumerate(after) if node < 2] == [2, 7]


@given(processes())
def test_nodes_start_together_one_reply_each(process: PaperArrivals) -> None:
    assert process.order(process.nodes) == tuple(range(process.nodes))


@pytest.mark.parametrize(("within", "power"), [("uniform", 0), ("id", 1), ("id2", 2)])
def test_within_a_group_nodes_come_by_their_rank_in_it(within: str, power: int) -> None:
    process = PaperArrivals(7, 3, 0.4, within=within, seed=3)  # type: ignore[arg-type]
    after = process.order(7 + 30_000)[7:]
    for group in (range(3), range(3, 7)):
        came = [sum(node == member for node in after) for member in group]
        ranks = [(rank + 1) ** power for rank in range(len(group))]
        expected = [sum(came) * rank / sum(ranks) for rank in ranks]
        assert came == pytest.approx(expected, rel=0.1)


@given(processes(), st.integers(0, 1000), st.data())
def test_only_nodes_that_owe_a_reply_are_drawn(
    process: PaperArrivals, arrival: int, data: st.DataObject
) -> None:
    waiting = data.draw(st.sets(st.integers(0, process.nodes - 1), min_size=1))
    assert process.next(arrival, waiting) in waiting


@given(processes(), st.integers(0, 1000))
def test_a_draw_does_not_depend_on_the_order_in_which_nodes_are_passed(
    process: PaperArrivals, arrival: int
) -> None:
    nodes = range(process.nodes)
    assert process.next(arrival, nodes) == process.next(arrival, list(reversed(nodes)))


def test_without_byzantine_share_all_turns_are_honest() -> None:
    for process in (PaperArrivals(4, 2, 0.0), PaperArrivals(4, 0, 0.4)):
        assert all(node >= process.byzantine for node in process.order(200)[4:])


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"nodes": 0}, "nodes"),
        ({"byzantine": 5}, "byzantine"),
        ({"byzantine": 4}, "byzantine"),
        ({"byz_fraction": 0.5}, "byz_fraction"),
        ({"byz_fraction": -0.1}, "byz_fraction"),
        ({"within": "id3"}, "within"),
        ({"turns": "paper"}, "turns"),
        ({"seed": -1}, "seed"),
        ({"restart_every": 0}, "restart_every"),
    ],
)
def test_bad_settings_are_refused_by_name(settings: dict[str, object], argument: str) -> None:
    good = {"nodes": 4, "byzantine": 2, "byz_fraction": 0.4}
    with pytest.raises(ConfigError) as caught:
        PaperArrivals(**{**good, **settings})  # type: ignore[arg-type]
    assert caught.value.argument == argument
