"""Experts that this node's user has carried over into another form, one after another.

What the worker makes is judged on images that it has not learned from. If hardly anything is lost it takes the old
expert's place, at once and durably. If not, everything stays as it was, and so it does if the worker or this process
dies at any moment before.
"""

import asyncio
from dataclasses import asdict, dataclass, field
from typing import Literal

from experts.errors import ExpertsError, SettingOutOfRange, UnknownArchitecture
from experts.preservation.transfer import TransferConfig
from meshnode.directory import Directory
from meshnode.errors import NodeError, NoSuchPeerOrExpert, Refused, SuccessorDeclined, error_document
from meshnode.following import Following
from meshnode.forms import form_of, successor_form
from meshnode.hosted import FOLLOWED, MIGRATED, HostedExpert
from meshnode.hosting import ExpertHost
from meshnode.judging import objection_to
from meshnode.mesh import Mesh
from meshnode.migration_order import Migration, MigrationRequest
from meshnode.state.state import State
from meshnode.telemetry import Telemetry
from meshnode.trainer.messages import ExpertWeights, Migrate, Migrated, MigrationFailed, Progress
from meshnode.trainer.process import TrainerDied, TrainerProcess
from meshnode.trainer.service import Trainer
from meshnode.transport.interface import Transport
from protocol.errors import MalformedMessage, ModuleMeshError
from protocol.identifiers import ExpertUid, digest_of
from protocol.lineage import Lineage, Succession, TransferMethod, decode_lineage, encode_lineage
from protocol.spec import ExpertForm

__all__ = ["Migrations", "not_current"]


