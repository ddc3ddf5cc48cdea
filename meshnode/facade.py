"""The node's experts as hivemind's own clients see them: each replica in a cell of its own, found and asked by it.

A client of theirs sends features, as the mesh's trunk makes them, and gets probabilities over the expert's classes,
sorted by name, with zeros up to the width that the mesh's spec names. It may ask for the gradient of the inputs; it
cannot change a weight, which the trainer and the rounds alone do.

Legend: B batch, D feature, C the expert's classes, W the spec's width.
"""

import asyncio
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from meshnode.compute import Compute
from meshnode.hosting import ExpertHost
from meshnode.logs import get_logger
from meshnode.mesh import Mesh
from meshnode.telemetry.instruments import Instruments
from meshnode.transport.interface import Transport
from meshnode.transport.moe.interface import ExpertInfo, MoeNetwork
from protocol.errors import UnknownExpert
from protocol.grid import MAX_CELL_ATTEMPTS, cell_of
from protocol.identifiers import ExpertUid

__all__ = ["Facade", "input_gradient"]

log = get_logger(__name__)

RETRY_S = 1.0
"""Pause after declarations that no node of the DHT took."""


def input_gradient(module: nn.Module, features_BD: torch.Tensor, grad_outputs_BC: torch.Tensor) -> torch.Tensor:
    """Gradient of ``sum(softmax(module(h)) * grad_outputs)`` with respect to h, ``(B, D)``; no weight gets any.

    Args:
        module: Maps features ``(B, D)`` to logits ``(B, C)``.
        features_BD: h.
        grad_outputs_BC: What the loss says of each probability.
    """
    with torch.enable_grad():
        leaf_BD = features_BD.detach().requires_grad_()
        outputs_BC = torch.softmax(module(leaf_BD), dim=-1)
        (gradient_BD,) = torch.autograd.grad(outputs_BC, leaf_BD, grad_outputs_BC)
    return gradient_BD


