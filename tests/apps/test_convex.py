"""The convex check: problems, the plain loop, resuming, and fits to the runs."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.paper import convex
from apps.paper.convex_loop import (
    ARMS,
    BYZ_FRACTION,
    HONEST,
    NODES,
    ConvexCell,
    Trajectory,
    arrivals,
    best_steps,
    checkpoints,
    run,
    score,
)
from apps.paper.convex_report import claims, markdown, slope, summarise, tuning
from apps.paper.problems import PROBLEMS, newton, problem
from flwr_byzasync import ConfigError


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """More threads are slower on tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


EVERY = pytest.mark.parametrize("name", PROBLEMS)
SMALL = ConvexCell("least_squares", "none", "mu2", "cwmed", seed=1, horizon=256, step=0.1)


def final(**changes: object) -> float:
    return score(run(replace(SMALL, **changes)))


@EVERY
def test_the_excess_is_zero_at_the_solution_and_positive_around_it(name: str) -> None:
    task = problem(name)
    nearby = task.solution + 1e-3 * torch.eye(len(task.solution), dtype=torch.float64)
    assert abs(task.excess(task.solution)) < 1e-15
    assert min(task.excess(x) for x in nearby) > 0


@EVERY
def test_batches_average_to_the_gradient_of_the_excess(name: str) -> None:
    task = problem(name)
    x, along = 0 * task.solution, task.solution / task.solution.norm()
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([along @ task.draw(generator)(x) for _ in range(4000)])
    slope_along = (task.excess(x + 1e-5 * along) - task.excess(x - 1e-5 * along)) / 2e-5
    error = float(drawn.std()) / 4000**0.5
    assert abs(float(drawn.mean()) - slope_along) < 5 * error < 0.1 * abs(slope_along)


@EVERY
def test_the_gradient_s_noise_vanishes_with_the_distance_of_two_points(name: str) -> None:
    task = problem(name)
    gradient = task.draw(torch.Generator().manual_seed(0))
    x, step = task.solution, torch.ones_like(task.solution)
    far, near = (float((gradient(x + s * step) - gradient(x)).norm()) for s in (1e-2, 1e-4))
    assert near == pytest.approx(far / 100, rel=0.02)


@EVERY
def test_no_direction_curves_more_than_the_smoothness(name: str) -> None:
    task = problem(name)
    x, unit = task.solution, torch.eye(len(task.solution), dtype=torch.float64)
    curvatures = [(task.excess(x + 1e-3 * e) + task.excess(x - 1e-3 * e)) / 1e-6 for e in unit]
    assert 0.3 * task.smoothness < max(curvatures) <= task.smoothness * (1 + 1e-6)


def test_separable_examples_have_no_minimum_and_are_refused() -> None:
    with pytest.raises(RuntimeError, match="separable"):
        newton(torch.ones(5, 1, dtype=torch.float64))


@given(st.integers(0, 10**6), st.integers(NODES, 2000))
@settings(max_examples=25, deadline=None)
def test_the_byzantine_share_stays_at_most_one_reply_below_its_limit(seed: int, count: int) -> None:
    byzantine = np.cumsum([node >= HONEST for node in arrivals(seed, count)])[NODES - 1 :]
    allowed = BYZ_FRACTION * np.arange(NODES, count + 1)
    assert (byzantine <= allowed + 1e-9).all() and (byzantine > allowed - 1).all()


def test_each_node_replies_once_and_then_in_proportion_to_its_rank() -> None:
    order = list(arrivals(1, 20000))
    assert order[:NODES] == list(range(NODES))
    counted = Counter(order[NODES:])
    shares = [counted[node] / sum(counted[k] for k in range(HONEST)) for node in range(HONEST)]
    assert shares == pytest.approx([rank / 21 for rank in range(1, 7)], abs=0.01)


def test_a_shorter_run_has_the_first_arrivals_of_a_longer_one() -> None:
    assert list(arrivals(3, 500)) == list(arrivals(3, 2000))[:500]
    assert list(arrivals(3, 4)) == [0, 1, 2, 3]