@dataclass(kw_only=True, slots=True)
class Migrations:
    """Takes orders and carries them out while `run` runs.

    Attributes:
        trainer: Whose worker carries experts over; None where training is off.
        margin: How far a new form's accuracy may be below the old one's, where an order does not say it.
    """

    mesh: Mesh
    state: State
    host: ExpertHost
    directory: Directory
    following: Following
    trainer: Trainer | None
    transport: Transport
    margin: float
    telemetry: Telemetry = field(default_factory=Telemetry)
    _orders: asyncio.Queue[Migration] = field(default_factory=asyncio.Queue)
    _newest: dict[ExpertUid, Migration] = field(default_factory=dict)

    def order(self, uid: ExpertUid, request: MigrationRequest) -> Migration:
        """Have an expert that is hosted here carried over. An order that is under way already is not begun again.

        Raises:
            NoSuchPeerOrExpert: Nobody knows it.
            MalformedMessage: It is asked for with a value out of its range.
            Refused: Training is off, it is not hosted here or has been succeeded, it is being carried over otherwise,
                or there is no such form to carry it over into.
        """
        if self.trainer is None:
            raise Refused(
                "training is switched off, and with it all that looks at images",
                hint="Leave out --no-train, or set enabled = true in [train].",
            )
        old = self._current(uid)
        form = self._form(old, request)
        migration = Migration(
            uid=uid,
            successor=self.mesh.uid_of(old.classes, form, old.line),
            form=form,
            config=_config(request),
            steps=request.steps,
            margin=self.margin if request.margin is None else request.margin,
        )
        newest = self._newest.get(uid)
        if newest is not None and not newest.is_over:
            if newest.asks_for == migration.asks_for:
                return newest
            raise Refused(
                f"the expert {uid} is being carried over into another form, or in another way",
                hint="`meshnode status` shows when the trainer no longer is at it.",
            )
        self._newest[uid] = migration
        self._orders.put_nowait(migration)
        return migration

    def newest(self, uid: ExpertUid) -> Migration | None:
        """The last order for an expert; None if there was none since the start."""
        return self._newest.get(uid)

    async def run(self) -> None:
        """Carry out orders for ever."""
        while True:
            migration = await self._orders.get()
            try:
                await self._carry_out(migration)
            except SuccessorDeclined as refusal:
                migration.accuracy = refusal.accuracy
                self._end(migration, "refused", refusal)
            except (ModuleMeshError, NodeError, ExpertsError, TrainerDied, OSError) as failure:
                self._end(migration, "failed", failure)

    def _current(self, uid: ExpertUid) -> HostedExpert:
        expert = self.host.find(uid)
        if expert is None and uid not in self.directory.experts():
            raise NoSuchPeerOrExpert(uid)
        if expert is None:
            raise Refused(f"the expert {uid} is not hosted here", hint="`meshnode experts pull` hosts a replica.")
        if expert.standing != "current":
            raise not_current(expert)
        return expert

    def _form(self, old: HostedExpert, request: MigrationRequest) -> ExpertForm:
        had = form_of(old.architecture)
        spec, trunk = self.mesh.spec, self.mesh.trunk
        try:
            form = successor_form(
                had,
                request.to.kind,
                request.to.settings,
                feature_dim=spec.feature_dim,
                feature_map=trunk.feature_map,
            )
            self.mesh.architecture(form, len(old.classes))
        except UnknownArchitecture as exc:
            raise Refused(str(exc), hint="--to names the kind, and --set NAME=VALUE a setting of it.") from exc
        if form == had:
            hint = "--set NAME=VALUE asks for another size, --to for another kind."
            raise Refused(f"the expert {old.uid} has that form already", hint=hint)
        return form

    async def _carry_out(self, migration: Migration) -> None:
        listing = self.directory.experts().get(migration.successor)
        # This node's own record may be of before a roll-back.
        if listing is None or all(replica.peer_id == self.transport.peer_id for replica in listing.replicas):
            await self._make(migration)
        else:
            # Another one of the same uid would have other weights: two parts of a mesh whose replicas have no mean.
            migration.state, migration.followed = "following", True
            migration.accuracy = await self.following.follow(
                migration.uid, migration.successor, margin=migration.margin
            )
        migration.end("done")
        assert migration.accuracy is not None
        self.telemetry.events.emit(
            "expert_succeeded",
            expert=migration.successor,
            succeeds=migration.uid,
            cause=FOLLOWED if migration.followed else MIGRATED,
            old_accuracy=migration.accuracy.old,
            new_accuracy=migration.accuracy.new,
        )

    async def _make(self, migration: Migration) -> None:
        assert self.trainer is not None
        # Kept until the new one is in place: no task may begin to train what is about to be retired.
        async with self.trainer.borrow("migrating") as worker:
            old = self._current(migration.uid)
            parent_weights = old.weights
            weights = await asyncio.to_thread(self.state.blobs.get, parent_weights)
            made = await self._made(worker, migration, old, weights)
            migration.layers, migration.accuracy = made.layers, made.accuracy
            reason = objection_to(made.accuracy, migration.margin)
            if reason is not None:
                raise SuccessorDeclined(reason, accuracy=made.accuracy)
            step = Succession(
                parent=old.uid,
                parent_form=form_of(old.architecture),
                parent_weights=parent_weights,
                uid=migration.successor,
                form=migration.form,
                classes=old.classes,
                weights=digest_of(made.weights),
                method=_method(migration),
                layers=made.layers,
                accuracy=made.accuracy,
                made_at=self.transport.now_s(),
                peer_id=self.transport.peer_id,
            )
            await self.host.succeed(
                old.uid,
                architecture=self.mesh.architecture(migration.form, len(old.classes)),
                weights=made.weights,
                lineage=encode_lineage(await self._lineage_with(old, step)),
                cause=MIGRATED,
                tasks=made.tasks,
            )

    async def _made(self, worker: TrainerProcess, migration: Migration, old: HostedExpert, weights: bytes) -> Migrated:
        """What the worker makes of the expert.

        Raises:
            NodeError: It says that it cannot.
            TrainerDied: It says nothing any more.
        """
        assert self.trainer is not None
        await worker.send(
            Migrate(
                successor=migration.successor,
                classes=old.classes,
                old=ExpertWeights(architecture=dict(old.architecture.to_config()), weights=weights),
                new=dict(self.mesh.architecture(migration.form, len(old.classes)).to_config()),
                transfer=asdict(migration.config),
                steps=migration.steps,
                tasks=self.trainer.learned_files,
            )
        )
        while isinstance(answer := await worker.receive(), Progress):
            migration.note(answer)
        if isinstance(answer, MigrationFailed):
            raise NodeError(answer.reason)
        assert isinstance(answer, Migrated)
        return answer

    async def _lineage_with(self, old: HostedExpert, step: Succession) -> Lineage:
        """The steps to the old expert, and the one from there."""
        if old.lineage is None:
            return Lineage(steps=(step,))
        return decode_lineage(await asyncio.to_thread(self.state.blobs.get, old.lineage)).then(step)

    def _end(self, migration: Migration, state: Literal["refused", "failed"], failure: Exception) -> None:
        migration.end(state, error_document(failure))
        facts = {"expert": migration.uid, "successor": migration.successor}
        self.telemetry.events.emit("migration_failed", level="warning", reason=str(failure), **facts)


def not_current(expert: HostedExpert) -> Refused:
    """The refusal of what only a current expert can have done to it."""
    hint = "`meshnode experts ls` tells which are current here: those with `yes`."
    return Refused(f"the expert {expert.uid} is kept here as {expert.standing}", hint=hint)


def _config(request: MigrationRequest) -> TransferConfig:
    try:
        return request.config()
    except SettingOutOfRange as exc:
        raise MalformedMessage(exc.name, reason=str(exc)) from exc


def _method(migration: Migration) -> TransferMethod:
    config = migration.config
    return TransferMethod(
        similarity=config.similarity,
        score=config.score,
        beta=config.beta,
        refit=config.refit,
        distillation_steps=migration.steps,
    )
