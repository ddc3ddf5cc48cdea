"""Streams without task boundaries: batches judged one by one, and the tasks that are found in them.

A batch with labels is new if one of them is unseen, a batch without by its distance; a run of new ones begins a task
(`experts.continual.stream`). A task begins with some label at least, for without one its classes have no names. Batches
of what is known are gathered until there are enough images to learn from; those without a label have nothing to teach.
What is found becomes a task file, and is learned before the stream is read on: later batches are judged by it.

Where reading is, what waits and what was found is one file a stream, written before the task's: after a kill it is gone
on with from there, and nothing is read twice or lost.

Legend: B images of a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from experts.continual.batches import Batch, batches_from_tensors, batches_to_tensors, joined
from experts.continual.novelty import Verdict
from experts.continual.packing import words_from, words_to
from experts.continual.stream import BoundaryFinder, StreamConfig
from experts.data.partly import PartlyLabelled
from experts.errors import CorruptState, MalformedDataset
from experts.sealed import seal, unseal
from experts.trunk.base import Trunk, features_of
from meshnode.home import write_atomically
from meshnode.trainer.assessing import Assessor, Judge
from meshnode.trainer.stream_folder import Position, StreamFolder
from meshnode.trainer.stream_messages import ReadStreams, StreamsRead, StreamState
from meshnode.trainer.task_folder import STREAM_SUFFIX, TaskFolder, unfit_name
from protocol.limits import MAX_NAME_CHARS

__all__ = ["BATCH_SIZE", "Streams"]

BATCH_SIZE = 64
"""Images judged together, as of tasks."""

BATCHES_A_TURN = 32
"""Read of a stream before others, task files and borrowers of the worker have their turn: some seconds of features."""

WAITING_BYTES = 2**24
"""Of batches that wait in a stream, and of those that are gathered: 16 MiB, 21 batches of 64 px in colour."""

INCREMENT_IMAGES = 512
"""Of known classes, learned together: as in `experts.continual.settings`."""

_NUMBER_CHARS = 5
"""A dash and four digits behind the stream's name."""


@dataclass(kw_only=True, eq=False, slots=True)
class _Stream:
    """How far one stream is: all that is on the disk."""

    name: str
    finder: BoundaryFinder
    position: Position = field(default_factory=Position)
    shape: tuple[int, ...] | None = None
    """Of its images; None before any."""
    batches: int = 0
    tasks: int = 0
    named: bool = False
    """Whether a batch of the run that may begin a task has a label."""
    nameless: int = 0
    """Batches given up that would have begun a task, had one had a label."""
    gathered: list[Batch] = field(default_factory=list)
    found: list[Batch] = field(default_factory=list)
    """A task whose file may not be there yet; empty for none."""
    found_name: str = ""


