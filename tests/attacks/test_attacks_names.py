"""Attacks as run-configs write them: names, parameters, and what is refused."""

from dataclasses import fields

import pytest

from flwr_byzasync import ConfigError, attacks
from flwr_byzasync.attacks import (
    Empire,
    Flood,
    Gaussian,
    Little,
    MinMax,
    SignFlip,
    Sleeper,
    SlowDown,
    VectorAttack,
)

# --- settings ------------------------------------------------------------------------------------
REFUSED = [
    "sign_flip(scale=0)", "sign_flip(scale=-1.0)", "sign_flip(scale=nan)", "sign_flip(scale='1')",
    "sign_flip(scale=1e999)", "sign_flip(scale=True)", "little(z=-0.1)", "little(z=large)",
    "little(z=None)", "little(memory=0)", "empire(epsilon=0)", "empire(epsilon=paper)",
    "empire(memory=1.5)", "gaussian(deviation=0)", "random(scale=-1)",
    "min_max(perturbation=none)", "min_sum(perturbation=1)", "min_sum(memory=0)",
    "min_max(memory=0)", "huge_norm(norm=0)", "one_coordinate(scale=0)",
    "one_coordinate(coordinate=-1)", "flood(base=label_flip)", "flood(base=1)",
    "flood(base='zero')", "flood(base=flood)", "slow_down(total_delay=-1)",
    "slow_down(base=slow_down)", "stale_replay(age=0)", "sleeper(honest_for=0)",
    "sleeper(hostile_for=0)", "sleeper(base=None)", "sleeper(base=flood)",
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_a_setting_outside_its_range_is_refused_by_its_name(text: str) -> None:
    argument = text.split("(")[1].split("=")[0]
    with pytest.raises(ConfigError, match=f"^{argument}="):
        attacks.build(text)


def test_every_parameter_but_a_base_is_refused_somewhere_above() -> None:
    named = {tuple(text.split("=")[0].split("(")) for text in REFUSED}
    for name, attack in attacks.discover().items():
        for field in fields(attack):  # type: ignore[arg-type]
            assert (name, field.name) in named


# --- names ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", attacks.discover())
def test_a_name_alone_and_with_empty_brackets_is_the_attack_with_its_defaults(name: str) -> None:
    assert attacks.build(name) == attacks.build(f" {name}() ") == attacks.discover()[name]()


@pytest.mark.parametrize(
    ("text", "attack"),
    [
        ("sign_flip(scale=2)", SignFlip(scale=2)),
        ("little(z=1.5, memory=3)", Little(z=1.5, memory=3)),
        ("little(z='published')", Little(z="published")),
        ("little(z=published)", Little(z="published")),
        ("min_max( perturbation = sign )", MinMax(perturbation="sign")),
        ("flood(base=empire(epsilon=0.5))", Flood(base=Empire(epsilon=0.5))),
        ("flood(base=zero)", Flood(base=attacks.Zero())),
        ("slow_down(base=None, total_delay=1e2)", SlowDown(total_delay=100.0)),
        (
            "flood(base=sleeper(honest_for=5, base=gaussian(deviation=1)))",
            Flood(base=Sleeper(honest_for=5, base=Gaussian(deviation=1))),
        ),
    ],
)
def test_parameters_are_read_from_the_call(text: str, attack: VectorAttack) -> None:
    assert attacks.build(text) == attack


@pytest.mark.parametrize(
    "text",
    [
        "", "unheard_of", "little(", "little)", "little(z=1.5", "little; zero", "a.little", "3",
        "flood(base=unheard_of)", "flood(base=unheard_of())", "[little]", "little()()", "little,",
        "lambda: 1", "x\0", "(" * 5000, "little" * 1000, "((" * 400, None, 7,
    ],
)  # fmt: skip
def test_what_names_no_attack_is_refused_with_the_legal_names(text: object) -> None:
    with pytest.raises(ConfigError, match=r"^attack=.*label_flip, little, .*"):
        attacks.build(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "legal"),
    [
        ("little(y=1)", "little with parameters among z, memory"),
        ("little(1.5)", "little with parameters among z, memory, each once, as name=value"),
        ("little(**{'z': 1})", "little with parameters among z, memory"),
        ("flood(base=little(y=1))", "little with parameters among z, memory"),
        ("zero(scale=1)", "zero without parameters"),
        ("sign_flip(scale=1+1)", "written with a number or a word for scale"),
        ("sign_flip(scale=float('2'))", "written with a number or a word for scale"),
        ("sign_flip(scale=[x for x in ()])", "written with a number or a word for scale"),
    ],
)
def test_what_cannot_be_read_as_parameters_is_refused_with_the_legal_ones(
    text: str, legal: str
) -> None:
    with pytest.raises(ConfigError, match=f"must be {legal}"):
        attacks.build(text)


def test_a_parameter_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^attack="):
        attacks.build("little(z=1, z=2)")
