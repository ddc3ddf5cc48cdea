"""Every named error of `experts`; each carries what went wrong as attributes, not only as text."""

from collections.abc import Iterable, Sequence

__all__ = [
    "CorruptState",
    "CorruptWeights",
    "DatasetAbsent",
    "ExpertsError",
    "FingerprintMismatch",
    "MalformedCapability",
    "MalformedDataset",
    "MalformedPayload",
    "MalformedScenario",
    "MalformedTeacher",
    "NotPositiveDefinite",
    "NothingCorresponds",
    "NothingToLearnFrom",
    "PackageMissing",
    "PickleRefused",
    "PrivacyBudgetSpent",
    "RowsUnanswered",
    "SectionNotPortable",
    "SettingOutOfRange",
    "ShapeMismatch",
    "TooLargeForMemory",
    "TrainingDiverged",
    "UndefinedFigure",
    "UnknownArchitecture",
    "UnknownClasses",
    "UnknownCodec",
    "UnknownCut",
    "UnknownDataset",
    "UnknownScenario",
    "UnknownTeacher",
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

    def __init__(
        self, subject: str, *, package: str, extra: str | None = None, reason: str = "is not installed"
    ) -> None:
        remedy = "" if extra is None else f"; try: pip install 'modulemesh[{extra}]'"
        super().__init__(f"{subject} needs the package {package!r}, which {reason}{remedy}")
        self.subject = subject
        self.package = package
        self.extra = extra
        self.reason = reason


class UnknownDataset(ExpertsError):
    """No data set goes by this name."""

    def __init__(self, name: str, *, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(f"unknown data set {name!r}; known: {', '.join(self.known)}")


class UnknownScenario(ExpertsError):
    """No scenario of the evaluation goes by this name."""

    def __init__(self, name: str, *, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(f"unknown scenario {name!r}; known: {', '.join(self.known)}")


class UndefinedFigure(ExpertsError):
    """A figure has no value here, and 0 would be taken for one."""

    def __init__(self, figure: str, *, reason: str) -> None:
        super().__init__(f"{figure} is not defined: {reason}")
        self.figure = figure
        self.reason = reason


class MalformedDataset(ExpertsError):
    """Images, labels or a file of them are not what they claim to be."""

    def __init__(self, source: str, *, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason


class DatasetAbsent(ExpertsError):
    """Files of a public data set are not where they were looked for."""

    def __init__(self, name: str, missing: str, *, layout: str, home: str) -> None:
        super().__init__(f"data set {name!r}: there is no {missing}; expected are {layout}, to be had at {home}")
        self.name = name
        self.missing = missing
        self.layout = layout
        self.home = home


class TooLargeForMemory(ExpertsError):
    """Images would take more memory than they were given, and nothing has been read yet."""

    def __init__(self, source: str, *, images: int, needed_bytes: int, allowed_bytes: int) -> None:
        super().__init__(
            f"{source}: {images} images would take {needed_bytes} bytes of memory, {allowed_bytes} are allowed; "
            "give a cache folder to keep them on disk, or fewer pixels, or a limit of images per class"
        )
        self.source = source
        self.images = images
        self.needed_bytes = needed_bytes
        self.allowed_bytes = allowed_bytes


class MalformedScenario(ExpertsError):
    """A scenario file does not say what a scenario needs, or says what none has."""

    def __init__(self, source: str, *, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason


class UnknownTeacher(ExpertsError):
    """No teacher goes by this name here."""

    def __init__(self, name: str, *, reason: str) -> None:
        super().__init__(f"no teacher {name!r}: {reason}")
        self.name = name
        self.reason = reason


class MalformedTeacher(ExpertsError):
    """A teacher's file, its classes or its form are not what they have to be."""

    def __init__(self, source: str, *, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason


class PickleRefused(ExpertsError):
    """A file is a pickle, which can run code when it is read."""

    def __init__(self, source: str, *, remedy: str | None = None) -> None:
        for_weights = (
            "convert it where you trust it: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'weights.safetensors')"
        )
        super().__init__(f"{source} is a pickle, which can run code when it is read; {remedy or for_weights}")
        self.source = source


class MalformedCapability(ExpertsError):
    """What should map a teacher's classes to the mesh's is not such a mapping."""

    def __init__(self, source: str, *, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason


class UnknownCut(ExpertsError):
    """A network has no such cut point."""

    def __init__(self, cut: str, *, reason: str) -> None:
        super().__init__(f"cannot cut at {cut!r}: {reason}")
        self.cut = cut
        self.reason = reason


class SectionNotPortable(ExpertsError):
    """A section of a teacher serves on this machine, but its code cannot be told to a peer."""

    def __init__(self, cut: str, *, reason: str) -> None:
        super().__init__(f"the section up to {cut!r} cannot leave this machine: {reason}")
        self.cut = cut
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


class UnknownCodec(ExpertsError):
    """No codec of vectors goes by this name."""

    def __init__(self, name: str, *, known: Iterable[str]) -> None:
        self.name = name
        self.known = tuple(sorted(known))
        super().__init__(f"unknown codec {name!r}; known: {', '.join(self.known)}")


class MalformedPayload(ExpertsError):
    """What should decode to a vector is no payload of its codec, or not one of a finite vector of this length."""

    def __init__(self, codec: str, *, reason: str) -> None:
        super().__init__(f"malformed payload of codec {codec!r}: {reason}")
        self.codec = codec
        self.reason = reason


class UnsafeStatistics(ExpertsError):
    """Router statistics that must not be summed: malformed, not finite, or of another dimension."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"unsafe router statistics: {reason}")
        self.reason = reason


class FingerprintMismatch(UnsafeStatistics):
    """Router statistics of different features, which have no sum."""

    def __init__(self, *, expected: str | None, got: str | None) -> None:
        super().__init__(f"statistics of fingerprint {got} among those of {expected}")
        self.expected = expected
        self.got = got


class NotPositiveDefinite(ExpertsError):
    """A ridge system has no Cholesky factor: the regulariser is too small for these statistics."""

    def __init__(self, *, size: int, ridge: float) -> None:
        super().__init__(f"the {size} x {size} system is not positive definite at ridge {ridge:g}")
        self.size = size
        self.ridge = ridge


class PrivacyBudgetSpent(ExpertsError):
    """No further statistics can be shared within the privacy that was promised."""

    def __init__(self, *, increments: int, epsilon: float, delta: float) -> None:
        super().__init__(f"all {increments} increments within ({epsilon:g}, {delta:g}) have been published")
        self.increments = increments
        self.epsilon = epsilon
        self.delta = delta


class NothingCorresponds(ExpertsError):
    """Two networks have no units in common that knowledge could be carried over between."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"nothing can be carried over: {reason}")
        self.reason = reason


class NothingToLearnFrom(ExpertsError):
    """A batch has neither labels nor teacher logits, or a teacher has no examples at all."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} has nothing to learn from")
        self.name = name


class TrainingDiverged(ExpertsError):
    """A loss was not finite; the module still holds the parameters from before that step."""

    def __init__(self, step: int) -> None:
        super().__init__(f"the loss of step {step} is not finite")
        self.step = step


class RowsUnanswered(ExpertsError):
    """Rows of a batch for which no gated expert gave an answer."""

    def __init__(self, rows: Iterable[int], *, experts: Iterable[str]) -> None:
        self.rows = tuple(rows)
        self.experts = tuple(sorted(experts))
        super().__init__(f"rows {', '.join(map(str, self.rows))} unanswered: silent experts {', '.join(self.experts)}")


def _dims(dims: Sequence[int | str | None]) -> str:
    return "(" + ", ".join("any" if dim is None else str(dim) for dim in dims) + ")"
