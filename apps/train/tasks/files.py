"""Where the files of a data set lie, and how they come there."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from flwr_byzasync import ConfigError


@dataclass(frozen=True)
class Files:
    """The files of one data set below the data directory.

    Parameters
    ----------
    dataset : str
        Name of the class in ``torchvision.datasets`` that can download them.
    names : tuple of str
        The files.
    folders : tuple of str
        Where they may lie, relative to the data directory; the first that has all is taken.
    suffixes : tuple of str, default ("",)
        What may stand behind each name, for example ".gz".
    """

    dataset: str
    names: tuple[str, ...]
    folders: tuple[str, ...]
    suffixes: tuple[str, ...] = ("",)

    def check(self, data_dir: str, download: bool) -> None:
        """Raise `ConfigError` if the files are neither there nor to be downloaded to `data_dir`."""
        if not data_dir or not (download or self._found(data_dir)):
            raise self._missing(data_dir)

    def obtain(self, data_dir: str) -> Path:
        """Return the folder that has the files, after a download if none has them.

        Raises
        ------
        ConfigError
            If they cannot be downloaded.
        """
        found = self._found(data_dir)
        if found is None:
            self._download(Path(data_dir))
            found = self._found(data_dir)
        if found is None:
            raise self._missing(data_dir)
        return found

    def _found(self, data_dir: str) -> Path | None:
        folders = [Path(data_dir, folder) for folder in self.folders]
        complete = (f for f in folders if all(find(f, n, self.suffixes) for n in self.names))
        return next(complete, None)

    def _missing(self, data_dir: str) -> ConfigError:
        folders = " or ".join(folder or "the directory itself" for folder in self.folders)
        names = ", ".join(self.names) + "".join(f" (or with {s})" for s in self.suffixes if s)
        legal = f"a directory that holds {names}, in {folders}"
        fix = "put the files there, or pass download=true and a directory to download to"
        return ConfigError("data-dir", data_dir, legal, fix)

    def _download(self, data_dir: Path) -> None:
        # Here, because torchvision takes a second or two to import and most runs do not need it.
        from torchvision import datasets

        try:
            # Elsewhere first: another process must never find half a file.
            with TemporaryDirectory(dir=data_dir, prefix="download-") as arrived:
                getattr(datasets, self.dataset)(arrived, download=True)
                for file in filter(Path.is_file, sorted(Path(arrived).rglob("*"))):
                    target = data_dir / file.relative_to(arrived)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(target)
        except (RuntimeError, OSError) as error:
            legal = f"false where {self.dataset} cannot be downloaded ({error})"
            fix = f"put {', '.join(self.names)} into data-dir yourself"
            raise ConfigError("download", True, legal.replace("\n", " "), fix) from error


def find(folder: Path, name: str, suffixes: tuple[str, ...]) -> Path | None:
    """Return the path of a file in a folder, with the first suffix with which it is there."""
    paths = (folder / f"{name}{suffix}" for suffix in suffixes)
    return next((path for path in paths if path.is_file()), None)
