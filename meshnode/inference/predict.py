"""Routed inference: y = sum_i g_i(x) E_i(x) over experts that live on many machines.

Rows are grouped per expert and experts per peer; all peers are asked at the same time, and an expert whose replica
fails is asked at its next replica until the deadline; after its last one, the older experts that it supersedes are
asked. What stays silent is reported as missing gate mass; a row without any answer is an error that names the experts,
never a zero.

Legend: B batch, D feature, C class, E expert.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import torch

from experts.combine import combine
from experts.errors import RowsUnanswered as NobodyAnswered
from experts.router.gating import Gates, gate
from experts.trunk.base import features_of
from meshnode.compute import Compute
from meshnode.contributions import RouterView
from meshnode.directory import Directory
from meshnode.hosting import ExpertHost
from meshnode.inference.asking import Asker
from meshnode.inference.contexts import by_class, of_task
from meshnode.inference.prediction import Prediction
from meshnode.inference.standings import Standings
from meshnode.listings import ExpertListing
from meshnode.mesh import Mesh
from meshnode.telemetry.instruments import Instruments
from meshnode.transport.interface import Transport
from protocol.errors import CallTimeout, NoRoute, NotReady, RowsUnanswered
from protocol.identifiers import ExpertUid

__all__ = ["RoutedInference"]

TRUNK_ROWS: Final = 64
"""Images whose features are computed at once: a tenth of a second on a slow trunk."""

GRACE_S: Final = 0.25
"""How long after its deadline a prediction may still say which experts have not answered."""


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
        self._compute = compute
        self._instruments = instruments or Instruments()
        self.standings = Standings()
        """How the peers have answered so far."""
        self._me = transport.peer_id
        self._asker = Asker(transport, self.standings, host)

    async def predict(
        self, images: np.ndarray, *, timeout_s: float, top_k: int | None = None, task: str | None = None
    ) -> Prediction:
        """Answer a batch of images.

        Args:
            images: uint8 ``(B, H, W)`` or ``(B, H, W, channels)``.
            timeout_s: Deadline for the whole answer, in seconds.
            top_k: Experts asked per row; None takes the mesh's own setting.
            task: Whose classes may be named, where the mesh tells tasks apart; None where it does not.

        Raises:
            MalformedMessage: A task is named that there is none of, or none where one has to be.
            NotReady: No router yet: nobody has contributed statistics.
            NoRoute: No expert is advertised.
            RowsUnanswered: Some rows had no answer from any of their experts.
            CallTimeout: This process itself has not come to them in time.
            MalformedDataset: `images` are not images.
            FrameTooLarge: They are more than one call can carry the features of.
            Busy: This process has too much to do.
        """
        with self._instruments.inference("client"):
            try:
                # Experts are given up in time; a moment more is for saying so.
                async with asyncio.timeout(timeout_s + GRACE_S):
                    return await self._predict(images, timeout_s=timeout_s, top_k=top_k, task=task)
            except TimeoutError as exc:
                raise CallTimeout(self._me, "predict", timeout_s) from exc

    async def _predict(
        self, images: np.ndarray, *, timeout_s: float, top_k: int | None, task: str | None
    ) -> Prediction:
        began_s, deadline_s = time.perf_counter(), time.monotonic() + timeout_s
        view = self._view()
        experts = self._directory.current()
        if not experts:
            raise NoRoute()
        experts = of_task(self._mesh.setting, experts, task)
        settings = self._mesh.spec.router
        features_BD = np.concatenate([await self._compute.run(_features, self._mesh, part) for part in _parts(images)])
        gates = await self._compute.run(_gates, self._mesh, view, features_BD, experts, top_k or settings.top_k)
        answers = await self._asker.ask(experts, gates, features_BD, deadline_s)
        classes = sorted({name for listing in experts.values() for name in listing.classes})
        try:
            combined = await self._compute.run(combine, gates, answers.responses, classes, settings.renormalise)
        except NobodyAnswered as exc:
            raise RowsUnanswered(exc.rows, tuple(ExpertUid(uid) for uid in exc.experts)) from exc
        named, outputs_BC = combined.classes, combined.outputs_BC.numpy()
        if self._mesh.has_contexts:
            named, outputs_BC = by_class(named, outputs_BC)
        return Prediction(
            classes=named,
            outputs_BC=outputs_BC,
            missing_mass_B=combined.missing_mass_B.numpy(),
            calls=tuple(answers.calls),
            elapsed_ms=1e3 * (time.perf_counter() - began_s),
        )

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


def _parts(images: np.ndarray) -> Sequence[np.ndarray]:
    """The batch in parts after each of which others have their turn."""
    if images.ndim == 0 or len(images) <= TRUNK_ROWS:
        return [images]
    return [images[begin : begin + TRUNK_ROWS] for begin in range(0, len(images), TRUNK_ROWS)]


def _features(mesh: Mesh, images: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return np.asarray(features_of(mesh.trunk, images).cpu().numpy())


def _gates(
    mesh: Mesh,
    view: RouterView,
    features_BD: np.ndarray,
    experts: Mapping[ExpertUid, ExpertListing],
    top_k: int,
) -> Gates:
    with torch.inference_mode():
        return gate(
            view.router.scores(torch.from_numpy(features_BD)),
            view.router.classes,
            {uid: mesh.columns_of(listing.classes) for uid, listing in experts.items()},
            tau=mesh.spec.router.tau,
            top_k=top_k,
        )
