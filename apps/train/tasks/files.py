"""The files of a data set: finding and downloading them."""

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
        Candidates relative to the data directory; the first with all files is used.
    suffixes : tuple of str, default ("",)
        What may follow each name, for example ".gz".
    """

    dataset: str
    names: tuple[str, ...]
    folders: tuple[str, ...]
    suffixes: tuple[str, ...] = ("",)

    def check(self, data_dir: str, download: bool) -> None:
        """Raise `ConfigError` if the files are missing in `data_dir` and must not be downloaded."""
        if not data_dir or not (download or self._found(data_dir)):
            raise self._missing(data_dir)

    def obtain(self, data_dir: str) -> Path:
        """Return the folder with the files, downloaded first if missing.

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
        # Imported late: torchvision takes a second or two, and most runs do not need it.
        from torchvision import datasets

        try:
            # Into a temporary folder first: no other process may find half a file.
            with TemporaryDirectory(dir=data_dir, prefix="download-") as temporary:
                getattr(datasets, self.dataset)(temporary, download=True)
                for file in filter(Path.is_file, sorted(Path(temporary).rglob("*"))):
                    target = data_dir / file.relative_to(temporary)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    file.replace(target)
        except (RuntimeError, OSError) as error:
            legal = f"false where {self.dataset} cannot be downloaded ({error})"
            fix = f"put {', '.join(self.names)} into data-dir yourself"
            raise ConfigError("download", True, legal.replace("\n", " "), fix) from error


def find(folder: Path, name: str, suffixes: tuple[str, ...]) -> Path | None:
    """Return the path of a file, with the first suffix that exists, or None."""
    paths = (folder / f"{name}{suffix}" for suffix in suffixes)
    return next((path for path in paths if path.is_file()), None)
