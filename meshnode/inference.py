"""Routed inference: y = sum_i g_i(x) E_i(x) over experts that live on many machines.

Rows are grouped per expert, the experts asked at the same time, and an expert whose replica fails is asked at its next
replica until the deadline. What stays silent is reported as missing gate mass; a row without any answer is an error
that names the experts, never a zero.

Legend: B batch, D feature, C class, E expert.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from experts.combine import Combined, ExpertResponse, combine
from experts.errors import RowsUnanswered as NobodyAnswered
from experts.router.gating import Gates, gate
from experts.trunk.base import features_of
from meshnode.compute import Compute
from meshnode.contributions import RouterView
from meshnode.directory import Directory, ExpertListing
from meshnode.hosting import ExpertHost
from meshnode.mesh import Mesh
from meshnode.telemetry.instruments import Instruments
from meshnode.transport.interface import Transport
from protocol.errors import ModuleMeshError, NoRoute, NotReady, RowsUnanswered
from protocol.framing import Frame
from protocol.identifiers import ExpertUid, PeerId
from protocol.messages import Forward, ForwardReply
from protocol.tensors import require_tensor

__all__ = ["Call", "Prediction", "RoutedInference"]

_ROUNDING = 1e-3
"""By how much an answer's probabilities may miss a sum of 1: 256 in float32 are far closer."""

ATTEMPT_SHARE = 0.4
"""Share of the deadline that one silent replica may cost: two can be silent and a third still answers in time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One expert asked at one peer for some rows of a batch."""

    expert: ExpertUid
    peer_id: PeerId
    peer_name: str
    rows: tuple[int, ...]
    gates: tuple[float, ...]
    """Gate weight of the expert for each of `rows`."""
    elapsed_ms: float
    error: str | None
    """Why the peer gave no answer; None when it did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The mesh's answer to a batch."""

    classes: tuple[str, ...]
    """Columns of `outputs_BC`, sorted by name."""
    outputs_BC: np.ndarray
    """y, float32 ``(B, C)``, rows sum to at most 1."""
    missing_mass_B: np.ndarray
    """Gate weight of experts that did not answer, float32 ``(B,)``."""
    calls: tuple[Call, ...]
    elapsed_ms: float

    @property
    def predictions(self) -> tuple[str, ...]:
        """The class with the largest output, a row."""
        return tuple(self.classes[column] for column in self.outputs_BC.argmax(axis=1))


