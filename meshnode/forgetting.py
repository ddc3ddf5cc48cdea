"""Forgetting on request: a task of this node's own, with all that was learned from it, or what a peer contributed.

An order is remembered before anything is deleted, so that what goes does not come back; then each step leaves what is
already gone alone. So a kill in between leaves a part to be done, and the same order does it. The contribution goes
last of what a task has left: it says of which classes the task was, by which experts are judged of which nobody knows
what they have learned.

What becomes of an expert that has learned from the task is decided for each by what is possible:

- One with replicas at peers is erased here, for distilling it anew would last until the next round averages theirs in.
- One that succeeded another that never learned the task gives its place back to that one, and is erased.
- One is distilled again where something is left to distil it from: a generation from before the task that is still
  kept, or else its first weights, and the files of the other tasks that it has learned.
- Any other is erased.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from experts.checkpoint import weights_to_bytes
from meshnode.contributions import Contributions
from meshnode.directory import Directory
from meshnode.errors import NodeError, NoSuchPeerOrExpert, Refused
from meshnode.forget_order import Fate, ForgetReport, ForgetRequest, Gone, Left
from meshnode.hosting import ExpertHost
from meshnode.mesh import Mesh
from meshnode.state.rows import ExpertRow, Generation
from meshnode.state.state import State
from meshnode.telemetry import Telemetry
from meshnode.trainer.messages import (
    ExpertJob,
    Forget,
    Forgotten,
    LearningFailed,
    Progress,
    Redistil,
    Redistilled,
    TaskFile,
)
from meshnode.trainer.process import TrainerDied, TrainerProcess
from meshnode.trainer.service import Trainer
from meshnode.transport.interface import Transport
from protocol.identifiers import ExpertUid, PeerId
from protocol.records import RouterContribution
from protocol.signing import SigningKey

__all__ = ["Forgetting"]

_FIRST = "initial"
_FOUND_FILE: Final = "file found in a stream"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """What is known of a task that is to be forgotten."""

    name: str
    digests: tuple[str, ...]
    """Of its file as it was last learned, and as it is."""
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Start:
    """What an expert is distilled again from."""

    generation: Generation | None
    """Of before the task; None for its first weights."""
    files: tuple[TaskFile, ...]
    """Other tasks, in the order in which they were learned."""


@dataclass(kw_only=True, slots=True)
class Forgetting:
    """Carries orders out, one at a time.

    Attributes:
        trainer: Whose worker keeps images and teachers; None where training is off.
        let_go: Waits until no averaging round of an expert is under way.
        teachers: Names of the teachers that the settings name.
    """

    mesh: Mesh
    state: State
    host: ExpertHost
    contributions: Contributions
    directory: Directory
    trainer: Trainer | None
    transport: Transport
    key: SigningKey
    let_go: Callable[[ExpertUid], Awaitable[None]]
    teachers: tuple[str, ...] = ()
    telemetry: Telemetry = field(default_factory=Telemetry)
    _one: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def carry_out(self, request: ForgetRequest) -> ForgetReport:
        """What came of it, or would.

        Raises:
            NoSuchPeerOrExpert: The peer is not known.
            Refused: The task is not known, or the peer is this node.
            NodeError: The trainer's process ended meanwhile; the same order goes on.
        """
        async with self._one:
            report = ForgetReport(request=request)
            if request.task is not None:
                await (self._undo_task(request.task) if request.undo else self._forget_task(request.task, report))
            elif request.peer is not None:
                await (self._undo_peer(request.peer) if request.undo else self._forget_peer(request.peer, report))
            return report

    # --- a task ---

    async def _forget_task(self, name: str, report: ForgetReport) -> None:
        task, dry = self._known(name), report.request.dry_run
        if not dry:
            await asyncio.to_thread(self.state.ledger.forget, "task", name)
        affected = self._affected(task)
        if self.trainer is None:
            await self._forget_experts(task, affected, None, report)
            reason = "training is off here, and with it all that looks at images: give the order again with it on"
            report.not_forgotten.append(Left(kind="trainer", name=name, reason=reason))
        else:
            try:
                async with self.trainer.borrow("forgetting") as worker:
                    await self._forget_memories(task, affected, worker, report)
                    await self._forget_experts(task, affected, worker, report)
            except TrainerDied as death:
                raise NodeError(
                    f"{death}; what is forgotten by now stays so", hint="Give the same order again."
                ) from death
        await self._take_back(task, report)
        report.not_forgotten += self._beyond_reach(task, affected, report)
        if not dry:
            await asyncio.to_thread(self.state.ledger.drop_task, name)
            await asyncio.to_thread(self.state.collect_garbage)
            self.telemetry.events.emit("task_forgotten", task=name, experts=[row.uid for row in affected])

    def _known(self, name: str) -> _Task:
        """What is known of the task. Raises Refused if nothing is."""
        mine = self._own(name)
        rows = [row for row in self.state.ledger.tasks() if row.name == name]
        taken_back = any(
            (of.peer_id, of.task) == (self.transport.peer_id, name) for of in self.contributions.withdrawn()
        )
        files = [file for file in (self.trainer.task_files if self.trainer else ()) if file.name == name]
        has_trained = any(name in (_tasks_of(self.state, row) or ()) for row in self.state.hosted_experts())
        is_told = name in self.state.ledger.forgotten("task")
        if not (mine or rows or taken_back or files or has_trained or is_told):
            raise Refused(f"this node knows of no task {name!r}", hint="`meshnode privacy` lists its tasks.")
        # Both: the file may be gone, and classes of few images are in no contribution.
        classes = {*(mine.samples if mine else ()), *(label for file in files for label in file.classes)}
        digests = {*(row.digest for row in rows), *(file.digest for file in files)}
        return _Task(name=name, digests=tuple(sorted(digests)), classes=tuple(sorted(classes)))

    def _own(self, task: str) -> RouterContribution | None:
        held = self.contributions.held()
        return next((of for of in held if (of.peer_id, of.task) == (self.transport.peer_id, task)), None)

    def _affected(self, task: _Task) -> list[ExpertRow]:
        """Experts that have learned from it, or may have; successors before those that they succeed."""
        found = [row for row in self.state.hosted_experts() if _may_know(self.state, row, task)]
        return sorted(found, key=lambda row: (-len(row.ancestors), row.uid))

    async def _forget_memories(
        self, task: _Task, affected: Iterable[ExpertRow], worker: TrainerProcess, report: ForgetReport
    ) -> None:
        dry, name = report.request.dry_run, task.name
        uids = tuple(row.uid for row in affected)
        await worker.send(Forget(task=name, digests=task.digests, classes=task.classes, experts=uids, dry_run=dry))
        gone = await worker.receive()
        assert isinstance(gone, Forgotten)
        assert self.trainer is not None
        self.trainer.status.replay_samples, self.trainer.status.waiting = gone.replay_samples, gone.waiting
        unsure = f"{gone.unsure_images} of unknown origin, of its classes" if gone.unsure_images else None
        of_all = "all that were kept: they do not say of which task they are" if gone.logits else None
        found = (
            Gone(kind="replay images", name=name, count=gone.images, note=unsure),
            Gone(kind="teacher", name=name, count=int(gone.teacher)),
            Gone(kind="teachers' answers", name=name, count=gone.logits, note=of_all),
            Gone(kind="interrupted runs", name=name, count=gone.runs),
            Gone(kind=_FOUND_FILE, name=name, count=int(gone.found_file)),
        )
        report.dropped += [one for one in found if one.count]

    async def _forget_experts(
        self, task: _Task, affected: list[ExpertRow], worker: TrainerProcess | None, report: ForgetReport
    ) -> None:
        uids = {row.uid for row in affected}
        for row in affected:
            known = _tasks_of(self.state, row)
            why = "it has learned the task" if known is not None else "it is not known which tasks it has learned"
            if report.request.keep_experts:
                reason = f"{why}; experts were to be kept"
                report.not_forgotten.append(Left(kind="expert", name=row.uid, reason=reason))
                continue
            elsewhere = self._elsewhere(row.uid)
            if elsewhere:
                reason = f"replicas at {', '.join(elsewhere)} have, or had, a part of it"
                report.not_forgotten.append(Left(kind="replicas", name=row.uid, reason=reason))
                await self._erase(row, f"{why}, and peers have replicas that would bring it back", report)
            elif await self._roll_back(row, uids, report):
                await self._erase(row, f"{why}; what it succeeded has not, and serves again", report)
            else:
                failed = await self._redistil(row, task, why, worker, report)
                if failed is not None:
                    await self._erase(row, f"{why}, and {failed}", report)

    async def _erase(self, row: ExpertRow, reason: str, report: ForgetReport) -> None:
        report.retired.append(Fate(uid=row.uid, classes=row.classes, reason=reason))
        if not report.request.dry_run:
            await self.let_go(row.uid)
            await self.host.erase(row.uid)

    async def _roll_back(self, row: ExpertRow, affected: set[ExpertUid], report: ForgetReport) -> bool:
        """Whether an expert that the row succeeded, and that never learned the task, is current again instead."""
        expert = self.host.experts.get(row.uid)
        kept = [self.host.retired[uid] for uid in reversed(row.ancestors) if uid in self.host.retired]
        before = next((one for one in kept if one.standing == "retired"), None)
        if expert is None or before is None or before.uid in affected:
            return False
        if not report.request.dry_run:
            await self.let_go(row.uid)
            await self.host.roll_back(row.uid)
        return True

    async def _redistil(
        self, row: ExpertRow, task: _Task, why: str, worker: TrainerProcess | None, report: ForgetReport
    ) -> str | None:
        """Distil an expert without the task. Returns why that cannot be, if it cannot; then it is as it was."""
        expert = self.host.experts.get(row.uid)
        if expert is None:
            return "it is not current here"
        start = self._start(row, task)
        if start is None or (start.files and worker is None):
            return "there is nothing left here to distil it from without that"
        learned = () if start.generation is None else (start.generation.tasks or ())
        source = "its first weights" if start.generation is None else f"its generation {start.generation.number}"
        if report.request.dry_run:
            names = tuple(sorted({*learned, *(file.name for file in start.files)}))
            fate = Fate(uid=row.uid, classes=row.classes, reason=f"{why}; from {source}", tasks=names)
            report.redistilled.append(fate)
            return None
        if start.generation is None:
            weights = await asyncio.to_thread(lambda: weights_to_bytes(expert.architecture.build(row.uid)))
        else:
            weights = await asyncio.to_thread(self.state.blobs.get, start.generation.digest)
        if start.files:
            assert worker is not None
            job = ExpertJob(
                uid=row.uid,
                classes=row.classes,
                architecture=dict(expert.architecture.to_config()),
                weights=weights,
                updating=bool(learned),
                run=None,
                steps=0,
            )
            await worker.send(Redistil(expert=job, learned=learned, tasks=start.files))
            while isinstance(answer := await worker.receive(), Progress):
                pass
            if isinstance(answer, LearningFailed):
                return answer.reason
            assert isinstance(answer, Redistilled)
            weights, learned = answer.weights, answer.tasks
        await self.let_go(row.uid)
        round_ = 0 if start.generation is None else start.generation.round
        await self.host.start_over(row.uid, weights, tasks=learned, round=round_)
        fate = Fate(uid=row.uid, classes=row.classes, reason=f"{why}; from {source}", tasks=learned)
        report.redistilled.append(fate)
        return None

    def _start(self, row: ExpertRow, task: _Task) -> _Start | None:
        """What the expert can be distilled again from; None if there is nothing."""
        generations = self.state.ledger.generations(row.uid)
        before = [one for one in generations if one.tasks is not None and task.name not in one.tasks]
        whole = next((one for one in before if self.state.blobs.is_whole(one.digest)), None)
        has = set(whole.tasks or ()) if whole else set()
        files = self._files(row, task, without=has)
        if whole is not None and (whole.cause != _FIRST or files):
            return _Start(generation=whole, files=files)
        # Other first weights than those that its uid determines are not here any more.
        is_first_known = row.origin is None and not row.ancestors
        return _Start(generation=None, files=files) if files and is_first_known else None

    def _files(self, row: ExpertRow, task: _Task, *, without: set[str]) -> tuple[TaskFile, ...]:
        """Other tasks that the expert has learned, or may have, whose files are left, in the order of learning."""
        known, forgotten = _tasks_of(self.state, row), self.state.ledger.forgotten("task")
        order = {one.name: one.learned_at or 0.0 for one in self.state.ledger.tasks()}
        files = self.trainer.learned_files if self.trainer else ()
        found = [
            file
            for file in files
            if file.name not in {task.name, *without, *forgotten}
            and file.classes.keys() & set(row.classes)
            and (known is None or file.name in known)
        ]
        return tuple(sorted(found, key=lambda file: (order.get(file.name, 0.0), file.name)))

    def _elsewhere(self, uid: ExpertUid) -> list[str]:
        """Names of the peers that advertise a replica."""
        listing = self.directory.experts().get(uid)
        replicas = listing.replicas if listing else ()
        return sorted(one.peer_name for one in replicas if one.peer_id != self.transport.peer_id)

    async def _take_back(self, task: _Task, report: ForgetReport) -> None:
        mine = self._own(task.name)
        if not report.request.dry_run:
            await self.contributions.withdraw(self.key, task.name, issued_at=self.transport.now_s())
            await self.contributions.solve()
        if mine is not None:
            report.dropped.append(Gone(kind="contribution", name=task.name, count=sum(mine.samples.values())))

    def _beyond_reach(self, task: _Task, affected: list[ExpertRow], report: ForgetReport) -> list[Left]:
        spec = self.mesh.spec
        left = [
            Left(
                kind="copies",
                name=task.name,
                reason="peers drop its statistics once they hear of the withdrawal; those of versions that know of no "
                "withdrawals, and whoever has copied them, keep them",
            )
        ]
        if affected:
            reason = "whoever has pulled weights of these experts, or averaged with them, has what was learned by then"
            left.append(Left(kind="weights", name=task.name, reason=reason))
        reason = f"its m and s, and what it was made from, are part of the mesh for ever: {spec.calibration}"
        left.append(Left(kind="trunk", name=spec.trunk, reason=reason))
        if self.teachers:
            reason = "they were made elsewhere; what they know is not this node's to forget"
            left.append(Left(kind="teachers", name=", ".join(self.teachers), reason=reason))
        files = self.trainer.task_files if self.trainer else ()
        its_own = any(gone.kind == _FOUND_FILE for gone in report.dropped)
        if any(file.name == task.name for file in files) and not its_own:
            reason = "it stays where it is and is not learned while the task is forgotten"
            left.append(Left(kind="file", name=task.name, reason=reason))
        return left

    async def _undo_task(self, name: str) -> None:
        if name not in self.state.ledger.forgotten("task"):
            raise Refused(f"the task {name!r} is not forgotten here")
        await asyncio.to_thread(self.state.ledger.unforget, "task", name)
        if self.trainer is not None:
            self.trainer.look_again()

    # --- a peer ---

    async def _forget_peer(self, wanted: str, report: ForgetReport) -> None:
        held = self.contributions.held()
        names = {record.peer_id: record.peer_name for record in self.directory.records()}
        peer_id = _single(wanted, names, {*names, *(of.peer_id for of in held), *self._refused()})
        if peer_id == self.transport.peer_id:
            raise Refused("that is this node itself", hint="`meshnode forget --task` takes one of its tasks back.")
        theirs = [of for of in held if of.peer_id == peer_id]
        if not report.request.dry_run:
            await self.contributions.refuse(peer_id)
            await self.contributions.solve()
            await asyncio.to_thread(self.state.collect_garbage)
            self.telemetry.events.emit("peer_forgotten", peer=peer_id, contributions=len(theirs))
        report.dropped += [Gone(kind="contribution", name=of.task, count=sum(of.samples.values())) for of in theirs]
        reason = "other nodes go on with what it contributed: this is a decision of this node alone"
        report.not_forgotten.append(Left(kind="copies", name=peer_id, reason=reason))
        for expert in self.host.experts.values():
            if expert.round:
                reason = "it was averaged with peers, that one perhaps among them"
                report.not_forgotten.append(Left(kind="expert", name=expert.uid, reason=reason))

    async def _undo_peer(self, wanted: str) -> None:
        names = {record.peer_id: record.peer_name for record in self.directory.records()}
        await self.contributions.readmit(_single(wanted, names, set(self._refused())))
        self.directory.refreshed.set()  # to be pulled from again, without waiting for another look at the records

    def _refused(self) -> tuple[PeerId, ...]:
        return tuple(PeerId(name) for name in self.state.ledger.forgotten("peer"))


def _single(wanted: str, names: dict[PeerId, str], among: set[PeerId]) -> PeerId:
    """The one peer of this name, or whose id begins so. Raises NoSuchPeerOrExpert if none or several are."""
    found = [peer_id for peer_id in among if wanted in (peer_id, names.get(peer_id))]
    found = found or [peer_id for peer_id in among if peer_id.startswith(wanted)]
    if len(found) != 1:
        raise NoSuchPeerOrExpert(wanted)
    return found[0]


def _tasks_of(state: State, row: ExpertRow) -> tuple[str, ...] | None:
    """Tasks that the newest generation has learned, and with it all before it; None where unknown."""
    newest = state.ledger.generations(row.uid)[:1]
    return newest[0].tasks if newest else ()


def _may_know(state: State, row: ExpertRow, task: _Task) -> bool:
    known = _tasks_of(state, row)
    return bool(set(row.classes) & set(task.classes)) if known is None else task.name in known
