"""Attacks do to a vector or to labels what they say, and say what they need."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flwr_byzasync import ConfigError, attacks
from flwr_byzasync.attacks import Attack, LabelAttack, LabelFlip, Needs, SignFlip, VectorAttack


@pytest.mark.parametrize("name", attacks.discover())
def test_every_attack_declares_itself_and_is_of_the_kind_that_its_needs_imply(name: str) -> None:
    attack = attacks.discover()[name]()
    assert isinstance(attack.ATTACK, Attack) and attack.ATTACK.name == name
    assert attack.ATTACK.sources
    kind = LabelAttack if attack.ATTACK.needs is Needs.OWN_LABELS else VectorAttack
    assert isinstance(attack, kind)


def test_the_list_of_attacks_cannot_be_written() -> None:
    with pytest.raises(TypeError):
        attacks.discover()["mine"] = SignFlip  # type: ignore[index]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5))
def test_flipping_the_sign_twice_is_honest_again(values: list[float]) -> None:
    vector = torch.tensor(values)
    assert torch.equal(SignFlip().craft(SignFlip().craft(vector)), vector)


@given(st.integers(2, 100), st.data())
def test_flipping_labels_twice_is_honest_again(classes: int, data: st.DataObject) -> None:
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=1)))
    flipped = LabelFlip().transform(labels, classes)
    assert int(flipped.min()) >= 0 and int(flipped.max()) < classes
    assert torch.equal(LabelFlip().transform(flipped, classes), labels)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), "1"])
def test_a_scale_outside_its_interval_is_refused(scale: object) -> None:
    with pytest.raises(ConfigError, match=r"^scale="):
        SignFlip(scale)  # type: ignore[arg-type]
