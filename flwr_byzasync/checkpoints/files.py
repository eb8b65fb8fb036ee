"""Checkpoint files: written atomically, and refused with a reason when damaged.

A checkpoint is one safetensors file: tensors, one of them the rest as JSON, and a checksum of
everything in its metadata. Nothing in it is ever executed.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flwr_byzasync._checks import check_integer, check_number, coerce_numbers
from flwr_byzasync._printable import printable
from flwr_byzasync.errors import ConfigError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

logger = getLogger("flwr")

FORMAT, VERSION = "flwr_byzasync checkpoint", "5"
PATTERN = "checkpoint-*.safetensors"
DOCUMENT = "document"
"""Name of the tensor whose bytes are the JSON; the state's own tensors have dots in theirs."""


class DamagedError(ValueError):
    """A file is not a complete checkpoint of ours; the message says why."""


@dataclass(frozen=True)
class Checkpoints:
    """Where checkpoints are written, how often, and whether to resume from them.

    Parameters
    ----------
    folder : str or Path
        Absolute: an app's working directory is wherever the SuperLink was started. One folder
        per run; created if it is missing.
    every_rounds : int or None, default 1
        Write one after this many rounds, >= 1; None: not at the end of rounds.
    every_seconds : float or None
        Write one between two replies after this many seconds, in (0, inf); None: not by time.
    keep : int, default 3
        How many of the latest are kept, >= 1.
    resume : bool, default False
        Whether `start` resumes the run in the folder from its latest complete checkpoint; with
        an empty folder it starts a new run. Model, rule and optimizer must be the same. False
        refuses a folder that holds a run.

    Raises
    ------
    ConfigError
        If a value is out of range, or both rounds and seconds are None.

    Examples
    --------
    >>> Checkpoints("/data/run1", every_rounds=None, every_seconds=600.0).keep
    3
    """

    folder: str | os.PathLike[str]
    every_rounds: int | None = 1
    every_seconds: float | None = None
    keep: int = 3
    resume: bool = False

    def __post_init__(self) -> None:
        coerce_numbers(self)
        named = isinstance(self.folder, str | os.PathLike) and os.fspath(self.folder)
        if not isinstance(named, str) or not _is_path(named):
            fix = "write the whole path, beginning at the root"
            raise ConfigError("folder", self.folder, "an absolute path", fix)
        if self.every_rounds is not None:
            fix = "pass for example every_rounds=1, or None"
            check_integer("every_rounds", self.every_rounds, low=1, fix=fix)
        if self.every_seconds is not None:
            fix = "pass for example every_seconds=600.0, or None"
            check_number("every_seconds", self.every_seconds, low=0, closed="neither", fix=fix)
        if self.every_rounds is None and self.every_seconds is None:
            legal = "an integer >= 1 where every_seconds is None"
            raise ConfigError("every_rounds", None, legal, "pass one of the two")
        check_integer("keep", self.keep, low=1, fix="pass for example keep=3")
        if not isinstance(self.resume, bool):
            fix = "pass True to resume the run in the folder"
            raise ConfigError("resume", self.resume, "True or False", fix)

    def prepare(self) -> None:
        """Create the folder.

        Raises
        ------
        ConfigError
            If it cannot be created or written to.
        """
        try:
            folder = Path(self.folder)
            folder.mkdir(parents=True, exist_ok=True)
            trial = folder / ".trial.tmp"
            trial.write_bytes(b"")
            trial.unlink(missing_ok=True)
        except OSError as error:
            legal = f"a folder that can be created and written to ({error.strerror})"
            raise ConfigError("folder", str(self.folder), legal, "pass another path") from error

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Lock the folder for one run, and remove files that a killed run left half written.

        Where the system or the file system has no such locks, as on some network drives, two
        runs are not kept apart. The lock ends with its process.

        Raises
        ------
        ConfigError
            If another run has the lock.
        """
        folder = Path(self.folder)
        with _locked(folder):
            for rest in folder.glob(f".{PATTERN}.tmp"):
                with suppress(OSError):  # such as a folder of that name
                    rest.unlink(missing_ok=True)
            yield

    def paths(self) -> list[Path]:
        """Return the files named like a checkpoint, latest first; they may be damaged."""
        return [path for path in self._named() if path.is_file()]

    def _named(self) -> list[Path]:
        found = [path for path in Path(self.folder).glob(PATTERN) if _number(path) > 0]
        return sorted(found, key=_number, reverse=True)

    def write(self, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
        """Write a checkpoint, and remove all but the latest `keep`.

        Returns
        -------
        Path
            The file, synced to disk.

        Raises
        ------
        OSError
            If the disk is full or gone; earlier checkpoints are untouched.
        """
        earlier, taken = self.paths(), self._named()
        number = _number(taken[0]) + 1 if taken else 1
        path = Path(self.folder) / PATTERN.replace("*", f"{number:08d}")
        write_file(path, document, tensors)
        for old in earlier[self.keep - 1 :]:
            old.unlink(missing_ok=True)
        return path

    def read(self) -> Iterator[tuple[Path, dict[str, Any], dict[str, Tensor]]]:
        """Yield path, document and tensors of complete checkpoints, latest first.

        The log names the others, with a reason each.
        """
        for path in self._named():
            try:
                if not path.is_file():  # reading from a pipe would block for ever
                    raise DamagedError("it is not a regular file")
                yield path, *read_file(path)
            except DamagedError as error:
                logger.warning("Checkpoint %s is not used: %s.", path.name, error)


def write_file(path: Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint under a temporary name, and rename it once it is on the disk."""
    # As a tensor: safetensors limits metadata to 100 MB, and says so only when it is read.
    text = torch.frombuffer(bytearray(json.dumps(document).encode()), dtype=torch.uint8)
    stored = {**_apart(tensors), DOCUMENT: text}
    metadata = {"format": FORMAT, "version": VERSION, "sha256": _checksum(stored)}
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file(stored, temporary, metadata)
        _sync(temporary, os.O_RDWR)
        temporary.replace(path)
        # Not every system can open folders: the file is complete and has its name anyway.
        with suppress(OSError):
            _sync(path.parent, os.O_RDONLY)
    except SafetensorError as error:  # how the library reports a full disk
        raise OSError(str(error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the document and tensors of a checkpoint.

    Raises
    ------
    DamagedError
        If it is truncated, changed, no JSON, from another program, or of another format version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_origin(metadata)
            # Clones: the library may return the memory-mapped file itself.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DamagedError(
            f"it is not a complete safetensors file ({printable(str(error))})"
        ) from error
    if metadata.get("sha256") != _checksum(tensors) or DOCUMENT not in tensors:
        raise DamagedError("its content does not match its checksum")
    return _document(tensors.pop(DOCUMENT)), tensors


def _document(text: Tensor) -> dict[str, Any]:
    with suppress(ValueError, TypeError, RecursionError):
        document = json.loads(text.numpy().tobytes())
        if isinstance(document, dict):
            return document
    raise DamagedError("its document is no JSON object")


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors on the host, no two sharing memory; copied only where they do."""
    seen: set[int] = set()
    stored = {}
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        memory = whole.untyped_storage().data_ptr()
        stored[name] = whole.clone() if memory in seen else whole
        seen.add(memory)
    return stored


def _check_origin(metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise DamagedError("it was not written by flwr_byzasync")
    if metadata.get("version") != VERSION:
        found = printable(metadata.get("version"), 20)
        raise DamagedError(f"its format version is {found}, and this release reads {VERSION}")


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        legal, fix = "a folder that no other run uses", "wait for it to end, or pass another folder"
        raise ConfigError("folder", str(folder), legal, fix) from None
    except OSError as error:
        reason = error.strerror
        logger.warning("Folder %s cannot be locked (%s): use it for one run.", folder, reason)
    try:
        yield
    finally:
        os.close(descriptor)


def _is_path(text: str) -> bool:
    """Whether a string is an absolute path that a file system could have."""
    try:
        return b"\0" not in os.fsencode(text) and Path(text).is_absolute()
    except UnicodeEncodeError:
        return False


def _number(path: Path) -> int:
    digits = path.name.removeprefix("checkpoint-").removesuffix(".safetensors")
    return int(digits) if digits.isdecimal() else 0


def _sync(path: Path, flags: int) -> None:
    """Flush a file, or a folder's entries, to the disk."""
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
