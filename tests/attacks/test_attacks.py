"""Laws that every attack keeps: what it sends, what it reads, what it says about itself."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flwr_byzasync import ConfigError, Liveness, attacks
from flwr_byzasync.aggregators import CoordinateWiseMedian
from flwr_byzasync.attacks import (
    ALONE,
    AttackInfo,
    Empire,
    Flood,
    Knowledge,
    LabelAttack,
    LabelFlip,
    Little,
    Mimic,
    Needs,
    SignFlip,
    Sleeper,
    SlowDown,
    StaleReplay,
    TimedAttack,
    VectorAttack,
    memory_of,
    needs_of,
)

NON_FINITE = ("inf", "nan")


def every_vector_attack() -> dict[str, VectorAttack]:
    """Return every attack on what is sent, alone, with its other settings, and over others."""
    plain = {
        name: attack()
        for name, attack in attacks.discover().items()
        if attack.INFO.needs is not Needs.OWN_LABELS
    }
    texts = (
        "little(z=published)", "little(z=optimised)", "little(z=0.5)", "empire(epsilon=optimised)",
        "min_max(perturbation=unit)", "min_max(perturbation=sign)", "min_sum(perturbation=unit)",
        "min_sum(perturbation=sign)", "flood(base=little)", "slow_down(base=mimic)",
        "sleeper(honest_for=1, hostile_for=3, base=min_max)",
        "flood(base=sleeper(base=stale_replay))",
    )  # fmt: skip
    return plain | {text: attacks.build(text) for text in texts}  # type: ignore[dict-item]


EVERY = every_vector_attack()
FEW = max(5, settings.default.max_examples // 5)
"""Examples of a law for one attack: there are thirty of them."""


@st.composite
def situations(draw: st.DrawFn, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Knowledge]:
    """Draw an honest vector and complete knowledge, some rows far away."""
    n, d = draw(st.integers(1, 5)), draw(st.sampled_from((1, 3, 8)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    far = 1e4 if dtype is torch.float16 else 1e30
    scale = draw(st.sampled_from((0.0, 1e-30, 1.0, 1.0, far)))
    rows = torch.from_numpy(rng.normal(size=(n + 4, d)) * scale).to(dtype)
    weights = torch.from_numpy(rng.integers(1, 20, size=n))
    known = Knowledge(
        rows=rows[:n],
        weights=weights,
        honest_weight=int(weights.sum()),
        byzantine_weight=draw(st.integers(1, 50)),
        rule=CoordinateWiseMedian(),
        history=tuple(rows[n : n + draw(st.integers(0, 3))]),
        reply=draw(st.integers(0, 60)),
        seed=draw(st.integers(0, 100)),
    )
    return rows[-1], known


def bits(vector: Tensor) -> bytes:
    """Return the content of a vector, NaN included."""
    return vector.numpy().tobytes()


# --- laws of all attacks -------------------------------------------------------------------------
@pytest.mark.parametrize("name", attacks.discover())
def test_every_attack_declares_itself_and_is_of_the_kind_that_its_needs_imply(name: str) -> None:
    attack = attacks.discover()[name]()
    assert isinstance(attack.INFO, AttackInfo) and attack.INFO.name == name
    assert attack.INFO.sources and all(attack.INFO.sources)
    kind = LabelAttack if attack.INFO.needs is Needs.OWN_LABELS else VectorAttack
    assert isinstance(attack, kind)


@pytest.mark.parametrize("name", attacks.discover())
def test_an_attack_cannot_be_changed_and_equals_another_with_its_settings(name: str) -> None:
    attack = attacks.discover()[name]
    assert attack() == attack() and hash(attack()) == hash(attack())
    with pytest.raises(FrozenInstanceError):
        attack().scale = 2.0  # type: ignore[union-attr]


def test_the_attacks_are_these() -> None:
    assert list(attacks.discover()) == [
        "empire", "flood", "gaussian", "huge_norm", "inf", "label_flip", "little", "mimic",
        "min_max", "min_sum", "nan", "one_coordinate", "random", "sign_flip", "sleeper",
        "slow_down", "stale_replay", "zero",
    ]  # fmt: skip


def test_the_list_of_attacks_cannot_be_written() -> None:
    with pytest.raises(TypeError):
        attacks.discover()["mine"] = SignFlip  # type: ignore[index]


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=FEW)
@given(data=st.data())
def test_what_is_sent_is_a_new_vector_like_the_honest_one_and_inputs_are_not_written(
    name: str, data: st.DataObject
) -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        check_what_is_sent(name, *data.draw(situations(dtype)))


def check_what_is_sent(name: str, honest: Tensor, known: Knowledge) -> None:
    inputs = [honest, known.rows, known.weights, *known.history]
    before = [bits(x) for x in inputs if x is not None]
    sent = EVERY[name].craft(honest, known)
    assert (sent.dtype, sent.shape, sent.device) == (honest.dtype, honest.shape, honest.device)
    again = sent.clone()
    assert [bits(x) for x in inputs if x is not None] == before
    sent.fill_(7.0)
    assert [bits(x) for x in inputs if x is not None] == before
    assert bits(EVERY[name].craft(honest, known)) == bits(again)


@pytest.mark.parametrize("name", [name for name in EVERY if name not in NON_FINITE])
@settings(max_examples=FEW)
@given(data=st.data())
def test_finite_vectors_of_any_size_give_finite_vectors(name: str, data: st.DataObject) -> None:
    _, known = data.draw(situations(torch.float64))
    size = data.draw(st.sampled_from((1e300, 1e150, 1e-300)))
    rows = known.rows / known.rows.abs().amax().clamp(min=1.0) * size  # type: ignore[union-attr]
    # Rules promise nothing beyond norms of 1e150.
    known = replace(known, rows=rows if size < 1e300 or "optimised" not in name else known.rows)
    assert bool(EVERY[name].craft(rows[0], known).isfinite().all())


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=FEW)
@given(situation=situations())
def test_an_attack_reads_no_more_than_it_says_it_needs(
    name: str, situation: tuple[Tensor, Knowledge]
) -> None:
    honest, known = situation
    attack = EVERY[name]
    own = replace(ALONE, history=known.history, reply=known.reply, seed=known.seed)
    allowed = {
        Needs.OWN_VECTOR: own,
        Needs.COLLUDERS: replace(known, rule=None),
        Needs.EVERYTHING: known,
    }[needs_of(attack)]
    kept = memory_of(attack)
    allowed = replace(allowed, history=known.history[-kept:] if kept else ())
    assert bits(attack.craft(honest, allowed)) == bits(attack.craft(honest, known))


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=FEW)
@given(values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5))
def test_a_node_that_knows_no_other_can_mount_every_attack(name: str, values: list[float]) -> None:
    honest = torch.tensor(values)
    sent = EVERY[name].craft(honest)
    assert sent.shape == honest.shape
    # Those that need other vectors are honest until they know some.
    if needs_of(EVERY[name]) is not Needs.OWN_VECTOR:
        assert bits(sent) == bits(honest)


@pytest.mark.parametrize("name", ["little", "little(z=0.5)", "empire", "min_max", "min_sum"])
@settings(max_examples=FEW)
@given(situation=situations(torch.float64))
def test_a_row_of_weight_s_counts_as_s_rows(name: str, situation: tuple[Tensor, Knowledge]) -> None:
    honest, known = situation
    assert known.rows is not None and known.weights is not None
    copies = known.rows.repeat_interleave(known.weights, dim=0)
    unit = replace(known, rows=copies, weights=torch.ones(len(copies), dtype=torch.int64))
    attack, size = EVERY[name], float(known.rows.abs().max())
    sent = attack.craft(honest, known)
    # A deviation of rows that agree is 0 or 1e-16 of their size; γ magnifies no more than it.
    torch.testing.assert_close(attack.craft(honest, unit), sent, rtol=0, atol=1e-9 * size)


@pytest.mark.parametrize("name", EVERY)
def test_what_an_attack_prints_is_python_that_makes_it(name: str) -> None:
    assert eval(repr(EVERY[name]), vars(attacks)) == EVERY[name]


# --- needs and memory ----------------------------------------------------------------------------
def test_needs_and_memory_of_a_base_are_those_of_the_attack_over_it() -> None:
    for over in (Flood, SlowDown, Sleeper):
        for base in (
            SignFlip(),
            StaleReplay(age=7),
            Little(memory=3),
            Mimic(),
            Empire("optimised"),
        ):
            attack = over(base=base)
            assert needs_of(attack) is needs_of(base) and memory_of(attack) == memory_of(base)
    assert memory_of(Flood(base=None)) == 0 and needs_of(SlowDown()) is Needs.OWN_VECTOR


def test_only_the_strongest_strength_needs_everything() -> None:
    assert needs_of(Little()) is needs_of(Little(z=1.0)) is needs_of(Empire()) is Needs.COLLUDERS
    assert needs_of(Little(z="optimised")) is needs_of(Empire("optimised")) is Needs.EVERYTHING
    assert needs_of(LabelFlip()) is Needs.OWN_LABELS


def test_a_strength_without_what_it_needs_is_refused() -> None:
    known = Knowledge(rows=torch.ones(2, 3), weights=torch.ones(2))
    for z in ("paper", "published"):
        with pytest.raises(ConfigError, match=rf"^z='{z}'.*pass for example z=1\.5"):
            Little(z=z).craft(torch.ones(3), known)
    for attack in (Little(z="optimised"), Empire("optimised")):
        with pytest.raises(ConfigError, match="OmniscientGrid"):
            attack.craft(torch.ones(3), known)


# --- labels --------------------------------------------------------------------------------------
@given(st.integers(2, 100), st.data())
def test_flipping_labels_twice_is_honest_again(classes: int, data: st.DataObject) -> None:
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=1)))
    flipped = LabelFlip().transform(labels, classes)
    assert int(flipped.min()) >= 0 and int(flipped.max()) < classes
    assert torch.equal(LabelFlip().transform(flipped, classes), labels)


# --- time ----------------------------------------------------------------------------------------
@given(st.floats(0.0, 1e6), st.floats(0.0, 1e6))
def test_no_reply_arrives_before_its_query_and_only_timed_attacks_have_a_delay(
    honest: float, total: float
) -> None:
    rng = np.random.default_rng(0)
    assert honest + Flood().delay(rng, honest) == 0.0
    late = honest + SlowDown(total_delay=total).delay(rng, honest)
    assert late == pytest.approx(max(honest, total))
    timed = {name for name, attack in EVERY.items() if isinstance(attack, TimedAttack)}
    assert {name.split("(")[0] for name in timed} == {"flood", "slow_down"}


def test_slow_replies_arrive_within_the_time_that_the_strategy_waits() -> None:
    waits = Liveness().reply_timeout
    assert 0.8 * waits < SlowDown().total_delay < waits
