"""The trainer process: holds the data and the replay memory, learns what the daemon tells it to.

Started as ``python -m meshnode.trainer.worker PARENT_PID``. It ends with the daemon, however that ends: the kernel
kills it when its parent dies, and a closed pipe ends it in any case.
"""

import ctypes
import os
import queue
import signal
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import BinaryIO

PR_SET_PDEATHSIG = 1


def _die_with(parent_pid: int) -> None:
    """Before anything slow: from here on, no moment in which the parent could die unnoticed."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise SystemExit(1)
    # Ctrl+C reaches the whole terminal's group; it is the daemon that decides what ends when.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    _die_with(int(sys.argv[1]))

import numpy as np  # noqa: E402 - see above

from experts.continual.replay_kinds import ReplayConfig  # noqa: E402
from experts.data.dataset import ImageDataset  # noqa: E402
from experts.distillation import DistillationConfig  # noqa: E402
from experts.errors import ExpertsError  # noqa: E402
from experts.router.fingerprint import statistics_fingerprint  # noqa: E402
from experts.teachers.cnn import TeacherConfig  # noqa: E402
from experts.trunk.base import features_of  # noqa: E402
from experts.trunk.codec import trunk_from_bytes  # noqa: E402
from meshnode.logs import configure_logs, get_logger  # noqa: E402
from meshnode.trainer.assessing import Assessor  # noqa: E402
from meshnode.trainer.beginning import Beginner  # noqa: E402
from meshnode.trainer.forgetting import Redistiller, forget  # noqa: E402
from meshnode.trainer.held_back import HeldBack  # noqa: E402
from meshnode.trainer.interrupted import InterruptedRuns  # noqa: E402
from meshnode.trainer.learning import Learner, LearnerConfig  # noqa: E402
from meshnode.trainer.measuring import GateMeter  # noqa: E402
from meshnode.trainer.memory import ReplayMemory  # noqa: E402
from meshnode.trainer.messages import (  # noqa: E402
    AddDelta,
    Assess,
    Begin,
    Compare,
    Forget,
    FromTrainer,
    Learn,
    LearningFailed,
    Measure,
    Migrate,
    MigrationFailed,
    ReadStreams,
    Redistil,
    Scan,
    Seek,
    Setup,
    TaskFile,
    Tasks,
    ToTrainer,
    TrainerReady,
    pack,
    read_message,
)
from meshnode.trainer.migrating import Migrator  # noqa: E402
from meshnode.trainer.publishing import Publisher  # noqa: E402
from meshnode.trainer.streams import Streams  # noqa: E402
from meshnode.trainer.task_folder import TaskFolder  # noqa: E402
from meshnode.trainer.teaching import Faculty, FacultyConfig  # noqa: E402
from protocol.identifiers import digest_of  # noqa: E402

__all__ = ["main"]

log = get_logger(__name__)

NICENESS = 5
"""Serving comes before training: on a busy machine the daemon gets about three times the trainer's share."""


