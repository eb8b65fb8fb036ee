"""What this package needs of Flower, and the one module that touches its private parts."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from flwr.app import Context, Message, RecordDict

from flwr_byzasync import VirtualGrid
from flwr_byzasync.wire.flower_compat import pretend_task, stamp_message
from tests.releases import INSTALLED, since

ROOT = Path(__file__).resolve().parents[2]
PACKAGE, APPS = ROOT / "flwr_byzasync", ROOT / "apps"
PUBLIC = {"flwr", "flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
PRIVATE = "flwr.supercore.task_identity"
knows_no_tasks = pytest.mark.skipif(INSTALLED >= (1, 38), reason="about flwr before 1.38")
knows_tasks = since(1, 38, "earlier releases create a Message outside a task")


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"{path}: a relative import"
            yield node.module


def flower_imports(folder: Path) -> set[tuple[str, str]]:
    """File and module of every import of Flower below a folder."""
    return {
        (path.name, module)
        for path in folder.rglob("*.py")
        for module in imports(path)
        if module.split(".")[0] == "flwr"
    }


def query() -> Message:
    return Message(RecordDict(), dst_node_id=7, message_type="train")


# --- what is imported -----------------------------------------------------------------------


def test_the_package_imports_one_private_module_of_flower_in_one_file() -> None:
    found = flower_imports(PACKAGE)
    assert len(found) > 10, "the scan finds the package's imports"
    assert {pair for pair in found if pair[1] not in PUBLIC} == {("flower_compat.py", PRIVATE)}


def test_the_apps_import_nothing_private_of_flower() -> None:
    found = flower_imports(APPS)
    assert ("server_app.py", "flwr.serverapp") in found
    assert {pair for pair in found if pair[1] not in PUBLIC} == set()


def test_only_one_file_reaches_into_the_attributes_of_flower_objects() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}
    texts = {name: text for name, text in texts.items() if re.search(r"^from flwr\b", text, re.M)}
    assert len(texts) >= 10, "the scan finds the files that know Flower"
    assert {name for name, text in texts.items() if "__dict__" in text} == {"flower_compat.py"}


# --- being a task ---------------------------------------------------------------------------


def test_in_a_task_a_message_can_be_created_and_answered() -> None:
    with pretend_task(run_id=3, node_id=5):
        sent = query()
    stamp_message(sent, "m", run_id=3, src_node_id=5)
    assert (sent.metadata.run_id, sent.metadata.src_node_id) == (3, 5)
    with pretend_task(run_id=3, node_id=7):
        reply = Message(RecordDict(), reply_to=sent).metadata
    assert (reply.run_id, reply.src_node_id, reply.dst_node_id) == (3, 7, 5)
    assert (reply.reply_to_message_id, reply.message_id) == ("m", "")


def test_a_grid_stamps_a_message_with_its_source() -> None:
    def app(message: Message, context: Context) -> Message:
        return Message(RecordDict(), reply_to=message)

    with VirtualGrid(app, 1) as grid:
        sent = Message(RecordDict(), dst_node_id=grid.node_ids[0], message_type="train")
        (message_id,) = grid.push_messages([sent])
        grid.sleep(1.0)
        (reply,) = grid.pull_messages([message_id])
        (error,) = grid.pull_messages([message_id])
    assert sent.metadata.run_id == reply.metadata.run_id == grid.run.run_id
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (grid.node_ids[0], 1)
    assert reply.metadata.reply_to_message_id == error.metadata.reply_to_message_id == message_id


@knows_tasks
def test_outside_a_task_no_message_can_be_created(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supercore.task_identity import TaskIdentity

    monkeypatch.setattr(TaskIdentity, "_node_id", None)
    with pytest.raises(RuntimeError, match="node_id"):
        query()


@knows_no_tasks
def test_before_flwr_1_38_a_message_is_created_anywhere_and_has_no_source() -> None:
    assert (query().metadata.run_id, query().metadata.src_node_id) == (0, 0)


@knows_tasks
def test_the_identity_of_a_task_is_set_inside_the_block_and_restored() -> None:
    from flwr.supercore.task_identity import TaskIdentity

    def identity() -> tuple[int | None, ...]:
        return TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id

    before = identity()
    with pretend_task(run_id=3, node_id=5):
        assert (TaskIdentity.run_id, TaskIdentity.node_id) == (3, 5)
        with pretend_task(run_id=3, node_id=7):
            assert TaskIdentity.node_id == 7
        with pytest.raises(KeyError), pretend_task(run_id=3, node_id=7):
            raise KeyError
        assert TaskIdentity.node_id == 5
    assert identity() == before


@knows_tasks
def test_a_virtual_grid_acts_as_the_superlink_and_in_an_app_as_the_node() -> None:
    from flwr.supercore.task_identity import TaskIdentity

    ids: list[int] = []

    def app(message: Message, context: Context) -> Message:
        ids.append(TaskIdentity.node_id)
        raise ValueError

    before = TaskIdentity.node_id
    with pretend_task(run_id=3, node_id=5):
        with VirtualGrid(app, 2) as grid:
            sent = Message(RecordDict(), dst_node_id=grid.node_ids[1], message_type="train")
            (message_id,) = grid.push_messages([sent])
            grid.sleep(1.0)
            (reply,) = grid.pull_messages([message_id])
            assert reply.error.code == 2
            assert ids == [grid.node_ids[1]] and TaskIdentity.node_id == 1
        assert TaskIdentity.node_id == 5
        with pytest.raises(KeyError), VirtualGrid(app, 2):
            raise KeyError
        assert TaskIdentity.node_id == 5
    assert TaskIdentity.node_id == before


# --- the guard ------------------------------------------------------------------------------


def test_where_flower_has_no_such_module_the_block_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, PRIVATE, None)
    entered = False
    with pretend_task(run_id=3, node_id=5):
        entered = True
    assert entered


@pytest.mark.parametrize("names", [(), ("_task_id", "_run_id")])
def test_an_unknown_identity_class_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    other = SimpleNamespace(**dict.fromkeys(names))
    module = ModuleType(PRIVATE)
    module.__dict__["TaskIdentity"] = other
    monkeypatch.setitem(sys.modules, PRIVATE, module)
    with pretend_task(run_id=3, node_id=5):
        assert vars(other) == dict.fromkeys(names)
    assert vars(other) == dict.fromkeys(names)


def test_an_exception_leaves_the_block_even_where_it_does_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flwr_byzasync.wire.flower_compat._task_identity", lambda: None)
    with pytest.raises(KeyError, match="mine"), pretend_task(run_id=3, node_id=5):
        raise KeyError("mine")


# --- what is declared -----------------------------------------------------------------------


def test_one_range_of_flower_is_declared_and_the_installed_release_is_in_it() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = chain.from_iterable(project["optional-dependencies"].values())
    specs = [each for each in (*project["dependencies"], *extras) if re.match(r"flwr\b", each)]
    ranges = {each.partition(">=")[2] for each in specs}
    (declared,) = ranges
    oldest, newest = declared.split(",")
    assert newest == "<2"
    low = tuple(int(part) for part in oldest.split("."))
    assert low <= INSTALLED < (2, 0)
    assert f"flwr {oldest}" in (ROOT / "docs" / "versions.md").read_text(encoding="utf-8")