class Facade:
    """Declares the hosted experts in hivemind's grid and answers its clients; see `CellAnswers`.

    Args:
        network: Where hivemind's clients are.
        transport: Who this node is, and what time it is.
        mesh: Says the features' number and the outputs' width.
        host: The experts.
        compute: Where gradients are computed.
        ttl_s: Life of a declaration, in seconds; it is renewed at a third of it.
        instruments: Count the requests and take their time.
    """

    def __init__(  # noqa: PLR0913 - the parts of the node that a foreign call passes through
        self,
        network: MoeNetwork,
        transport: Transport,
        mesh: Mesh,
        host: ExpertHost,
        compute: Compute,
        *,
        ttl_s: float,
        instruments: Instruments | None = None,
    ) -> None:
        self._network = network
        self._transport = transport
        self._mesh = mesh
        self._host = host
        self._compute = compute
        self._ttl_s = ttl_s
        self._instruments = instruments or Instruments()
        self._hosted = asyncio.Event()
        self._cells: dict[str, ExpertUid] = {}
        """Every cell that was ever declared: clients know of it for as long as a lease, and it stays its expert's."""
        self._considered: frozenset[ExpertUid] = frozenset()
        """Experts of the last declaration, those included for which there was no cell."""
        self._attempts: dict[ExpertUid, int] = {}
        self._told: set[ExpertUid] = set()
        """Experts of which has been logged that they are too wide."""

    def changed(self) -> None:
        """Declare soon, if an expert is hosted that has not been declared."""
        self._hosted.set()

    async def run(self) -> None:
        """Answer and declare for ever."""
        async with self._network.answering(self):
            while True:
                self._hosted.clear()
                taken = await self.declare()
                try:
                    async with asyncio.timeout(self._ttl_s / 3 if taken else RETRY_S):
                        await self._until_another_is_hosted()
                except TimeoutError:
                    pass

    async def declare(self) -> bool:
        """Declare every expert once, each in a cell that nobody else has. False if some declaration was not taken."""
        expires_at = self._transport.now_s() + self._ttl_s
        uids = self._to_declare()
        self._considered = frozenset(uids)
        placed = await self._place(uids)
        for uid, cell in placed.items():
            self._cells[cell] = uid
        return await self._network.declare(list(placed.values()), expires_at=expires_at)

    async def _until_another_is_hosted(self) -> None:
        """A new generation, of which there are many, changes nothing here."""
        while self._considered >= set(self._to_declare()):
            await self._hosted.wait()
            self._hosted.clear()

    def _to_declare(self) -> list[ExpertUid]:
        """Hosted experts that fit the outputs of the grid, in the order of their uids."""
        width = self._mesh.spec.moe_width
        fitting = []
        for uid, expert in sorted(self._host.experts.items()):
            if len(expert.classes) <= width:
                fitting.append(uid)
            elif uid not in self._told:
                self._told.add(uid)
                log.warning(
                    "an expert has more classes than the mesh's moe_width: hivemind's clients are not told of it",
                    expert=uid,
                    classes=len(expert.classes),
                    width=width,
                )
        return fitting

    async def _place(self, uids: Iterable[ExpertUid]) -> dict[ExpertUid, str]:
        """A cell for each expert: the first of its own that no other peer has declared, and no other expert here."""
        placed: dict[ExpertUid, str] = {}
        unplaced = list(uids)
        while unplaced:
            wanted = {uid: self._cell(uid) for uid in unplaced}
            holders = await self._network.holders(sorted(set(wanted.values())))
            taken = set(placed.values())
            for uid, cell in wanted.items():
                if holders.get(cell, self._transport.peer_id) == self._transport.peer_id and (
                    self._cells.get(cell, uid) == uid and cell not in taken
                ):
                    placed[uid] = cell
                    taken.add(cell)
            unplaced = [uid for uid in unplaced if uid not in placed and self._try_next(uid)]
        return placed

    def _cell(self, uid: ExpertUid) -> str:
        return cell_of(self._mesh.mesh_id, uid, self._transport.peer_id, self._attempts.get(uid, 0))

    def _try_next(self, uid: ExpertUid) -> bool:
        """False if it was the last attempt: then the expert is left out until the next renewal begins anew."""
        attempt = self._attempts.get(uid, 0) + 1
        self._attempts[uid] = attempt % MAX_CELL_ATTEMPTS
        if attempt == MAX_CELL_ATTEMPTS:
            log.warning("other peers have declared all cells of an expert: hivemind's clients miss it", expert=uid)
        return attempt < MAX_CELL_ATTEMPTS

    # --- what clients ask ---

    def describe(self, cell: str) -> ExpertInfo:
        uid, spec = self._expert_in(cell), self._mesh.spec
        classes = self._host.get(uid).classes
        return ExpertInfo(inputs=(spec.feature_dim,), outputs=(spec.moe_width,), expert=uid, classes=classes)

    async def forward(self, cell: str, features_BD: np.ndarray) -> np.ndarray:
        uid = self._expert_in(cell)
        with self._instruments.inference("server"):
            answer = await self._host.answer(uid, features_BD)
        outputs_BW = np.zeros((len(features_BD), self._mesh.spec.moe_width), np.float32)
        outputs_BW[:, : len(answer.classes)] = answer.probabilities
        return outputs_BW

    async def backward(self, cell: str, features_BD: np.ndarray, grad_outputs_BW: np.ndarray) -> np.ndarray:
        expert = self._host.get(self._expert_in(cell))
        module, num_classes = expert.module, len(expert.classes)
        with self._instruments.inference("server"):
            return await self._compute.run(_gradient, module, features_BD, grad_outputs_BW[:, :num_classes])

    def _expert_in(self, cell: str) -> ExpertUid:
        uid = self._cells.get(cell)
        if uid is None:
            raise UnknownExpert(ExpertUid(cell))
        return uid


def _gradient(module: nn.Module, features_BD: np.ndarray, grad_outputs_BC: np.ndarray) -> np.ndarray:
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    features, grads = (torch.from_numpy(array).to(device) for array in (features_BD, grad_outputs_BC))
    return np.asarray(input_gradient(module, features, grads).cpu().numpy())
