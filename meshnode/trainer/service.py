"""The daemon's side of learning: which task is next, what is decided on it, and what becomes of the results.

A task file is learned once; the same name with other content is another version of it. One without labels cannot be
learned: it is assessed, and if it is not known by then it waits until more is. A worker that dies is started again and
goes on with the interrupted task from the last checkpoint; the node goes on serving meanwhile.
"""

import asyncio
import dataclasses
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal

import numpy as np

from experts.errors import ExpertsError
from experts.router.specialization import Specialization
from meshnode.errors import Refused
from meshnode.logs import get_logger, log_settings
from meshnode.settings.sections import PrivacySection, TrainSection
from meshnode.state.rows import Reached, TaskRow
from meshnode.trainer.deciding import Decided, Decider
from meshnode.trainer.history import FAILED, History
from meshnode.trainer.lending import Lending
from meshnode.trainer.messages import (
    AddDelta,
    Checkpoint,
    ExpertJob,
    Learn,
    Learned,
    LearningFailed,
    Progress,
    Scan,
    Setup,
    Statistics,
    TaskFile,
    Tasks,
    TrainerReady,
)
from meshnode.trainer.parts import TrainerParts, TrainerState, privacy_terms, worker_settings
from meshnode.trainer.process import TrainerDied, TrainerProcess
from meshnode.trainer.spawning import Spawning
from meshnode.trainer.specializing import Specializing
from meshnode.trainer.stream_messages import StreamState
from meshnode.trainer.streaming import Streaming
from protocol.errors import CallFailed, RefusedInput
from protocol.identifiers import Digest, ExpertUid

__all__ = ["LEARNED", "Trainer"]

LEARNED = "learned"
ASSESSED, WAITS = "assessed", "waits"
"""Of a task without labels: it is known, so that it has nothing to teach; or it has to be looked at again."""

RESTART_S = 1.0
"""Pause before a dead worker is started again; doubled each time, up to a minute."""

MEASURE_EVERY_S = 10.0
"""While idle: how soon a change of the router or of the experts shows in their specialization."""

TEACHERS_RETRY_S = 60.0
"""Pause before teachers that could not be loaded are tried again."""

RETRY_S = 5.0
"""Pause before a task is taken up again that needs weights which no peer would send just now."""

NO_NOISE = PrivacySection()

log = get_logger(__name__)


