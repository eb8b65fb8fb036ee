"""What the documentation says is what the code does."""

import re
from pathlib import Path

from flwr_byzasync.core.transitions import TRANSITIONS

ROOT = Path(__file__).parents[1]


def test_the_table_in_the_docs_is_the_transition_table() -> None:
    text = (ROOT / "docs" / "data-flow.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([A-Z]+) \| ([A-Z_]+) \| ([A-Z]+) \| ?([A-Z_, ]*)\|$", text, re.M)
    written = [
        (a, b, c, tuple(e for e in d.replace(" ", "").split(",") if e)) for a, b, c, d in rows
    ]
    coded = [
        (status.name, event.name, becomes.name, tuple(effect.name for effect in effects))
        for (status, event), (becomes, effects) in TRANSITIONS.items()
    ]
    assert written == coded


def test_every_module_of_the_package_is_in_the_map_of_the_docs() -> None:
    text = (ROOT / "docs" / "data-flow.md").read_text(encoding="utf-8")
    package = ROOT / "flwr_byzasync"
    modules = {path.name for path in package.rglob("*.py")} - {"__init__.py"}
    assert {name for name in modules if f"  {name}" not in text} == set()


def test_every_run_config_key_is_explained() -> None:
    text = (ROOT / "docs" / "run-config.md").read_text(encoding="utf-8")
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = pyproject.split("[tool.flwr.app.config]")[1].split("\n# ---")[0]
    keys = re.findall(r"^([a-z-]+) = (.+)$", section, re.M)
    assert len(keys) == 27
    assert [key for key, default in keys if f"| `{key}` | `{default}` |" not in text] == []


def test_links_between_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
