"""Who works for which class by now: measured by the worker whenever router, experts or learned tasks have changed."""

from collections.abc import Sequence

import torch

from experts.router.specialization import Specialization
from meshnode.trainer.messages import Measure, Measured
from meshnode.trainer.parts import TrainerParts
from meshnode.trainer.process import TrainerProcess
from meshnode.trainer.task_file import TaskFile

__all__ = ["Specializing"]


class Specializing:
    """The last measurement, and what it was made on."""

    def __init__(self, parts: TrainerParts) -> None:
        self._parts = parts
        self._measured_on: object = None
        """Router, experts and tasks of the last measurement."""
        self.found: Specialization | None = None
        """On the tasks learned here with the router and the experts of the moment; None until that was measured."""

    async def measure(self, process: TrainerProcess, learned: Sequence[TaskFile]) -> None:
        """Have it measured, unless nothing that it depends on has changed.

        Raises:
            TrainerDied: The worker ended meanwhile.
        """
        view = self._parts.contributions.view
        experts = {str(uid): listing.classes for uid, listing in self._parts.directory.current().items()}
        basis = (view, experts, learned)
        if view is None or not experts or not learned or basis == self._measured_on:
            return
        spec = self._parts.mesh.spec.router
        await process.send(
            Measure(
                router_classes=view.router.classes,
                router_weights=view.router.weights.contiguous().numpy().tobytes(),
                kappa=view.router.kappa,
                tau=spec.tau,
                top_k=spec.top_k,
                experts=experts,
                tasks=tuple(learned),
            )
        )
        measured = await process.receive()
        assert isinstance(measured, Measured)
        self._measured_on = basis
        self.found = Specialization(
            classes=measured.classes,
            uids=measured.experts,
            mass_CE=torch.tensor(measured.mass, dtype=torch.float64).reshape(
                len(measured.classes), len(measured.experts)
            ),
            num_samples_C=torch.tensor(measured.num_samples, dtype=torch.int64),
        )