class RoutedInference:
    """Answers batches with the mesh's experts, local ones without the network.

    Args:
        mesh: Spec and trunk.
        router: Gives the router as of now, None while there is none.
        directory: Knows who hosts what.
        transport: Reaches them.
        compute: Runs trunk, gates and combination.
        host: The experts of this process; None for a client that hosts none.
        instruments: Count the requests and take their time.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of the node that a query passes through
        self,
        mesh: Mesh,
        router: Callable[[], RouterView | None],
        directory: Directory,
        transport: Transport,
        compute: Compute,
        host: ExpertHost | None = None,
        instruments: Instruments | None = None,
    ) -> None:
        self._mesh = mesh
        self._router = router
        self._directory = directory
        self._transport = transport
        self._compute = compute
        self._host = host
        self._instruments = instruments or Instruments()
        self._turns: Counter[ExpertUid] = Counter()
        """Calls so far of each expert; successive ones begin at successive replicas, so that these share the load."""

    async def predict(self, images: np.ndarray, *, timeout_s: float, top_k: int | None = None) -> Prediction:
        """Answer a batch of images.

        Args:
            images: uint8 ``(B, H, W)`` or ``(B, H, W, channels)``.
            timeout_s: Deadline for the whole answer, in seconds.
            top_k: Experts asked per row; None takes the mesh's own setting.

        Raises:
            NotReady: No router yet: nobody has contributed statistics.
            NoRoute: No expert is advertised.
            RowsUnanswered: Some rows had no answer from any of their experts.
            MalformedDataset: `images` are not images.
        """
        with self._instruments.inference("client"):
            return await self._predict(images, timeout_s=timeout_s, top_k=top_k)

    async def _predict(self, images: np.ndarray, *, timeout_s: float, top_k: int | None) -> Prediction:
        began, deadline_s = time.perf_counter(), time.monotonic() + timeout_s
        view = self._view()
        experts = self._directory.experts()
        if not experts:
            raise NoRoute()
        settings = self._mesh.spec.router
        features_BD, gates = await self._compute.run(
            _features_and_gates, self._mesh, view, images, experts, top_k or settings.top_k
        )
        asked = [uid for uid in gates.uids if len(gates.rows_of(uid))]
        answers = await asyncio.gather(
            *(self._ask(experts[ExpertUid(uid)], gates, features_BD, deadline_s) for uid in asked)
        )
        responses = {uid: response for uid, (response, _) in zip(asked, answers, strict=True) if response}
        classes = sorted({name for listing in experts.values() for name in listing.classes})
        try:
            combined = await self._compute.run(combine, gates, responses, classes, settings.renormalise)
        except NobodyAnswered as exc:
            raise RowsUnanswered(exc.rows, tuple(ExpertUid(uid) for uid in exc.experts)) from exc
        return _prediction(combined, [call for _, calls in answers for call in calls], began)

    def router_argmax(self, images: np.ndarray) -> tuple[str, ...]:
        """The router's own answer, no expert asked: the class with the highest score, a row.

        Raises:
            NotReady: No router yet.
            MalformedDataset: `images` are not images.
        """
        return self._view().router.class_argmax(features_of(self._mesh.trunk, images).cpu())

    def _view(self) -> RouterView:
        view = self._router()
        if view is None:
            raise NotReady("the mesh has no router yet: nobody has contributed statistics of any task")
        return view

    async def _ask(
        self, listing: ExpertListing, gates: Gates, features_BD: np.ndarray, deadline_s: float
    ) -> tuple[ExpertResponse | None, list[Call]]:
        """Ask one expert for its rows, replica after replica; None when none of them answered."""
        rows = gates.rows_of(listing.uid)
        weights = gates.weights_BE[rows, gates.uids.index(listing.uid)]
        rows_features = features_BD[rows.numpy()]
        calls: list[Call] = []
        replicas = self._replicas(listing)
        for number, (peer_id, peer_name) in enumerate(replicas, start=1):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                break
            attempt_s = left_s if number == len(replicas) else ATTEMPT_SHARE * left_s
            began = time.perf_counter()
            response, error = None, None
            try:
                response = await self._ask_replica(listing, peer_id, rows_features, attempt_s)
            except ModuleMeshError as failure:  # whatever a peer answers with is its failure, never the query's
                error = str(failure)
                self._directory.note_failure(peer_id)
            call = Call(
                expert=listing.uid,
                peer_id=peer_id,
                peer_name=peer_name,
                rows=tuple(rows.tolist()),
                gates=tuple(weights.tolist()),
                elapsed_ms=1e3 * (time.perf_counter() - began),
                error=error,
            )
            calls.append(call)
            if response is not None:
                self._directory.note_success(peer_id)
                probabilities, classes = response
                return ExpertResponse(classes, rows, torch.from_numpy(probabilities)), calls
        return None, calls

    def _replicas(self, listing: ExpertListing) -> Sequence[tuple[PeerId, str]]:
        """Whom to ask, in order: this process, then its peers in turn, those that lately failed last."""
        peers = [(replica.peer_id, replica.peer_name) for replica in listing.replicas]
        if self._host is not None and listing.uid in self._host.experts:
            mine = self._transport.peer_id
            return [(mine, "self"), *(peer for peer in peers if peer[0] != mine)]
        self._turns[listing.uid] += 1
        first = self._turns[listing.uid] % len(peers)
        in_turn = peers[first:] + peers[:first]
        return sorted(in_turn, key=lambda peer: self._directory.recently_failed(peer[0]))

    async def _ask_replica(
        self, listing: ExpertListing, peer_id: PeerId, features_BD: np.ndarray, timeout_s: float
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        if self._host is not None and peer_id == self._transport.peer_id:
            answer = await self._host.answer(listing.uid, features_BD)
            return answer.probabilities, answer.classes
        request = Frame(message=Forward(expert=listing.uid), tensors={"features": features_BD})
        reply = await self._transport.call(peer_id, request, timeout_s=timeout_s)
        if not isinstance(reply.message, ForwardReply) or reply.message.classes != listing.classes:
            raise NotReady("the peer answered for other classes than it advertises")
        shape = (len(features_BD), len(listing.classes))
        probabilities = require_tensor(reply.tensors, "probabilities", dtype="float32", shape=shape, finite=True)
        # Any other numbers would outvote every expert that keeps to them.
        if (probabilities < 0).any() or (abs(probabilities.sum(axis=1) - 1) > _ROUNDING).any():
            raise NotReady("the peer's answer is no distribution over its classes")
        return probabilities.copy(), listing.classes


def _features_and_gates(
    mesh: Mesh,
    view: RouterView,
    images: np.ndarray,
    experts: Mapping[ExpertUid, ExpertListing],
    top_k: int,
) -> tuple[np.ndarray, Gates]:
    with torch.inference_mode():
        features_BD = features_of(mesh.trunk, images).cpu()
        gates = gate(
            view.router.scores(features_BD),
            view.router.classes,
            {uid: listing.classes for uid, listing in experts.items()},
            tau=mesh.spec.router.tau,
            top_k=top_k,
        )
    return features_BD.numpy(), gates


def _prediction(combined: Combined, calls: list[Call], began: float) -> Prediction:
    return Prediction(
        classes=combined.classes,
        outputs_BC=combined.outputs_BC.numpy(),
        missing_mass_B=combined.missing_mass_B.numpy(),
        calls=tuple(calls),
        elapsed_ms=1e3 * (time.perf_counter() - began),
    )
