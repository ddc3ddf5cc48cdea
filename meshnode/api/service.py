"""The one view the HTTP API has of the node: documents out, images in.

The node implements this structurally; a test passes a small fake. Everything returned is plain data that
JSON can hold (numbers, strings, lists, dictionaries, None), read on the node's event loop without waiting. A
failed call raises one of the project's named errors, which the API turns into a status and an error document.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from meshnode.forget_order import ForgetRequest
from meshnode.migration_order import MigrationRequest

__all__ = ["Document", "NodeService"]

Document = Mapping[str, object]
"""One JSON object; the API adds its ``schema`` where the node gave none."""


class NodeService(Protocol):
    """What a node answers about itself and does on request."""

    def status(self) -> Document:
        """Name, peer id, mesh, state and reason, device, addresses, counts, traffic (bytes), uptime (s)."""
        ...

    def identity(self) -> Document:
        """Name, peer id and the addresses others reach this node under."""
        ...

    def peers(self) -> Sequence[Document]:
        """Live peers, this node among them, each with the seconds its record still holds."""
        ...

    def experts(self, *, local: bool) -> Sequence[Document]:
        """Experts with their classes and replicas: those hosted here if ``local``, else the whole mesh's."""
        ...

    def specialization(self) -> Document:
        """Gate mass by class and expert on the tasks learned here, and what follows; ``measured`` is None before."""
        ...

    def averaging(self) -> Document:
        """The rounds so far and the next one."""
        ...

    def training(self) -> Document:
        """What the trainer is doing and has learned."""
        ...

    def settings(self) -> Document:
        """Every setting in force, with where it came from."""
        ...

    def metrics(self) -> bytes:
        """What has been measured, in Prometheus's text format."""
        ...

    def ready(self) -> bool:
        """Whether the node has started and takes work."""
        ...

    async def infer(
        self, images: NDArray[np.uint8], *, top_k: int | None, task: str | None, timeout_s: float | None
    ) -> Document:
        """Routed inference over the mesh.

        Args:
            images: Pixels 0..255, ``(B, H, W)`` or ``(B, H, W, channels)``, B >= 1.
            top_k: Experts asked per row, >= 1; None means the mesh's own setting.
            task: Whose classes may be named, where the mesh tells tasks apart; None where it does not.
            timeout_s: Longest wait for the whole answer, > 0; None means the node's own setting.

        Returns: Classes, predictions, outputs, missing gate mass, and the route each row took.
        Raises: ModuleMeshError: No route, rows that no expert answered, busy, not ready, malformed images.
        """
        ...

    async def train_now(self) -> Document:
        """Look for new task files now; without this, that happens at the start and after each task."""
        ...

    def pull_expert(self, uid: str, peer_id: str | None) -> Document:
        """Have a replica of a mesh's expert pulled and hosted; returns at once, with how far it is.

        Args:
            uid: The expert's, in full.
            peer_id: The only peer to take it from; None takes any.

        Raises:
            NoSuchPeerOrExpert: No live peer, or not this one, advertises it.
            ModuleMeshError: The node belongs to no mesh yet, or is stopping.
        """
        ...

    def expert_pull(self, uid: str) -> Document:
        """How far that is: ``state`` is waiting, pulling, hosted or failed, with the ``error``.

        Raises:
            NoSuchPeerOrExpert: Nobody has asked for it since the node started.
        """
        ...

    async def expert_file(self, uid: str) -> bytes:
        """A hosted expert's weights and what they are, as safetensors. Raises ModuleMeshError if it is not hosted."""
        ...

    async def import_expert(self, data: bytes, *, replace: bool) -> Document:
        """Host the expert of such a file, from anyone.

        Args:
            data: The file's bytes.
            replace: Whether its weights may take the place of those of a replica hosted here.

        Raises:
            NodeError: The file is no expert of this mesh, or the expert is hosted here already.
            ModuleMeshError: The node belongs to no mesh yet, or is stopping.
        """
        ...

    async def drop_expert(self, uid: str, *, force: bool) -> Document:
        """Stop hosting a replica; it does not come back by placement for some hours.

        Args:
            uid: The expert's, in full.
            force: Whether also the last replica that answers in the mesh may go.

        Raises:
            NoSuchPeerOrExpert: It is not hosted here.
            NodeError: It is the last one, is in training, or is kept as retired or declined.
            ModuleMeshError: The node belongs to no mesh yet, or is stopping.
        """
        ...

    def migrate_expert(self, uid: str, request: MigrationRequest) -> Document:
        """Have an expert that is hosted here carried over into another form; returns at once, with how far it is.

        Raises:
            NoSuchPeerOrExpert: It is not known.
            NodeError: It is not hosted here, training is off, there is no such form, or it is under way already.
            ModuleMeshError: The node belongs to no mesh yet, or is stopping.
        """
        ...

    def expert_migration(self, uid: str) -> Document:
        """How far that is: ``state`` is waiting, following, transferring, distilling, judging, done, refused or failed.

        With the ``accuracy`` of both forms once it was measured, what became of each layer, and the ``error``.

        Raises:
            NoSuchPeerOrExpert: Nobody has asked for it since the node started.
        """
        ...

    async def roll_back_expert(self, uid: str) -> Document:
        """Serve what an expert succeeded again, in its place; its successor is not followed any more.

        Raises:
            NodeError: Nothing that it succeeded is kept here, or it is in training.
            ModuleMeshError: It is not hosted here, or the node belongs to no mesh yet.
        """
        ...

    async def expert_lineage(self, uid: str) -> Document:
        """The experts that one was made from, the oldest first, and how each was made; of one known in the mesh.

        Raises:
            NoSuchPeerOrExpert: It is not known.
            ModuleMeshError: What tells of it cannot be had from a peer just now, or is another expert's.
        """
        ...

    def privacy(self) -> Document:
        """What leaves this machine, with counts, versions and bytes, and with which protection.

        Raises:
            ModuleMeshError: The node belongs to no mesh yet.
        """
        ...

    async def forget(self, request: ForgetRequest) -> Document:
        """Forget a task or what a peer contributed, or let it come back; says what became of everything.

        Raises:
            NodeError: The task or the peer is not known, or the trainer ended meanwhile.
            ModuleMeshError: The node belongs to no mesh yet, or is stopping.
        """
        ...

    async def handover(self, *, wait_s: float) -> Document:
        """What a node that stops has handed over to others, and what not; waits until that is ``over``, or so long."""
        ...

    def request_shutdown(self) -> None:
        """Begin to drain; returns at once."""
        ...
