"""A SuperLink and SuperNodes as processes on this machine, with TLS and authenticated nodes."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apps.benchmarks.local_flower import REPOSITORY, STARTED, LocalFlower, _free_ports
from tests.deployment.certificates import make_key, make_tls

APP = Path(__file__).parent / "app"
MARK = "BYZASYNC_DEPLOYMENT"
ROUND, EVERY = 2, 2
"""Accepted replies in a round, and rounds between two checkpoints."""


class Deployment(LocalFlower):
    """Starts a SuperLink, and SuperNodes by name; `stop` ends all of their processes.

    Each program has its own FLWR_HOME: programs that share one install an app at the same time,
    and one may run an incomplete copy of another.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder
        self.output, self.app = folder / "output", folder / "app"
        self.output.mkdir()
        shutil.copytree(APP, self.app, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(REPOSITORY / "LICENSE", self.app)
        self._environment |= {
            MARK: str(folder),
            # If the package is not installed, it is imported from this checkout.
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
        }
        make_tls(folder)
        (self._port,) = _free_ports(1)
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self.ids: dict[str, str] = {}
        (self.home / "config.toml").write_text(
            '[superlink]\ndefault = "tests"\n\n[superlink.tests]\n'
            f'address = "127.0.0.1:{self._port}"\nroot-certificates = "{folder / "ca.crt"}"\n'
        )

    # --- starting -----------------------------------------------------------------------------

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it answers."""
        self._start(
            "superlink",
            "flower-superlink",
            *("--ssl-ca-certfile", str(self._folder / "ca.crt")),
            *("--ssl-certfile", str(self._folder / "server.pem")),
            *("--ssl-keyfile", str(self._folder / "server.key")),
            *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
            *("--port", str(self._port), "--database", str(self._folder / "state.db")),
        )
        self.wait("the SuperLink to listen", self._listens, seconds=60)

    def register(self, name: str) -> None:
        """Make a SuperNode's key and register it with the SuperLink."""
        make_key(self._folder / name)
        public = str(self._folder / f"{name}.pub")
        command = self.flwr("supernode", "register", public, "--format", "json")
        assert command.exit_code == 0, command.tail()
        registered = json.loads(command.log[command.log.index("{") :])
        self.ids[name] = str(registered["node-id"])

    def start_supernode(self, name: str, partition: int, behaviour: str) -> subprocess.Popen[bytes]:
        """Start a SuperNode with the key of its name."""
        if not (self._folder / name).exists():
            make_key(self._folder / name)
        (port,) = _free_ports(1)
        config = f'partition-id={partition} num-partitions=6 behaviour="{behaviour}"'
        return self._start(
            name,
            "flower-supernode",
            *("--root-certificates", str(self._folder / "ca.crt")),
            *("--superlink", f"127.0.0.1:{self._port}", "--port", str(port)),
            *("--auth-supernode-private-key", str(self._folder / name)),
            *("--node-config", config),
        )

    def start_unfinished(self, name: str) -> Path:
        """Start a client whose uploads stay incomplete; return the file that marks their start."""
        begun = self.output / f"{name}-begun"
        self._start(
            name,
            "python",
            *("-m", "tests.deployment.unfinished", f"127.0.0.1:{self._port}"),
            *(str(self._folder / "ca.crt"), str(self._folder / name), str(begun)),
        )
        return begun

    def start_run(self, num_rounds: int) -> str:
        """Start a run of the app and return its id; do not wait for its end."""
        overrides = (
            f'output-dir="{self.output}" num-rounds={num_rounds} '
            f"updates-per-round={ROUND} checkpoint-every={EVERY}"
        )
        command = self.flwr("run", str(self.app), "--run-config", overrides)
        started = STARTED.search(command.log)
        assert started is not None, f"flwr run started no run:\n{command.tail()}"
        return started[1]

    def _start(self, name: str, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        found = shutil.which(program, path=Path(sys.executable).parent)
        assert found is not None, f"no {program} next to {sys.executable}"
        home = self._folder / f"home-{name}"
        home.mkdir(exist_ok=True)
        with (self._logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [found, *arguments],
                cwd=self._empty,
                env=self._environment | {"FLWR_HOME": str(home)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._started[name] = process
        return process

    def _listens(self) -> bool:
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", self._port)) == 0

    # --- watching -----------------------------------------------------------------------------

    def wait(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Wait until a condition holds; after `seconds` fail with the last lines of all logs."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"no {what} in {seconds:g} s\n{self.tails()}"
            time.sleep(0.2)

    def progress(self) -> list[dict[str, Any]]:
        """Return the entries that the ServerApps wrote after each round, in all runs."""
        path = self.output / "progress.jsonl"
        text = path.read_text() if path.exists() else ""
        # A killed process may have left an incomplete line.
        return [json.loads(line) for line in text.splitlines() if line.endswith("}}")]

    def log_of(self, name: str) -> str:
        """Return the output of a program."""
        return (self._logs / f"{name}.log").read_text(errors="replace")

    def tails(self, lines: int = 25) -> str:
        """Return the last lines of all logs."""
        paths = sorted([*self.output.glob("*.log"), *self._logs.glob("*.log")])
        shown = {p.name: "\n".join(p.read_text().splitlines()[-lines:]) for p in paths}
        return "\n".join(f"--- {name}\n{text}" for name, text in shown.items())

    def processes(self) -> dict[int, str]:
        """Return pid and program of all processes of this deployment.

        Without arguments, as those of some hold the token of their task.
        """
        ours, found = f"{MARK}={self._folder}".encode(), {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                inherited = (folder / "environ").read_bytes().split(b"\0")
                arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:  # ended meanwhile, or another user's
                continue
            if ours in inherited:
                found[int(folder.name)] = " ".join(Path(each).name for each in arguments[:2])
        return found

    # --- ending -------------------------------------------------------------------------------

    def kill(self, name: str) -> None:
        """Send SIGKILL to a SuperNode or the SuperLink, as the kernel does when out of memory."""
        self._started[name].kill()
        self._started[name].wait()

    def kill_serverapp(self) -> None:
        """Send SIGKILL to the process that runs the ServerApp."""
        pids = self.serverapps()
        assert pids, f"no ServerApp runs\n{self.tails()}"
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def serverapps(self) -> list[int]:
        """Return the pids of running ServerApps."""
        return [pid for pid, program in self.processes().items() if "flwr-serverapp" in program]

    def stop(self) -> None:
        """End the SuperNodes, then the SuperLink, then all other processes; none may remain."""
        for name, process in reversed(self._started.items()):
            if name == "superlink":
                self._wait_for_supernodes()
            process.terminate()
        super().stop()
        for process in self._started.values():
            process.wait()

    def _wait_for_supernodes(self) -> None:
        deadline = time.monotonic() + 10
        nodes = [process for name, process in self._started.items() if name != "superlink"]
        while any(node.poll() is None for node in nodes) and time.monotonic() < deadline:
            time.sleep(0.1)
