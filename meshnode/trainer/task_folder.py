"""Where task files are: those that people put into the data folder, and those that the node has found in streams.

The latter are in the trainer's own folder, within a bound of bytes: beyond it the oldest go, as if somebody had removed
a file that was learned.
"""

from pathlib import Path

from experts.data.npz import load_partly_labelled, save_partly_labelled
from experts.data.partly import PartlyLabelled
from experts.errors import MalformedDataset
from meshnode.trainer.task_file import TaskFile
from protocol.identifiers import digest_of
from protocol.limits import MAX_NAME_CHARS

__all__ = ["FOUND_BYTES", "STREAM_SUFFIX", "TaskFolder", "unfit_name"]

FOUND_BYTES = 2**26
"""Of files found in streams, 64 MiB."""

STREAM_SUFFIX = ".stream"
"""Ends the name of a folder that is a stream."""


class TaskFolder:
    """Both folders as one.

    Args:
        data: People's; None if there is none.
        found: The trainer's own, made when something is first found. Of a name that both have, people's counts.
    """

    def __init__(self, data: Path | None, found: Path) -> None:
        self._data = data
        self._found = found
        self._known: dict[Path, tuple[object, TaskFile]] = {}
        """Files as they were when they were last opened, each with what shows that it has not changed."""

    def scan(self) -> tuple[tuple[TaskFile, ...], dict[str, str]]:
        """Readable task files in the order of their names, and why others are not, by name."""
        tasks: list[TaskFile] = []
        unreadable: dict[str, str] = {}
        paths: dict[str, Path] = {}
        if self._data is not None:
            for folder in (self._found, self._data):
                paths |= {path.stem: path for path in folder.glob("*.npz")}
        self._known = {path: known for path, known in self._known.items() if path in paths.values()}
        for name, path in sorted(paths.items()):
            reason = unfit_name(name)
            if reason is not None:
                unreadable[name.encode("ascii", "backslashreplace").decode()] = reason
                continue
            try:
                tasks.append(self._look_at(path))
            except (MalformedDataset, OSError) as exc:
                unreadable[name] = str(exc)
        return tuple(tasks), unreadable

    def streams(self) -> tuple[Path, ...]:
        """Folders of people's that are streams, in the order of their names."""
        found = self._data.glob(f"*{STREAM_SUFFIX}") if self._data is not None else ()
        return tuple(sorted(path for path in found if path.is_dir()))

    def open(self, name: str) -> tuple[str, PartlyLabelled]:
        """A task file by name: digest and images.

        Raises:
            MalformedDataset: It is gone, or no task file.
            OSError: It cannot be read.
        """
        path = self._path(name)
        return digest_of(path.read_bytes()), load_partly_labelled(path)

    def same(self, file: TaskFile) -> PartlyLabelled | None:
        """A task file's images; None if it is gone or has other content by now."""
        try:
            digest, task = self.open(file.name)
        except (MalformedDataset, OSError):
            return None
        return task if digest == file.digest else None

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self._path(name).exists()

    def add_found(self, name: str, task: PartlyLabelled) -> None:
        """Keep a task that was found, unless a file of its name is there; it is on the disk when this returns."""
        self._found.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._found / f"{name}.npz"
        if path.exists():
            return  # written before a kill: it is whole
        save_partly_labelled(path, task)
        files = sorted((file.stat().st_mtime_ns, file.name, file) for file in self._found.glob("*.npz"))
        total = sum(file.stat().st_size for *_, file in files)
        for *_, file in files[:-1]:
            if total <= FOUND_BYTES:
                break
            total -= file.stat().st_size
            file.unlink()

    def has_found(self, name: str) -> bool:
        """Whether there is a file of a task that was found."""
        return (self._found / f"{name}.npz").exists()

    def drop_found(self, name: str) -> None:
        """Delete a task that was found; people's own file stays."""
        (self._found / f"{name}.npz").unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        own = self._found / f"{name}.npz"
        if self._data is None:
            return own
        path = self._data / f"{name}.npz"
        return path if path.exists() or not own.exists() else own

    def _look_at(self, path: Path) -> TaskFile:
        status = path.stat()
        seen = (status.st_mtime_ns, status.st_size, status.st_ino)
        before = self._known.get(path)
        if before is not None and before[0] == seen:
            return before[1]
        digest, task = digest_of(path.read_bytes()), load_partly_labelled(path)
        file = TaskFile(
            name=path.stem, digest=digest, classes=task.labelled.class_counts, unlabelled=task.num_unlabelled
        )
        self._known[path] = (seen, file)
        return file


def unfit_name(name: str, *, longest: int = MAX_NAME_CHARS) -> str | None:
    """Why a task cannot have this name; None if it can."""
    if not name.isprintable():  # nor is a name that is not UTF-8, which no message could carry
        return "a task's name must be printable text"
    if len(name) > longest:  # no contribution could carry it
        return f"a task's name has at most {longest} characters"
    return None