class Trainer:
    """Learns the task files of the data folder, one after another, in a worker process.

    Args:
        parts: What of the node it works with.
        settings: How to learn; its data folder may be None, then there is nothing to learn.
        home: Folder for the worker's own files.
        device: Where the worker computes.
        threads: torch threads of the worker.
        privacy: What of its samples may be told.
    """

    def __init__(
        self,
        parts: TrainerParts,
        settings: TrainSection,
        home: Path,
        *,
        device: str,
        threads: int,
        privacy: PrivacySection = NO_NOISE,
    ) -> None:
        self._parts = parts
        self._settings = settings
        self._home = home
        self._device = device
        self._threads = threads
        self._privacy = privacy
        self._process: TrainerProcess | None = None
        self._run = 0
        self._training: frozenset[ExpertUid] = frozenset()
        self._look_again = asyncio.Event()
        self._spawning = Spawning(parts)
        self._lending = Lending(wanted=self.look_again, lent=self._note_loan)
        self._decider = Decider(parts, settings.min_gain)
        self._history = History(parts.state.ledger)
        self._streaming = Streaming(parts, self._decider)
        self._looked_with: object = None
        """The router when files were last looked for."""
        self._waiting_on: dict[tuple[str, str], object] = {}
        """By name and digest of each task that waits, the router with which it was last looked at."""
        self._learned: tuple[TaskFile, ...] = ()
        """Learned tasks whose files are still there."""
        self._found: tuple[TaskFile, ...] = ()
        """Task files that were there when they were last looked for."""
        self._specializing = Specializing(parts)
        self.status = TrainerState()

    def look_again(self) -> None:
        """Look for new task files now."""
        self._look_again.set()

    def borrow(self, purpose: str) -> AbstractAsyncContextManager[TrainerProcess]:
        """The worker, between two tasks; see `Lending.borrow`."""
        return self._lending.borrow(purpose)

    @property
    def learned_files(self) -> tuple[TaskFile, ...]:
        """Learned tasks whose files were still there when they were last looked for."""
        return self._learned

    @property
    def task_files(self) -> tuple[TaskFile, ...]:
        """All readable task files that were there when they were last looked for, learned or not."""
        return self._found

    @property
    def specialization(self) -> Specialization | None:
        """Who works for which class, on the tasks learned here with the router and the experts of the moment; None
        until that was measured."""
        return self._specializing.found

    @property
    def history(self) -> tuple[dict[str, object], ...]:
        """One entry a content of a task that is done with, the newest last; also of before this start."""
        return self._history.entries()

    @property
    def last_decision(self) -> dict[str, object] | None:
        """The newest one, as an entry of `history`; its outcome is None while it is under way."""
        return self._history.last()

    @property
    def streams(self) -> tuple[StreamState, ...]:
        """How far each stream was when it was last looked at."""
        return self._streaming.states

    async def run(self) -> None:
        """Learn for ever; restart the worker when it dies."""
        pause_s = RESTART_S
        if self._settings.data is not None and not self._settings.data.is_dir():
            log.warning("no data folder: nothing to learn until it is made", folder=str(self._settings.data))
        while True:
            self._process = await TrainerProcess.start(threads=self._threads)
            self.status.pid = self._process.pid
            try:
                await self._serve(self._process)
            except TrainerDied as death:
                self._parts.telemetry.events.emit(
                    "trainer_restarted", level="warning", reason=str(death), pause_s=pause_s
                )
                restarts = self.status.restarts + 1
                self.status = TrainerState(state="restarting", reason=str(death), restarts=restarts)
            finally:
                self._end_run()
                process, self._process = self._process, None
                await process.aclose()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 60.0)

    async def add_delta(self, uid: ExpertUid, delta: np.ndarray) -> None:
        """Pass a committed round's delta to the expert's training run, if one is under way."""
        if self._process is not None and uid in self._training:
            data = await asyncio.to_thread(delta.tobytes)
            await self._process.send(AddDelta(run=self._run, uid=uid, delta=data))

    async def _serve(self, process: TrainerProcess) -> None:
        spec, settings = self._parts.mesh.spec, self._settings
        logs = log_settings()
        await process.send(
            Setup(
                trunk=await asyncio.to_thread(self._parts.state.blobs.get, spec.trunk),
                device=self._device,
                data_dir=str(settings.data) if settings.data else None,
                state_dir=str(self._home),
                settings=worker_settings(settings),
                log_level=logs.level,
                log_format=logs.format,
                privacy=privacy_terms(self._privacy, spec),
            )
        )
        ready = await process.receive()
        assert isinstance(ready, TrainerReady)
        self.status.replay_samples = ready.replay_samples
        self.status.waiting, self.status.increments = ready.waiting, ready.increments
        while True:
            self._look_again.clear()
            task = await self._next_task(process)
            self.status.left_s = None
            if await self._lending.lend(process):
                continue  # files may have come meanwhile, and who borrowed it may have changed the experts
            if task is not None and self.status.unusable_teachers:
                self._wait_for_teachers(task)
                await self._idle(process, at_most_s=TEACHERS_RETRY_S)
            elif task is None and await self._streaming.read_on(process, self._learned):
                continue
            elif task is None:
                self.status.state, self.status.task, self.status.stage = "idle", None, None
                await self._specializing.measure(process, self._learned)
                while not (await self._idle(process, at_most_s=MEASURE_EVERY_S) or self._can_judge_again()):
                    await self._specializing.measure(process, self._learned)
            else:
                await self._learn(process, task)

    def _can_judge_again(self) -> bool:
        """Whether something waits until more is known, and more is: peers may have contributed."""
        something_waits = self.status.unlabelled or any(stream.waiting for stream in self.streams)
        return bool(something_waits) and self._parts.contributions.view is not self._looked_with

    def _note_loan(self, purpose: str) -> None:
        self.status.state, self.status.task, self.status.stage, self.status.reason = purpose, None, None, None

    def _wait_for_teachers(self, task: TaskFile) -> None:
        """A task is learned once: what a missing teacher would have taught would never be learned."""
        unusable = self.status.unusable_teachers
        if self.status.state != "waiting":
            events = self._parts.telemetry.events
            events.emit("teachers_unusable", level="warning", task=task.name, reasons=dict(unusable))
        self.status.state, self.status.task, self.status.stage = "waiting", task.name, None
        named = "; ".join(f"{name}: {reason}" for name, reason in unusable.items())
        self.status.reason = f"a teacher that the settings name cannot be loaded: {named}"

    async def _idle(self, process: TrainerProcess, *, at_most_s: float) -> bool:
        """Wait until there may be something to learn, which is returned, or for so long.

        Raises:
            TrainerDied: The worker has ended meanwhile.
        """
        look = asyncio.create_task(self._look_again.wait(), name="look again")
        death = asyncio.create_task(process.wait_ended(), name="trainer ended")
        try:
            await asyncio.wait([look, death], timeout=at_most_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            look.cancel()
            death.cancel()
        if death.done() and not death.cancelled():
            raise death.result()
        return self._look_again.is_set()

    async def _next_task(self, process: TrainerProcess) -> TaskFile | None:
        await process.send(Scan())
        found = await process.receive()
        assert isinstance(found, Tasks)
        for name, reason in found.unreadable.items():
            if self.status.unreadable.get(name) != reason:
                log.warning("a task file cannot be read and is left out", task=name, reason=reason)
        rows = self._parts.state.ledger.tasks()
        ended = {(row.name, row.digest): row.state for row in rows}
        states = {task.name: ended.get((task.name, Digest(task.digest))) for task in found.tasks}
        self._learned = tuple(task for task in found.tasks if states[task.name] == LEARNED)
        self._found = found.tasks
        self._streaming.states = found.streams
        self.status.unreadable = found.unreadable
        self.status.unusable_teachers = found.unusable_teachers
        reasons = self._history.failures()
        self.status.failed = {
            task.name: reasons.get((task.name, task.digest), "it failed before its reason was kept")
            for task in found.tasks
            if states[task.name] == FAILED
        }
        forgotten = self._parts.state.ledger.forgotten("task")
        wanted = [task for task in found.tasks if task.name not in forgotten]
        fresh = [task for task in wanted if states[task.name] is None]
        view = self._looked_with = self._parts.contributions.view
        waiting = [task for task in fresh if (task.name, task.digest) in self._waiting_on]
        self.status.unlabelled = tuple(task.name for task in waiting)
        self.status.reason = self._why_idle(len(found.tasks), len(wanted) < len(found.tasks))
        to_look_at = (
            task for task in fresh if task not in waiting or self._waiting_on[task.name, task.digest] is not view
        )
        return next(to_look_at, None)

    def _why_idle(self, num_readable: int, some_forgotten: bool) -> str:
        folder = self._settings.data
        if folder is None:
            return "no data folder is set"
        if not folder.is_dir():
            return f"there is no folder {folder}"
        if num_readable:
            if self.status.unlabelled:
                return "what is left to learn has no labels"
            if self.status.failed or some_forgotten:
                return "no task file is left to learn" + (", others are forgotten" if some_forgotten else "")
            return "every task file has been learned"
        return f"there is no task file in {folder}" + (" that can be read" if self.status.unreadable else "")

    async def _learn(self, process: TrainerProcess, task: TaskFile) -> None:
        self._run += 1
        self.status.state, self.status.task, self.status.stage = "learning", task.name, "preparing"
        self.status.reason = None
        try:
            decided = await self._decide(process, task)
            if decided is None:
                return
            uids = await self._experts_for(task, decided)
            self._training = frozenset(uids)
            jobs = [await self._job(uid) for uid in uids]
        except (CallFailed, Refused) as failure:
            self._end_run()
            log.warning(
                "a task waits: a replica it updates could not be had",
                task=task.name,
                wait_s=RETRY_S,
                reason=str(failure),
            )
            self.status.state, self.status.stage = "waiting", None
            self.status.reason = f"a replica that the task updates could not be had: {failure}"
            await asyncio.sleep(RETRY_S)
            return
        except (RefusedInput, ExpertsError) as failure:
            self._finish(task, FAILED, {"reason": str(failure)})
            return
        await process.send(Learn(run=self._run, task=task.name, experts=tuple(jobs)))
        outcome, facts = await self._hear_out(process, task)
        if outcome == LEARNED:
            facts |= {"experts": list(uids), "action": decided.decision.action}
        self._finish(task, outcome, facts)
        self._end_run()

    async def _hear_out(self, process: TrainerProcess, task: TaskFile) -> tuple[str, dict[str, object]]:
        """Take all that the worker says while it learns a task; how that came out, with facts."""
        began = time.monotonic()
        while True:
            message = await process.receive()
            match message:
                case Progress():
                    self.status.stage, self.status.loss = message.stage, message.loss
                    self.status.done, self.status.total = message.done, message.total
                    self.status.left_s = round(message.left_s, 1)
                case Statistics():
                    await self._contribute(task.name, message)
                case Checkpoint():
                    self._count_steps(message.new_steps)
                    await self._parts.host.checkpoint(
                        ExpertUid(Digest(message.uid)),
                        np.frombuffer(message.vector, np.float32),
                        deltas_applied=message.deltas_applied,
                        reached=Reached(run=message.run, steps=message.steps),
                        tasks=message.tasks,
                    )
                case Learned():
                    self.status.replay_samples = message.replay_samples
                    facts: dict[str, object] = {"seconds": round(time.monotonic() - began, 3)}
                    if message.teacher_accuracy is not None:
                        facts["teacher_accuracy"] = round(message.teacher_accuracy, 4)
                    return LEARNED, facts
                case LearningFailed():
                    return FAILED, {"reason": message.reason}
                case _:
                    raise AssertionError(f"unexpected {type(message).__name__}")

    async def _contribute(self, task: str, made: Statistics) -> None:
        self.status.waiting, self.status.increments = made.waiting, made.increments
        if made.data is not None:
            parts = self._parts
            await parts.contributions.contribute(parts.key, task, made.data, issued_at=parts.transport.now_s())
            await parts.contributions.solve()

    def _count_steps(self, number: int) -> None:
        instruments = self._parts.telemetry.instruments
        instruments.train_steps.inc(number)
        instruments.train_samples.inc(number * self._settings.batch_size)

    async def _decide(self, process: TrainerProcess, task: TaskFile) -> Decided | None:
        """What is to be done, kept before it is; None if there is nothing to learn by it."""
        kept = self._history.decision_on(task)
        if kept is not None and not kept.awaits_labels and self._decider.still_holds(kept):
            return kept
        self.status.stage = "assessing"
        view = self._parts.contributions.view
        decided = await self._decider.decide(process, task, self._learned)
        if isinstance(decided, LearningFailed):
            self._finish(task, FAILED, {"reason": decided.reason})
            return None
        self._history.decided(task, decided)
        decision = decided.decision
        self._parts.telemetry.events.emit(
            "task_decided",
            task=task.name,
            action=decision.action,
            verdict=decision.assessment.verdict,
            reason=decision.reason,
        )
        if task.classes:
            return decided
        if decided.awaits_labels:
            self._waiting_on[task.name, task.digest] = view
            self._history.ended(task, WAITS, {})
        else:
            self._finish(task, ASSESSED, {})
        return None

    async def _experts_for(self, task: TaskFile, decided: Decided) -> list[ExpertUid]:
        """The experts that learn, each hosted here by now: known ones updated, one spawned for the rest."""
        uids = [ExpertUid(Digest(uid)) for uid in decided.trained]
        for uid in uids:
            await self._parts.replicas.pull(uid)
        if decided.decision.spawn:
            uids.append(await self._spawn(task, decided))
        return uids

    async def _spawn(self, task: TaskFile, decided: Decided) -> ExpertUid:
        """Host an expert for the classes that none answers for; how its beginning was chosen becomes evidence, too."""
        assert self._process is not None
        decision = decided.decision
        spawned = await self._spawning.spawn(self._process, task, decision.spawn)
        if spawned.start is not None:
            decision = dataclasses.replace(decision, start=spawned.start)
            self._history.decided(task, dataclasses.replace(decided, decision=decision))
        return spawned.uid

    async def _job(self, uid: ExpertUid) -> ExpertJob:
        expert = self._parts.host.get(uid)
        updating = expert.generation > 1 or bool(expert.ancestors)
        weights = await self._parts.host.begin_training(uid)
        reached = expert.reached
        return ExpertJob(
            uid=uid,
            classes=expert.classes,
            architecture=dict(expert.architecture.to_config()),
            weights=weights,
            updating=updating,
            run=None if reached is None else reached.run,
            steps=0 if reached is None else reached.steps,
        )

    def _finish(self, task: TaskFile, outcome: str, facts: dict[str, object]) -> None:
        """Remember that a task is done with. A failed one is not tried again until its file changes."""
        self._history.ended(task, outcome, facts)
        row = TaskRow(name=task.name, digest=Digest(task.digest), state=outcome, learned_at=time.time())
        self._parts.state.ledger.put_task(row)
        self._waiting_on.pop((task.name, task.digest), None)
        level: Literal["info", "warning"] = "warning" if outcome == FAILED else "info"
        self._parts.telemetry.events.emit(f"task_{outcome}", level=level, task=task.name, **facts)

    def _end_run(self) -> None:
        for uid in self._training:
            self._parts.host.end_training(uid)
        self._training = frozenset()
