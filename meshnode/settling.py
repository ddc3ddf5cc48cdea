"""Settling: what nodes have spawned for the same classes while apart becomes one expert again.

Nodes that begin at random come to replicas of one expert, wherever they are. One that began as an expert of other
classes has first weights of its own, which have no mean with others: beside what peers have spawned for the same
classes it would take a part of one expert's gate mass, or of one uid have replicas that are never averaged. So of all
beginnings of one expert a single one is left. Which, follows from the records alone, so that all who have read the same
records agree:

1. the one with the most replicas: each is a peer that would have to give it up;
2. of equals the one that began at random: it is what every node comes to;
3. else the one whose lineage has the lowest digest.

Whoever holds another one hosts that instead, and learns again the tasks that it had learned with its own: as an update,
so that what was learned on both sides is in what is left. A task whose file is gone is not.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

from experts.errors import ExpertsError
from meshnode.directory import Directory
from meshnode.errors import NodeError
from meshnode.forms import form_of
from meshnode.hosted import HostedExpert
from meshnode.hosting import ExpertHost
from meshnode.logs import get_logger
from meshnode.mesh import Mesh
from meshnode.replicas import Replicas
from meshnode.state.state import State
from meshnode.telemetry import Telemetry
from meshnode.trainer.process import TrainerDied
from meshnode.trainer.service import Trainer
from protocol.errors import ModuleMeshError
from protocol.identifiers import Digest, ExpertUid, PeerId

__all__ = ["Beginning", "Settling"]

log = get_logger(__name__)

RETRY_S = 60.0
"""What could not be taken over is left alone for so long: each try pulls weights, and keeps the trainer from its tasks.
"""


class Beginning(NamedTuple):
    """What replicas share that have a mean."""

    uid: ExpertUid
    lineage: Digest | None
    """None of one that began at random."""


@dataclass(kw_only=True, slots=True)
class Settling:
    """Gives up beginnings that are not to be left, while `run` runs.

    Attributes:
        trainer: Learns again; None where training is off.
        let_go: Waits until no round of an expert is under way.
        now_s: A clock of any origin.
    """

    mesh: Mesh
    state: State
    host: ExpertHost
    directory: Directory
    replicas: Replicas
    trainer: Trainer | None
    let_go: Callable[[ExpertUid], Awaitable[None]]
    telemetry: Telemetry = field(default_factory=Telemetry)
    now_s: Callable[[], float] = time.monotonic
    _looked: asyncio.Event = field(default_factory=asyncio.Event)
    _again_at_s: dict[ExpertUid, float] = field(default_factory=dict)

    def look_again(self) -> None:
        """The directory was read anew."""
        self._looked.set()

    async def run(self) -> None:
        """Settle for ever."""
        while True:
            await self._looked.wait()
            self._looked.clear()
            for uid in tuple(self.host.experts):
                if self.now_s() >= self._again_at_s.get(uid, -math.inf):
                    await self._try(uid)

    async def _try(self, uid: ExpertUid) -> None:
        try:
            await self.settle(uid)
        except (ModuleMeshError, NodeError, ExpertsError, TrainerDied, OSError) as failure:
            # The records may say otherwise by then, or its peer be there again.
            self._again_at_s[uid] = self.now_s() + RETRY_S
            log.warning("another beginning of an expert cannot be taken over yet", expert=uid, reason=str(failure))

    async def settle(self, uid: ExpertUid) -> None:
        """Host another beginning of the expert `uid` instead, if that is the one to be left.

        Raises:
            ModuleMeshError, NodeError, ExpertsError: It cannot be had, or this one not be given up, just now.
            TrainerDied: As long as the worker was waited for.
        """
        if self._winner(uid) is None:
            return
        async with self.trainer.borrow("settling") if self.trainer else nullcontext():
            # Waiting may have taken as long as a task: look again.
            expert, winner = self.host.experts.get(uid), self._winner(uid)
            if expert is None or winner is None:
                return
            beginning, holder = winner
            # First of all: what cannot be had takes nothing's place.
            fetched = await self.replicas.fetch(beginning.uid, source=holder)
            if fetched.advert.lineage != beginning.lineage:
                return
            tasks = self._tasks_of(uid)
            # Killed from here on, this node learns them in any case, and the records say with which expert.
            for task in tasks:
                await asyncio.to_thread(self.state.ledger.drop_task, task)
            await self.let_go(uid)
            await self.host.drop(uid, unwanted=False)
            await self.replicas.host_fetched(fetched, placed=expert.placed)
        self.telemetry.events.emit(
            "expert_settled", expert=beginning.uid, instead_of=uid, classes=expert.classes, tasks=tasks
        )
        if self.trainer is not None:
            self.trainer.look_again()

    def _winner(self, uid: ExpertUid) -> tuple[Beginning, PeerId] | None:
        """The beginning that is to be left of an expert hosted here, and a peer that has it; None if it is this one."""
        expert = self.host.experts.get(uid)
        held = {} if expert is None else self._beginnings(expert)
        own = Beginning(uid, None if expert is None else expert.lineage)
        if own not in held:  # nor can be told what it stands against, before peers are told of it
            return None
        first = min(held, key=lambda one: (-len(held[one]), one.lineage is not None, one.lineage or ""))
        if first == own or self.state.is_declined(first.uid):
            return None
        return first, min(held[first])

    def _beginnings(self, expert: HostedExpert) -> Mapping[Beginning, list[PeerId]]:
        """Who holds which, by the records; empty for one that was not spawned as it is."""
        form = form_of(expert.architecture)
        uids = (self.mesh.uid_of(expert.classes, form), self.mesh.uid_of_begun(expert.classes, form))
        held: dict[Beginning, list[PeerId]] = {}
        for uid in uids if expert.uid in uids else ():
            listing = self.directory.experts().get(uid)
            for replica in listing.replicas if listing else ():
                if not replica.leaving:
                    held.setdefault(Beginning(uid, replica.advert.lineage), []).append(replica.peer_id)
        return held

    def _tasks_of(self, uid: ExpertUid) -> tuple[str, ...]:
        """Tasks that the expert has learned here and can learn again; all that may be, where it is not known which."""
        newest = self.state.ledger.generations(uid)[:1]
        known = newest[0].tasks if newest else ()
        files = self.trainer.learned_files if self.trainer else ()
        classes = set(self.host.get(uid).classes)
        return tuple(
            file.name for file in files if file.classes.keys() & classes and (known is None or file.name in known)
        )
