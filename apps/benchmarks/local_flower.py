"""A separate local SuperLink, driven only by the `flwr` command."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
ANSI = re.compile(r"\x1b\[[0-9;]*m")
STARTED = re.compile(r"^Successfully started run (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Command:
    """The output and exit code of one `flwr` command."""

    exit_code: int
    log: str

    def tail(self, lines: int = 60) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.splitlines()[-lines:])


@dataclass(frozen=True)
class Run:
    """One finished run: its entry in `flwr list`, and its log without colours."""

    status: str
    details: str
    log: str
    seconds: float

    def tail(self, lines: int = 60) -> str:
        """Return the run's status and the last lines of its log."""
        last = "\n".join(self.log.splitlines()[-lines:])
        return f"{self.status} ({self.details}) after {self.seconds:.0f} s\n{last}"


class LocalFlower:
    """Starts a managed local SuperLink with its first run, as a user's `flwr run` does.

    FLWR_HOME alone does not separate local SuperLinks: `flwr` connects to whichever answers on the
    port. The SuperLink starts in an empty folder, since simulated nodes would import a package of
    the same name from there instead of from the bundle.
    """

    def __init__(self, folder: Path) -> None:
        self.home, self._empty, self._logs = folder / "home", folder / "empty", folder / "logs"
        for path in (self.home, self._empty, self._logs):
            path.mkdir(parents=True)
        programs = Path(sys.executable).parent
        flwr = shutil.which("flwr", path=programs)
        assert flwr is not None, f"no flwr next to {sys.executable}: pip install -e '.[test]'"
        self._flwr = flwr
        http, control = _free_ports(2)
        foreign = ("FLWR_", "RAY_")
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(foreign)},
            # flwr looks up its daemons in PATH.
            "PATH": os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)]),
            "FLWR_HOME": str(self.home),
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http),
            "FLWR_LOCAL_CONTROL_API_PORT": str(control),
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "200",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._commands = 0

    def flwr(self, *arguments: str, seconds: float = 60) -> Command:
        """Run one `flwr` command; after `seconds` fail with its output so far."""
        self._commands += 1
        # A file, not a pipe, keeps the output of a command that exceeds its time limit.
        printed = self._logs / f"{self._commands}.log"
        with printed.open("w") as file:
            try:
                done = subprocess.run(
                    [self._flwr, *arguments],
                    cwd=self._empty,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=seconds,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                done = None
        log = ANSI.sub("", printed.read_text())
        if done is None:
            tail = Command(-1, log).tail()
            raise AssertionError(f"flwr {' '.join(arguments)}: no end in {seconds:g} s\n{tail}")
        return Command(done.returncode, log)

    def run(
        self,
        overrides: str,
        nodes: int = 10,
        resources: str = "",
        seconds: float = 240,
        app: Path = REPOSITORY,
    ) -> Run:
        """Run an app, by default this repository's, to its end."""
        federation = f"num-supernodes={nodes} client-resources-num-cpus=1 {resources}".strip()
        began = time.monotonic()
        command = self.flwr(
            *("run", str(app), "--federation-config", federation),
            *("--run-config", overrides, "--stream"),
            seconds=seconds,
        )
        started = STARTED.search(command.log)
        assert started is not None, f"flwr run started no run:\n{command.tail()}"
        # `flwr run --stream` exits with 0 even when the app raised.
        listed = self.listed(started[1])
        while not listed["status"].startswith("finished") and time.monotonic() < began + seconds:
            time.sleep(0.5)
            listed = self.listed(started[1])
        seconds = time.monotonic() - began
        return Run(listed["status"], listed["status-details"], command.log, seconds)

    def listed(self, run_id: str) -> dict[str, Any]:
        """Return the entry of a run in `flwr list`."""
        (run,) = [run for run in self.runs() if run["run-id"] == run_id]
        return run

    def runs(self) -> list[dict[str, Any]]:
        """Return the entries of all runs in `flwr list`."""
        command = self.flwr("list", "--format", "json")
        assert command.exit_code == 0, command.tail()
        listed: dict[str, Any] = json.loads(command.log[command.log.index("{") :])
        return list(listed["runs"])

    def processes(self) -> dict[int, str]:
        """Return pid and command of all processes started with our FLWR_HOME."""
        ours = f"FLWR_HOME={self.home}".encode()
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                inherited = (folder / "environ").read_bytes().split(b"\0")
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:  # ended meanwhile, or another user's
                continue
            if ours in inherited:
                found[int(folder.name)] = command.decode(errors="replace").strip()
        return found

    def stop(self) -> None:
        """End the SuperLink and all its processes: by SIGTERM, then by SIGKILL."""
        self._end(signal.SIGTERM, patience=15)
        self._end(signal.SIGKILL, patience=10)
        left = self.processes()
        assert not left, f"still running: {left}"

    def _end(self, how: signal.Signals, patience: float) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, how)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + patience
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    """Return different free ports."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