class _Inbox:
    """Messages from the daemon, read by a thread: deltas are sorted by expert, the rest is a queue."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe = pipe
        self._orders: queue.SimpleQueue[ToTrainer] = queue.SimpleQueue()
        self._deltas: dict[tuple[int, str], list[np.ndarray]] = defaultdict(list)
        self._lock = threading.Lock()
        threading.Thread(target=self._read, name="inbox", daemon=True).start()

    def next_order(self) -> ToTrainer:
        return self._orders.get()

    def deltas(self, run: int, uid: str) -> list[np.ndarray]:
        with self._lock:
            return self._deltas.pop((run, uid), [])

    def forget_deltas(self) -> None:
        with self._lock:
            self._deltas.clear()

    def _read(self) -> None:
        while (message := read_message(self._pipe)) is not None:
            if isinstance(message, AddDelta):
                with self._lock:
                    self._deltas[message.run, message.uid].append(np.frombuffer(message.delta, np.float32).copy())
            else:
                self._orders.put(message)
        os._exit(0)  # the daemon has closed the pipe: nothing here is worth finishing


class _Worker:
    def __init__(self, setup: Setup, inbox: _Inbox, output: BinaryIO) -> None:
        self._inbox = inbox
        self._output = output
        self._has_data = setup.data_dir is not None
        state = Path(setup.state_dir)
        self._tasks = TaskFolder(Path(setup.data_dir) if setup.data_dir else None, state / "found")
        settings = setup.settings
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        trunk = trunk_from_bytes(setup.trunk).to(setup.device)
        replay = ReplayConfig(
            kind=settings.replay, capacity=settings.replay_samples, max_bytes=settings.replay_mib * 2**20
        )
        memory = ReplayMemory(
            state / "replay.msgpack", replay, lambda images: features_of(trunk, images).cpu(), seed=settings.seed
        )
        self._memory = memory
        self._faculty = Faculty(
            state,
            FacultyConfig(
                own=TeacherConfig(epochs=settings.teacher_epochs) if settings.own_teacher else None,
                named=settings.teachers,
                channels=trunk.input_channels,
                pixels=trunk.input_pixels,
                device=trunk.mean_D.device,
                cache_bytes=settings.logit_cache_mib * 2**20,
                seed=settings.seed,
            ),
        )
        config = LearnerConfig(
            distillation=DistillationConfig(
                steps=settings.steps,
                batch_size=settings.batch_size,
                lr=settings.learning_rate,
                alpha=settings.alpha,
                temperature=settings.temperature,
                gamma=settings.gamma,
                mixed_precision=trunk.mean_D.device.type == "cuda",
            ),
            checkpoint_steps=settings.round_steps,
            checkpoint_s=settings.checkpoint_s,
            seed=settings.seed,
        )
        self._meter = GateMeter(trunk, self._same_file, seed=settings.seed)
        self._runs = InterruptedRuns(state / "runs")
        fingerprint = statistics_fingerprint(digest_of(setup.trunk), b"")
        self._publisher = Publisher(state / "published.msgpack", setup.privacy, fingerprint)
        self._learner = Learner(trunk, memory, self._faculty, self._runs, self._publisher, config, self._send)
        self._redistiller = Redistiller(trunk, memory, self._faculty, self._tasks.same, config, self._send)
        held = HeldBack(trunk, memory, self._same_file)
        self._assessor = Assessor(trunk, memory, held, self._publisher, config.distillation, settings.seed)
        self._streams = Streams(self._tasks, state / "streams", trunk, self._assessor)
        self._migrator = Migrator(
            trunk, memory, self._same_file, config.distillation, seed=settings.seed, send=self._send
        )
        self._beginner = Beginner(trunk, self._same_file, config.distillation, seed=settings.seed)
        told = self._publisher
        self._send(TrainerReady(replay_samples=len(memory), waiting=told.waiting, increments=told.increments))

    def work(self) -> None:
        while True:
            order = self._inbox.next_order()
            match order:
                case Scan():
                    self._send(self._scan())
                case ReadStreams():
                    self._send(self._streams.read(order))
                case Learn():
                    self._learn(order)
                case Measure():
                    self._send(self._meter.measure(order))
                case Migrate() | Compare():
                    self._migrate(order)
                case Forget():
                    self._send(forget(order, self._memory, self._faculty, self._runs, self._publisher, self._tasks))
                case Assess() | Seek() | Begin() | Redistil():
                    self._send(self._answer(order))
                case _:
                    raise AssertionError(f"unexpected {type(order).__name__}")

    def _answer(self, order: Assess | Seek | Begin | Redistil) -> FromTrainer:
        try:
            match order:
                case Assess():
                    _, task = self._tasks.open(order.task)
                    return self._assessor.assess(order, task)
                case Seek():
                    return self._beginner.seek(order)
                case Begin():
                    return self._beginner.begin(order)
                case Redistil():
                    return self._redistiller.redistil(order)
        except (ExpertsError, OSError) as exc:
            return LearningFailed(reason=str(exc))

    def _learn(self, learn: Learn) -> None:
        try:
            digest, task = self._tasks.open(learn.task)
            self._learner.learn(learn, task, digest, lambda uid: self._inbox.deltas(learn.run, uid))
        except (ExpertsError, OSError) as exc:
            self._send(LearningFailed(reason=str(exc)))
        self._inbox.forget_deltas()

    def _migrate(self, order: Migrate | Compare) -> None:
        try:
            done = self._migrator.migrate(order) if isinstance(order, Migrate) else self._migrator.compare(order)
        except (ExpertsError, OSError) as exc:
            done = MigrationFailed(reason=str(exc))
        self._send(done)

    def _same_file(self, task: TaskFile) -> ImageDataset | None:
        """Those of its images that have a label."""
        found = self._tasks.same(task)
        return None if found is None else found.labelled

    def _scan(self) -> Tasks:
        tasks, unreadable = self._tasks.scan()
        streams, troubles = self._streams.look()
        unusable = self._faculty.load() if self._has_data else {}
        return Tasks(tasks=tasks, unreadable=unreadable | troubles, unusable_teachers=unusable, streams=streams)

    def _send(self, message: FromTrainer) -> None:
        self._output.write(pack(message))
        self._output.flush()


def main() -> None:
    """Serve the daemon at the other end of stdin and stdout until it closes them."""
    os.nice(NICENESS)
    # Whatever a library prints must not land among the messages.
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    inbox = _Inbox(sys.stdin.buffer)
    setup = inbox.next_order()
    assert isinstance(setup, Setup)
    configure_logs(setup.log_level, setup.log_format)
    sys.excepthook = lambda kind, exc, trace: log.critical("the trainer failed", exc_info=(kind, exc, trace))
    try:
        worker = _Worker(setup, inbox, output)
    except ExpertsError as exc:
        log.error("the trainer cannot start", reason=str(exc), folder=setup.state_dir)
        os._exit(1)  # the thread that reads the pipe would not let the interpreter end
    worker.work()


if __name__ == "__main__":
    main()