@given(st.integers(2, 10**5))
@settings(max_examples=50)
def test_checkpoints_increase_from_the_first_step_to_the_last(horizon: int) -> None:
    points = checkpoints(horizon)
    assert points[0] == 1 and points[-1] == horizon and points == sorted(set(points))


@EVERY
@pytest.mark.parametrize("optimizer", ARMS)
def test_a_cell_has_one_result_to_the_bit(name: str, optimizer: str) -> None:
    cell = replace(SMALL, problem=name, optimizer=optimizer, attack="little", horizon=64)
    assert run(cell) == run(cell) != run(replace(cell, seed=2))


@EVERY
def test_mu2_goes_below_the_floor_of_sgd_at_the_same_step(name: str) -> None:
    mu2, sgd = (
        final(problem=name, optimizer=arm, horizon=1024, step=0.3) for arm in ("mu2", "sgd")
    )
    assert mu2 < 0.5 * sgd


@EVERY
@pytest.mark.parametrize("rule", ["cwmed", "ctma(cwmed)"])
def test_liars_ruin_the_mean_and_not_a_robust_rule(name: str, rule: str) -> None:
    start = problem(name).excess(0 * problem(name).solution)
    attacked = {"problem": name, "attack": "sign_flip_x3"}
    assert final(**attacked, rule="mean") > start
    assert final(**attacked, rule=rule) < 0.7 * start


@given(st.floats(-3, 1), st.floats(1e-6, 1e6), st.integers(20, 5000))
@settings(max_examples=50)
def test_the_slope_of_a_power_law_is_its_exponent(power: float, factor: float, end: int) -> None:
    law: Trajectory = [(t, factor * t**power) for t in checkpoints(end)]
    assert slope(law) == pytest.approx(power, abs=1e-6)


def test_the_slope_uses_the_last_decade_only() -> None:
    bent: Trajectory = [(t, 1.0 / t if t < 100 else 0.01) for t in checkpoints(1000)]
    assert slope(bent) == pytest.approx(0, abs=1e-9)
    assert slope(bent, decades=3) < -0.3


def test_a_summary_averages_seeds_and_has_the_step_of_the_longest_run() -> None:
    def law(horizon: int, factor: float) -> Trajectory:
        return [(t, factor / horizon) for t in checkpoints(horizon)]

    results = {
        replace(SMALL, seed=seed, horizon=horizon, step=1 / horizon): law(horizon, factor)
        for seed, factor in ((1, 1.0), (2, 3.0))
        for horizon in (64, 256, 1024)
    }
    summary = summarise(results)["least_squares", "none", "cwmed", "mu2"]
    assert summary.step == 1 / 1024
    assert summary.final == pytest.approx((2 / 1024, 2**0.5 / 1024))
    assert summary.slope_t == pytest.approx((0, 0), abs=1e-9)
    assert summary.slope_horizon == pytest.approx((-1, 0), abs=1e-9)


def test_a_claim_counts_the_comparisons_in_which_it_holds() -> None:
    def results(arm: str, power: float) -> dict[ConvexCell, Trajectory]:
        cells = [replace(SMALL, optimizer=arm, horizon=horizon) for horizon in (64, 256, 1024)]
        return {c: [(t, t**power) for t in checkpoints(c.horizon)] for c in cells}

    summaries = summarise(results("mu2", -1.0) | results("sgd", 0.0) | results("momentum", -2.0))
    counts = {claim.sentence: (claim.holds, claim.of) for claim in claims(summaries, {})}
    assert counts == {
        "μ²-SGD's loss falls at least as T^-0.5": (1, 1),
        "μ²-SGD ends below the rival at its best step": (1, 2),
        "the rival stalls even if tuned for each T (slope in T above -0.1)": (1, 2),
    }
    row = "| μ²-SGD ends below the rival at its best step | least_squares | 1 of 2 |"
    assert row in markdown(summaries, {}).splitlines()