class Streams:
    """Reads the streams of the data folder.

    Args:
        tasks: Where streams are, and where found tasks go.
        folder: For how far they are.
        trunk: The mesh's.
        assessor: Judges.
        config: When a task begins, and how much may wait.
    """

    def __init__(
        self,
        tasks: TaskFolder,
        folder: Path,
        trunk: Trunk,
        assessor: Assessor,
        config: StreamConfig = StreamConfig(max_waiting_bytes=WAITING_BYTES),  # noqa: B008 - frozen
    ) -> None:
        self._tasks = tasks
        self._folder = folder
        self._trunk = trunk
        self._assessor = assessor
        self._config = config
        self._readers: dict[str, StreamFolder] = {}
        self._streams: dict[str, _Stream] = {}
        self._looked_at: dict[str, ReadStreams] = {}
        """By what each stream's waiting batches were judged last."""
        self._unfit: dict[str, str] = {}
        """Why streams cannot be read on before the next start: the trunk does not take their images."""

    def look(self) -> tuple[tuple[StreamState, ...], dict[str, str]]:
        """How far each stream is, without reading on; and what keeps some from being read, by name."""
        states, troubles = [], {}
        for path in self._tasks.streams():
            name = path.name.removesuffix(STREAM_SUFFIX)
            unfit = unfit_name(name, longest=MAX_NAME_CHARS - _NUMBER_CHARS)
            if unfit is not None:
                troubles[path.name.encode("ascii", "backslashreplace").decode()] = unfit
                continue
            try:
                stream = self._opened(name, path)
            except CorruptState as exc:
                troubles[path.name] = f"{exc}; without {self._file(name)} it would be read from its beginning"
                continue
            ready = bool(stream.found)
            try:
                ready = ready or (name not in self._unfit and self._next(stream) is not None)
            except MalformedDataset as exc:
                troubles[exc.source] = exc.reason
            if name in self._unfit:
                troubles[path.name] = self._unfit[name]
            states.append(_state(stream, ready))
        return tuple(states), troubles

    def read(self, order: ReadStreams) -> StreamsRead:
        """Read on in each a while, those first that were read least; no further once a task is found.

        Raises:
            OSError: The disk is full or fails.
        """
        made: list[Judge] = []

        def judge() -> Judge:
            if not made:
                made.append(self._assessor.judge(order.statistics, order.known, order.learned))
            return made[0]

        found = None
        for state in sorted(self.look()[0], key=lambda state: state.batches):
            stream = self._streams[state.name]
            if not stream.found:
                self._read_on(stream, order, judge)
                self._save(stream)
            if stream.found:
                found = stream.found_name
                self._put_out(stream)
                break  # what others would bring is to be judged with this learned
        return StreamsRead(streams=self.look()[0], found=found)

    def _read_on(self, stream: _Stream, order: ReadStreams, judge: Callable[[], Judge]) -> None:
        if self._looked_at.get(stream.name) != order:
            self._looked_at[stream.name] = order
            for batch in stream.finder.reconsider(lambda batch: self._verdict(batch, judge())):
                self._gather(stream, batch)
        for _ in range(BATCHES_A_TURN):
            if stream.found:
                return
            try:
                step = self._next(stream)
            except MalformedDataset:
                return  # `look` tells
            if step is None:
                return
            batch, position = step
            try:
                verdict = self._verdict(batch, judge())
            except MalformedDataset as exc:
                self._unfit[stream.name] = f"{position.file}: {exc.reason}"
                return
            stream.position, stream.shape = position, batch.images.shape[1:]
            stream.batches += 1
            self._take(stream, batch, verdict)

    def _take(self, stream: _Stream, batch: Batch, verdict: Verdict) -> None:
        if verdict == "known":
            stream.named = False
        elif verdict == "new":
            stream.named = stream.named or bool(batch.classes)
        step = stream.finder.feed(batch, verdict, may_begin=stream.named)
        if step.kind == "continues":
            self._gather(stream, batch)
        elif step.kind == "begins":
            stream.named = False
            if any(begun.classes for begun in step.batches):
                self._find(stream, list(step.batches))
            else:  # more of them than may wait
                stream.nameless += len(step.batches)

    def _gather(self, stream: _Stream, batch: Batch) -> None:
        """Take a known batch in; without a label it has nothing to teach."""
        if batch.classes:
            stream.gathered.append(batch)
        enough = sum(map(len, stream.gathered)) >= INCREMENT_IMAGES
        is_full = sum(one.num_bytes for one in stream.gathered) > self._config.max_waiting_bytes
        if not stream.found and (enough or is_full):
            self._find(stream, stream.gathered)
            stream.gathered = []

    def _find(self, stream: _Stream, batches: list[Batch]) -> None:
        number = stream.tasks + 1
        while self._tasks.has(name := f"{stream.name}-{number:04}"):
            number += 1
        stream.tasks, stream.found, stream.found_name = number, batches, name

    def _put_out(self, stream: _Stream) -> None:
        """Make the file of what was found; the stream knows of it already."""
        whole = joined(stream.found)
        self._tasks.add_found(stream.found_name, PartlyLabelled(whole.images, whole.labels))
        stream.found, stream.found_name = [], ""
        self._save(stream)

    def _verdict(self, batch: Batch, judge: Judge) -> Verdict:
        """By labels where there are any: what is new in known classes does not make a class."""
        if batch.classes:
            return "known" if judge.labels.issuperset(batch.classes) else "new"
        return judge.detector.assess(features_of(self._trunk, batch.images).cpu()).verdict

    def _next(self, stream: _Stream) -> tuple[Batch, Position] | None:
        return self._readers[stream.name].next_batch(stream.position, BATCH_SIZE, stream.shape)

    # On the disk

    def _opened(self, name: str, path: Path) -> _Stream:
        if name not in self._streams:
            self._streams[name] = self._load(name)
            self._readers[name] = StreamFolder(path)
        return self._streams[name]

    def _load(self, name: str) -> _Stream:
        try:
            data = self._file(name).read_bytes()
        except FileNotFoundError:
            return _Stream(name=name, finder=BoundaryFinder(self._config))
        tensors, _ = unseal(data, f"stream {name}")
        try:
            words = words_from(tensors["words"])
            assert isinstance(words, dict)
            file, row = words.pop("position")
            shape = words.pop("shape")
            return _Stream(
                name=name,
                finder=BoundaryFinder.from_tensors(tensors, self._config),
                position=Position(file, row),
                shape=None if shape is None else tuple(shape),
                gathered=batches_from_tensors(tensors, "gathered"),
                found=batches_from_tensors(tensors, "found"),
                **words,
            )
        except (KeyError, TypeError, ValueError, AssertionError) as exc:
            raise CorruptState(f"stream {name}", reason=str(exc)) from exc

    def _save(self, stream: _Stream) -> None:
        words = {
            "position": [stream.position.file, stream.position.row],
            "shape": stream.shape,
            "batches": stream.batches,
            "tasks": stream.tasks,
            "named": stream.named,
            "nameless": stream.nameless,
            "found_name": stream.found_name,
        }
        tensors: dict[str, torch.Tensor] = {
            **stream.finder.to_tensors(),
            **batches_to_tensors(stream.gathered, "gathered"),
            **batches_to_tensors(stream.found, "found"),
            "words": words_to(words),
        }
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self._file(stream.name), seal(tensors, {}))

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.state"


def _state(stream: _Stream, ready: bool) -> StreamState:
    return StreamState(
        name=stream.name,
        batches=stream.batches,
        tasks=stream.tasks,
        waiting=len(stream.finder.waiting),
        gathered=sum(map(len, stream.gathered)),
        dropped=stream.finder.num_dropped + stream.nameless,
        ready=ready,
    )
