"""Attacks as run-configs write them: names, parameters, and what is refused."""

import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

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
    registry,
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


# --- aliases -------------------------------------------------------------------------------------
def test_little_and_empire_have_the_names_of_most_papers_as_well() -> None:
    assert attacks.ALIE is Little and attacks.IPM is Empire
    assert attacks.build("alie(z=1.5)") == Little(z=1.5)
    assert attacks.build("ipm") == Empire()
    assert attacks.build("flood(base=ipm(epsilon=0.5))") == Flood(base=Empire(epsilon=0.5))


def test_an_attack_with_an_alias_is_listed_once() -> None:
    assert not {"alie", "ipm"} & set(attacks.discover())
    assert len(set(attacks.discover().values())) == len(attacks.discover())


NEW_FILE = """
from dataclasses import dataclass
from typing import ClassVar
from flwr_byzasync.attacks.attack import AttackInfo, Needs

@dataclass(frozen=True)
class Added:
    INFO: ClassVar[AttackInfo] = AttackInfo("NAME", Needs.OWN_VECTOR, ("here",), ALIASES)
"""


@pytest.fixture
def new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that counts as one of the package."""
    monkeypatch.setattr(attacks, "__path__", [*attacks.__path__, str(tmp_path)])
    registry.discover.cache_clear()
    registry.by_any_name.cache_clear()
    yield tmp_path / "added.py"
    registry.discover.cache_clear()
    registry.by_any_name.cache_clear()
    sys.modules.pop("flwr_byzasync.attacks.added", None)
    vars(attacks).pop("added", None)


def test_a_new_attack_is_built_by_its_name_and_its_aliases(new_file: Path) -> None:
    new_file.write_text(NEW_FILE.replace("NAME", "new").replace("ALIASES", '("newer", "newest")'))
    made = {type(attacks.build(name)).__name__ for name in ("new", "newer", "newest")}
    assert made == {"Added"} and "newer" not in attacks.discover()


@pytest.mark.parametrize(
    ("name", "aliases", "twice"),
    [
        ("zero", "()", "zero"),
        ("new", '("zero",)', "zero"),
        ("new", '("ipm",)', "ipm"),
        ("ipm", "()", "ipm"),
        ("new", '("new",)', "new"),
    ],
)
def test_no_two_attacks_share_a_name_or_an_alias(
    new_file: Path, name: str, aliases: str, twice: str
) -> None:
    new_file.write_text(NEW_FILE.replace("NAME", name).replace("ALIASES", aliases))
    with pytest.raises(RuntimeError, match=f"are named '{twice}'"):
        attacks.discover()