def test_a_claim_without_comparisons_is_left_out() -> None:
    cells = [replace(SMALL, rule="mean", horizon=horizon) for horizon in (64, 256)]
    alone = {cell: [(t, 1.0) for t in checkpoints(cell.horizon)] for cell in cells}
    assert claims(summarise(alone), {}) == []


def test_the_best_step_is_the_one_of_lowest_score() -> None:
    scores = {0.01: 3.0, 0.1: 1.0, 1.0: 2.0}
    cells = {replace(SMALL, step=c): [(256, value)] for c, value in scores.items()}
    other = {replace(SMALL, attack="little", step=0.5): [(256, 9.0)]}
    assert [cell.step for cell in best_steps(cells | other)] == [0.1, 0.5]


def test_a_step_tuned_for_a_short_run_is_evaluated_in_a_long_one() -> None:
    def law(cell: ConvexCell) -> Trajectory:  # the long step is best at 64, and stalls at 0.1
        floor = 0.1 if cell.step == 0.5 else 0.0
        return [(t, max(floor, 1 / (cell.step * t))) for t in checkpoints(cell.horizon)]

    cells = [
        replace(SMALL, optimizer="sgd", step=c, horizon=h) for c in (0.2, 0.5) for h in (16, 256)
    ]
    steps = tuning({cell: law(cell) for cell in cells})
    tuned = steps["least_squares", "none", "sgd"]
    assert tuned.best == (0.5, 0.2) and tuned.kept == pytest.approx(0.1)
    assert tuned.final < 0.03 and tuned.kept_slope > -0.1
    counts = {
        claim.sentence: (claim.holds, claim.of)
        for claim in claims(summarise({cell: law(cell) for cell in cells[:2]}), steps)
    }
    assert counts["the rival stalls with the step chosen for T/16 (slope in t above -0.1)"] == (
        1,
        1,
    )


def test_finished_runs_are_kept_and_incomplete_ones_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[ConvexCell] = []

    def fake(cell: ConvexCell) -> Trajectory:
        started.append(cell)
        return [(t, cell.seed / t) for t in checkpoints(cell.horizon)]

    monkeypatch.setattr(convex, "run", fake)
    path, cells = tmp_path / "runs.csv", [replace(SMALL, seed=seed) for seed in (1, 2)]
    first = convex.run_missing(path, cells, jobs=1)
    text = path.read_text()
    assert convex.run_missing(path, cells, jobs=1).keys() == first.keys() and started == cells
    path.write_text(text[:-3])
    again = convex.run_missing(path, cells, jobs=1)
    assert started == [*cells, cells[1]]
    assert path.read_text() == text and again[cells[1]] == first[cells[1]]


@pytest.mark.slow
def test_parallel_processes_give_the_same_results(tmp_path: Path) -> None:
    cells = [replace(SMALL, seed=seed, horizon=64) for seed in (1, 2)]
    alone = convex.run_missing(tmp_path / "alone.csv", cells, jobs=1)
    assert convex.run_missing(tmp_path / "both.csv", cells, jobs=2) == alone


@pytest.mark.slow
def test_the_command_writes_runs_tables_and_figures_and_runs_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(convex, "GRID", (0.1,))
    only = ["problem=least_squares", "attack=none", "attack=little", "rule=cwmed"]
    options = {"seeds": [1, 2], "replies": 64, "only": [*only, "optimizer=mu2"]}
    convex.main(tmp_path, **options)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        "convex.csv", "convex_steps.csv", "convex_summary.csv", "convex_summary.md",
        "convex_least_squares_none.png", "convex_least_squares_little.png",
    }  # fmt: skip
    monkeypatch.setattr(convex, "run", lambda cell: pytest.fail(f"{cell} was run twice"))
    convex.main(tmp_path, **options)


@pytest.mark.parametrize(
    ("argument", "changes"),
    [
        ("seeds", {"seeds": [-1]}), ("replies", {"replies": 63}), ("jobs", {"jobs": 0}),
        ("only", {"only": ["colour=red"]}), ("rule", {"only": ["rule=krumm"]}),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_before_anything_is_written(
    argument: str, changes: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=argument):
        convex.main(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()
