"""The vectors that attacks send, against formulas, definitions and an independent search."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flwr_byzasync.aggregators import Aggregator, CoordinateWiseMedian, GeometricMedian, Mean, build
from flwr_byzasync.attacks import (
    Empire,
    Flood,
    Gaussian,
    HugeNorm,
    Infinite,
    Knowledge,
    Little,
    Mimic,
    MinMax,
    MinSum,
    NotANumber,
    OneCoordinate,
    RandomDirection,
    SignFlip,
    Sleeper,
    SlowDown,
    StaleReplay,
    VectorAttack,
    Zero,
)

HONEST = torch.tensor([1.0, -2.0, 2.0])


def knows(
    rows: Tensor, weights: Tensor, byzantine: int = 1, rule: Aggregator | None = None
) -> Knowledge:
    """Return the knowledge of an omniscient attack."""
    total = int(weights.sum())
    return Knowledge(rows, weights, honest_weight=total, byzantine_weight=byzantine, rule=rule)


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Draw at least two different rows in float64, with weights."""
    n, d = draw(st.integers(2, 6)), draw(st.sampled_from((1, 2, 5, 20)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    centre = rng.normal(size=d) * draw(st.sampled_from((0.0, 1.0, 10.0)))
    rows = centre + rng.normal(size=(n, d)) * rng.choice((0.1, 1.0, 10.0), size=(n, 1))
    scale = draw(st.sampled_from((1e-20, 1.0, 1e20)))
    return torch.from_numpy(rows * scale), torch.from_numpy(rng.integers(1, 9, size=n))


def moments(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the rows' copies, as NumPy has them."""
    copies = np.repeat(rows.numpy(), weights.numpy(), axis=0)
    return torch.from_numpy(copies.mean(axis=0)), torch.from_numpy(copies.std(axis=0))


# --- one's own vector ----------------------------------------------------------------------------
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5))
def test_flipping_the_sign_twice_is_honest_again(values: list[float]) -> None:
    vector = torch.tensor(values)
    assert torch.equal(SignFlip().craft(SignFlip().craft(vector)), vector)


def test_simple_attacks_send_what_they_say() -> None:
    assert Zero().craft(HONEST).tolist() == [0.0, 0.0, 0.0]
    assert bool(Infinite().craft(HONEST).isposinf().all())
    assert bool(NotANumber().craft(HONEST).isnan().all())
    assert SignFlip(scale=3.0).craft(HONEST).tolist() == [-3.0, 6.0, -6.0]
    assert HugeNorm(norm=9.0).craft(HONEST).tolist() == [-3.0, 6.0, -6.0]
    assert OneCoordinate(scale=2.0, coordinate=4).craft(HONEST).tolist() == [1.0, 4.0, 2.0]


def test_a_huge_norm_has_a_direction_even_where_the_honest_vector_has_none() -> None:
    sent = HugeNorm().craft(torch.zeros(4, dtype=torch.float64))
    assert float(sent.norm()) == pytest.approx(1e30) and bool((sent < 0).all())


def test_values_beyond_the_dtype_become_its_largest() -> None:
    largest = torch.finfo(torch.float32).max
    assert SignFlip(scale=1e300).craft(torch.tensor([1.0, 0.0])).tolist() == [-largest, 0.0]


def test_gaussian_noise_has_mean_zero_and_the_paper_s_deviation() -> None:
    sent = Gaussian().craft(torch.zeros(100_000, dtype=torch.float64), Knowledge(seed=3))
    # Five standard errors of 100,000 draws: 200/√n for the mean, 200/√(2n) for the deviation.
    assert abs(float(sent.mean())) < 5 * 200 / 100_000**0.5
    assert abs(float(sent.std()) - 200) < 5 * 200 / 200_000**0.5
    below = float((sent < 200).double().mean())
    assert abs(below - NormalDist().cdf(1.0)) < 5 * 0.5 / 100_000**0.5


def test_draws_depend_on_the_seed_and_on_the_reply_and_on_nothing_else() -> None:
    for attack in (Gaussian(), RandomDirection()):
        draws = {
            tuple(attack.craft(HONEST, Knowledge(seed=seed, reply=reply)).tolist())
            for seed in (1, 2)
            for reply in (0, 1)
            for _ in (torch.rand(1), torch.rand(1))  # the global generator must not matter
        }
        assert len(draws) == 4


@given(st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_a_random_direction_has_the_honest_length_times_the_scale(scale: float, seed: int) -> None:
    sent = RandomDirection(scale).craft(HONEST.double(), Knowledge(seed=seed))
    assert float(sent.norm()) == pytest.approx(3.0 * scale)


def test_random_directions_favour_none() -> None:
    sent = [RandomDirection().craft(HONEST, Knowledge(seed=k)) / 3.0 for k in range(2000)]
    # A coordinate of a uniform direction in three dimensions has variance 1/3.
    assert float(torch.stack(sent).mean(dim=0).abs().max()) < 5 / (3 * 2000) ** 0.5


# --- little and empire ---------------------------------------------------------------------------
def test_little_s_z_is_that_of_a_computation_by_hand() -> None:
    rows, weights = (
        torch.tensor([[1.0, 0.0], [5.0, 0.0]], dtype=torch.float64),
        torch.tensor([45, 15]),
    )
    # S = 100, S_B = 40: s = 51 − 40 = 11; Φ⁻¹(49/60) and Φ⁻¹(89/100). μ = 2, σ = √3.
    for z, number in (("paper", 0.902735), ("published", 1.226528), (0.5, 0.5)):
        sent = Little(z=z).craft(torch.zeros(2, dtype=torch.float64), knows(rows, weights, 40))
        assert sent.tolist() == pytest.approx([2.0 - number * 3**0.5, 0.0], abs=1e-5)


@pytest.mark.parametrize(
    ("byzantine", "z"),
    [
        (1, 0.0),  # S = 61, s = 30: of 60, half, exactly
        (59, 2.128045),  # S = 119, s = 1: 59/60
        (61, 3.090232),  # S_B > S/2, s = 0: 1, clipped to 0.999
        (900, 3.090232),  # s < 0: beyond 1
    ],
)
def test_little_s_quantile_is_clipped(byzantine: int, z: float) -> None:
    known = knows(torch.tensor([[-1.0], [1.0]]), torch.tensor([30, 30]), byzantine)
    assert float(Little().craft(torch.zeros(1), known)) == pytest.approx(-z, abs=1e-5)


def test_little_s_quantile_is_clipped_from_below_where_few_have_replied() -> None:
    # S = 4, S_B = 1, s = 2: a third of the honest weight is below one half.
    known = knows(torch.tensor([[0.0], [3.0], [6.0]]), torch.tensor([1, 1, 1]), 1)
    assert float(Little().craft(torch.zeros(1), known)) == 3.0


def test_little_s_published_quantile_is_clipped_from_above() -> None:
    known = knows(torch.tensor([[-1.0], [1.0]]), torch.tensor([30, 30]), 61)
    assert float(Little("published").craft(torch.zeros(1), known)) == pytest.approx(
        -3.090232, abs=1e-5
    )


@given(crowds(), st.floats(0.0, 5.0), st.floats(0.01, 5.0))
def test_little_and_empire_are_their_formulas(
    crowd: tuple[Tensor, Tensor], z: float, epsilon: float
) -> None:
    mean, deviation = moments(*crowd)
    known, size = knows(*crowd), float(crowd[0].abs().max())
    little = Little(z).craft(mean, known)
    torch.testing.assert_close(little, mean - z * deviation, rtol=0, atol=1e-11 * size)
    empire = Empire(epsilon).craft(mean, known)
    torch.testing.assert_close(empire, -epsilon * mean, rtol=0, atol=1e-11 * size)


def test_small_differences_of_large_float32_vectors_are_seen() -> None:
    drawn = torch.randn(9, 50, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows = (500.0 + 1e-4 * drawn).float()
    mean, deviation = moments(rows.double(), torch.ones(9, dtype=torch.int64))
    known = knows(rows, torch.ones(9, dtype=torch.int64))
    sent = Little(z=3.0).craft(torch.zeros(50, dtype=torch.float64), known)
    torch.testing.assert_close(sent, mean - 3.0 * deviation, rtol=0, atol=1e-10)


@pytest.mark.parametrize("strengths", [40, pytest.param(400, marks=pytest.mark.slow)])
@settings(max_examples=max(5, settings.default.max_examples // 5))
@given(
    crowds(),
    st.integers(1, 12),
    st.sampled_from((Mean(), CoordinateWiseMedian())),
    st.sampled_from(("little", "empire")),
)
def test_no_strength_is_stronger_than_the_optimised_one(
    strengths: int, crowd: tuple[Tensor, Tensor], byzantine: int, rule: Aggregator, name: str
) -> None:
    rows, weights = crowd
    known = knows(rows, weights, byzantine, rule)
    mean = moments(rows, weights)[0]

    def moved(attack: VectorAttack) -> float:
        table = torch.cat([rows, attack.craft(rows[0], known).unsqueeze(0)])
        result = rule(table, torch.cat([weights, torch.tensor([byzantine])]))
        return float((result - mean).norm())

    make = Little if name == "little" else Empire
    dense = max(moved(make(float(strength))) for strength in np.geomspace(2**-6, 2**6, strengths))
    assert moved(make("optimised")) >= 0.99 * dense


def test_the_optimised_strength_goes_to_the_end_of_its_range_against_the_mean() -> None:
    rows, weights = torch.tensor([[0.0], [2.0]]), torch.tensor([1, 1])
    sent = Little("optimised").craft(torch.zeros(1), knows(rows, weights, 1, Mean()))
    assert float(sent) == 1.0 - 2.0**6


def test_of_equally_strong_strengths_the_one_that_shows_least_is_taken() -> None:
    # The median of 0, 1, 5 and the lie, of weight 2, is at 0 from where the lie is: z = μ/σ.
    rows, weights = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([1, 1, 1])
    known = knows(rows, weights, 2, CoordinateWiseMedian())
    assert -0.03 < float(Little("optimised").craft(torch.zeros(1), known)) <= 0.0
    # No lie of weight 1 below 10 moves the median of 0, 0, 0 and 10.
    rows, weights = torch.tensor([[0.0], [0.0], [0.0], [10.0]]), torch.ones(4, dtype=torch.int64)
    known = knows(rows, weights, 1, CoordinateWiseMedian())
    assert float(Empire("optimised").craft(torch.zeros(1), known)) == -2.5 / 2**6


def test_trimming_makes_the_optimised_strength_stay_within_what_is_kept() -> None:
    rows = torch.randn(12, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.ones(12, dtype=torch.int64)
    rule = build("ctma(gm)", byz_fraction=0.3)
    mean, deviation = moments(rows, weights)
    sent = Little("optimised").craft(mean, knows(rows, weights, 4, rule))
    z = float(((mean - sent) / deviation).mean())
    assert 0.1 < z < 3.0


# --- min-max and min-sum -------------------------------------------------------------------------
PERTURBATIONS = st.sampled_from(("std", "unit", "sign"))


def squares(point: Tensor, rows: Tensor) -> Tensor:
    return (rows - point).square().sum(dim=1)


@given(crowds(), PERTURBATIONS)
def test_min_max_s_gamma_is_the_largest_that_keeps_within_the_widest_distance(
    crowd: tuple[Tensor, Tensor], perturbation: str
) -> None:
    rows, weights = crowd
    mean = moments(rows, weights)[0]
    sent = MinMax(perturbation).craft(mean, knows(rows, weights))
    widest = max(float(squares(x, rows).max()) for x in rows)
    assert float(squares(sent, rows).max()) <= widest * (1 + 1e-9)
    assert float(squares(mean + 1.001 * (sent - mean), rows).max()) > widest


@given(crowds(), PERTURBATIONS)
def test_min_sum_s_gamma_is_the_largest_that_keeps_within_the_widest_sum(
    crowd: tuple[Tensor, Tensor], perturbation: str
) -> None:
    rows, weights = crowd
    mean = moments(rows, weights)[0]
    sent = MinSum(perturbation).craft(mean, knows(rows, weights))
    widest = max(float((weights * squares(x, rows)).sum()) for x in rows)
    assert float((weights * squares(sent, rows)).sum()) <= widest * (1 + 1e-9)
    assert float((weights * squares(mean + 1.001 * (sent - mean), rows)).sum()) > widest


@pytest.mark.parametrize("attack", [MinMax, MinSum])
@given(crowd=crowds())
def test_the_perturbation_is_the_direction_in_which_the_mean_is_left(
    attack: type[MinMax] | type[MinSum], crowd: tuple[Tensor, Tensor]
) -> None:
    mean, deviation = moments(*crowd)
    for name, p in (("std", -deviation), ("unit", -mean), ("sign", -mean.sign())):
        left = attack(name).craft(mean, knows(*crowd)) - mean
        torch.testing.assert_close(left / left.norm(), p / p.norm(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("attack", [MinMax, MinSum])
def test_where_rows_agree_the_mean_is_sent(attack: type[MinMax] | type[MinSum]) -> None:
    for rows in (torch.full((3, 2), 0.1), torch.zeros(3, 2), torch.tensor([[3.0, -1.0]])):
        for name in ("std", "unit", "sign"):
            sent = attack(name).craft(HONEST[:2], knows(rows, torch.ones(len(rows))))
            assert torch.equal(sent, rows[0])


# --- mimic ---------------------------------------------------------------------------------------
@given(crowds())
def test_mimic_repeats_the_row_farthest_along_the_direction_of_largest_variance(
    crowd: tuple[Tensor, Tensor],
) -> None:
    rows, weights = crowd
    sent = Mimic().craft(rows[0], knows(rows, weights))
    assert any(torch.equal(sent, row) for row in rows)
    # Written down in d dimensions instead of n.
    copies = np.repeat(rows.numpy(), weights.numpy(), axis=0)
    axis = np.linalg.svd(copies - copies.mean(axis=0), full_matrices=False)[2][0]
    along = np.abs((rows.numpy() - copies.mean(axis=0)) @ axis)
    mine = abs(float((sent.numpy() - copies.mean(axis=0)) @ axis))
    assert mine >= along.max() * (1 - 1e-6)


def test_of_rows_equally_far_mimic_repeats_the_first() -> None:
    rows = torch.tensor([[0.0, 1.0], [4.0, 0.0], [-4.0, 0.0], [0.0, -1.0]])
    known = knows(rows, torch.ones(4, dtype=torch.int64))
    assert Mimic().craft(HONEST[:2], known).tolist() == [4.0, 0.0]


# --- time ----------------------------------------------------------------------------------------
def test_attacks_on_time_send_what_their_base_sends() -> None:
    assert torch.equal(Flood().craft(HONEST), -HONEST)
    assert torch.equal(Flood(base=None).craft(HONEST), HONEST)
    assert torch.equal(SlowDown().craft(HONEST), HONEST)
    assert torch.equal(SlowDown(base=Zero()).craft(HONEST), torch.zeros(3))


@given(st.integers(1, 5), st.integers(1, 5))
def test_a_sleeper_alternates(honest_for: int, hostile_for: int) -> None:
    attack = Sleeper(honest_for, hostile_for, base=Zero())
    hostile = [bool((attack.craft(HONEST, Knowledge(reply=k)) == 0).all()) for k in range(20)]
    period = [False] * honest_for + [True] * hostile_for
    assert hostile == (period * 20)[:20]


@given(st.integers(1, 6), st.integers(0, 9))
def test_a_stale_replay_is_of_age_replies_ago_or_the_oldest(age: int, replies: int) -> None:
    past = [torch.tensor([float(k)]) for k in range(replies)]
    known = Knowledge(history=tuple(past[-age:]), reply=replies)
    sent = StaleReplay(age).craft(torch.tensor([float(replies)]), known)
    assert float(sent) == max(0, replies - age)


# --- what attacks are for ------------------------------------------------------------------------
def test_one_huge_vector_moves_the_mean_anywhere_and_no_robust_rule() -> None:
    rows = torch.randn(9, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = torch.tensor([3, 1, 2, 1, 1, 2, 1, 1, 1])
    centre, radius = moments(rows, weights)[0], float(squares(rows.mean(0), rows).max()) ** 0.5
    for norm in (1e3, 1e10, 1e30):
        lie = HugeNorm(norm).craft(rows[0], knows(rows, weights))
        table, counts = torch.cat([rows, lie.unsqueeze(0)]), torch.cat([weights, torch.tensor([5])])
        off = {
            name: float((rule(table, counts) - centre).norm())
            for name, rule in {
                "mean": Mean(),
                "cwmed": CoordinateWiseMedian(),
                "gm": GeometricMedian(),
                "ctma": build("ctma(gm)", byz_fraction=0.4),
            }.items()
        }
        assert off.pop("mean") == pytest.approx(norm * 5 / 18, rel=0.02)
        assert max(off.values()) < radius
