"""Names for a network's columns: from a file of the user's, or what a library declares."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experts.errors import MalformedTeacher

__all__ = ["distinct_names", "read_classes"]


def read_classes(path: Path, *, num_classes: int | None = None) -> tuple[str, ...]:
    """The names in a classes file: UTF-8, one a line, line i names the network's column i.

    Args:
        path: Blank lines at the end do not count; space around a name does not either.
        num_classes: How many there must be; None for any number.
    Raises: MalformedTeacher: If the file cannot be read, is of another length, or has an empty or a repeated name.
    """
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").rstrip().split("\n"))
    except (OSError, UnicodeDecodeError) as exc:
        raise MalformedTeacher(str(path), reason=f"not a readable classes file: {exc}") from exc
    if not all(names):
        raise MalformedTeacher(str(path), reason=f"line {names.index('') + 1} is empty")
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise MalformedTeacher(str(path), reason=f"class names occur twice: {', '.join(twice[:5])}")
    if num_classes is not None and len(names) != num_classes:
        raise MalformedTeacher(str(path), reason=f"{len(names)} names for {num_classes} classes")
    return names


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names as a library declares them, told apart where one stands for several columns.

    ImageNet has two classes that some lists both call "crane", the bird and the machine; they become "crane #134"
    and "crane #517", by column from 0. Two classes under one name could not be told apart by anyone.
    """
    times = Counter(names)
    return tuple(name if times[name] == 1 else f"{name} #{column}" for column, name in enumerate(names))
