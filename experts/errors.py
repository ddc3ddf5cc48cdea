"""Every named error of `experts`; each carries what went wrong as attributes, not only as text."""

from collections.abc import Iterable, Sequence

__all__ = [
    "CorruptState",
    "CorruptWeights",
    "ExpertsError",
    "MalformedDataset",
    "NotPositiveDefinite",
    "NothingToLearnFrom",
    "PackageMissing",
    "RowsUnanswered",
    "SettingOutOfRange",
    "ShapeMismatch",
    "UnknownArchitecture",
    "UnknownClasses",
    "UnknownDataset",
    "UnknownTrunk",
    "UnsafeStatistics",
]

Dims = tuple[int | str | None, ...]
"""A shape to print: numbers, names of dimensions ("B") or None for any length."""


class ExpertsError(Exception):
    """Base of every error that a caller of `experts` may have to handle."""


class ShapeMismatch(ExpertsError):
    """A tensor does not have the shape its place asks for."""

    def __init__(self, name: str, *, expected: Sequence[int | str | None], got: Sequence[int | str | None]) -> None:
        super().__init__(f"{name}: expected shape {_dims(expected)}, got {_dims(got)}")
        self.name = name
        self.expected: Dims = tuple(expected)
        self.got: Dims = tuple(got)


class SettingOutOfRange(ExpertsError):
    """A setting of a config is outside the range its docstring states."""

    def __init__(self, name: str, value: object, *, allowed: str) -> None:
        super().__init__(f"{name} = {value!r} is not allowed: {allowed}")
        self.name = name
        self.value = value
        self.allowed = allowed


class UnknownArchitecture(ExpertsError):
    """An expert's architecture has a kind or a form this version does not know."""

    def __init__(self, kind: object, *, reason: str) -> None:
        super().__init__(f"cannot build an expert of kind {kind!r}: {reason}")
        self.kind = kind
        self.reason = reason


class UnknownTrunk(ExpertsError):
    """A trunk has a kind or a form this version does not know."""

    def __init__(self, kind: object, *, reason: str) -> None:
        super().__init__(f"cannot build a trunk of kind {kind!r}: {reason}")
        self.kind = kind
        self.reason = reason


class PackageMissing(ExpertsError):
    """Something needs an optional package that is not installed here."""

    def __init__(self, subject: str, *, package: str) -> None:
        super().__init__(f"{subject} needs the package {package!r}, which is not installed")
        self.subject = subject
        self.package = package


class UnknownDataset(ExpertsError):
    """No data set goes by this name."""

    def __init__(self, name: str, *, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(f"unknown data set {name!r}; known: {', '.join(self.known)}")


class MalformedDataset(ExpertsError):
    """Images, labels or a file of them are not what they claim to be."""

    def __init__(self, source: str, *, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason


class UnknownClasses(ExpertsError):
    """Labels name classes that the module asked does not answer for."""

    def __init__(self, classes: Iterable[str], *, known: Iterable[str]) -> None:
        self.classes = tuple(sorted(classes))
        self.known = tuple(sorted(known))
        super().__init__(f"classes {', '.join(self.classes)} are not among {', '.join(self.known)}")


class CorruptWeights(ExpertsError):
    """Serialised weights cannot be loaded as the module they are meant for."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"corrupt weights: {reason}")
        self.reason = reason


class CorruptState(ExpertsError):
    """A saved state (replay buffer, run) cannot be restored."""

    def __init__(self, name: str, *, reason: str) -> None:
        super().__init__(f"corrupt {name}: {reason}")
        self.name = name
        self.reason = reason


class UnsafeStatistics(ExpertsError):
    """Router statistics that must not be summed: malformed, not finite, or of another dimension."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"unsafe router statistics: {reason}")
        self.reason = reason


class NotPositiveDefinite(ExpertsError):
    """A ridge system has no Cholesky factor: the regulariser is too small for these statistics."""

    def __init__(self, *, size: int, ridge: float) -> None:
        super().__init__(f"the {size} x {size} system is not positive definite at ridge {ridge:g}")
        self.size = size
        self.ridge = ridge


class NothingToLearnFrom(ExpertsError):
    """A batch has neither labels nor teacher logits, or a teacher has no examples at all."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} has nothing to learn from")
        self.name = name


class RowsUnanswered(ExpertsError):
    """Rows of a batch for which no gated expert gave an answer."""

    def __init__(self, rows: Iterable[int], *, experts: Iterable[str]) -> None:
        self.rows = tuple(rows)
        self.experts = tuple(sorted(experts))
        super().__init__(f"rows {', '.join(map(str, self.rows))} unanswered: silent experts {', '.join(self.experts)}")


def _dims(dims: Sequence[int | str | None]) -> str:
    return "(" + ", ".join("any" if dim is None else str(dim) for dim in dims) + ")"
