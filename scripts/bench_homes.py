"""Homes to measure nodes on: without a mesh, the founder's, and ones that host a number of experts."""

import asyncio
import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from bench_node import run_python

from experts.data.named import load_named
from experts.data.npz import save_task
from experts.router.statistics import ClassStatistics
from experts.trunk.base import features_of
from meshnode.compute import Compute
from meshnode.home import Home
from meshnode.hosting import ExpertHost
from meshnode.identity import load_or_create_identity
from meshnode.mesh import load_mesh
from meshnode.runtime import contributions_of
from meshnode.state.rows import TaskRow
from meshnode.state.state import State
from meshnode.trainer.service import LEARNED
from protocol.identifiers import digest_of

__all__ = ["Homes", "init_home"]

ALWAYS_LEARNING = "[train]\nsteps = 10000000\n"
"""A config.toml with which a task is never done with: a kill never finds the trainer idle for want of work."""


class Homes:
    """Makes homes in one folder, each when it is first asked for. One that depends on another is a copy of it.

    Args:
        folder: Exists, and is empty.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.images = load_named("digits")[0]
        self.data = folder / "data"
        """Data folder of all nodes, with one task of ten classes."""
        self.data.mkdir()
        self._task = self.data / "digits.npz"
        save_task(self._task, self.images)

    def bare(self) -> Home:
        """Initialised; belongs to no mesh."""
        return self._home("bare", init_home)

    def founded(self) -> Home:
        """Has founded a mesh and hosts nothing."""
        return self._home("founded", lambda home: init_home(home, "--mesh", "bench", "--data", self._task))

    def learning(self) -> Home:
        """A founder that will learn its task for as long as it runs."""

        def make(home: Home) -> None:
            shutil.copytree(self.founded().path, home.path)
            home.config_toml.write_text(ALWAYS_LEARNING, encoding="utf-8")

        return self._home("learning", make)

    def hosting(self, number: int) -> Home:
        """Hosts so many experts, each for two digits, and a router for all ten; has learned its task."""

        def make(home: Home) -> None:
            shutil.copytree(self.founded().path, home.path)
            asyncio.run(self._host(home, number))

        return self._home(f"hosting-{number}", make)

    def _home(self, name: str, make: Callable[[Home], None]) -> Home:
        home = Home(self._folder / name)
        if not home.path.exists():
            make(home)
        return home

    async def _host(self, home: Home, number: int) -> None:
        compute = Compute()
        with State(home) as state:
            mesh = load_mesh(state)
            assert mesh is not None
            host, form = ExpertHost(state, compute), mesh.spec.expert
            for classes in itertools.islice(itertools.combinations(self.images.classes, 2), number):
                architecture = mesh.architecture(form, len(classes))
                await host.adopt(mesh.uid_of(classes, form), classes, architecture, None)
            contributions = contributions_of(mesh, state, compute)
            features_ND, labels = features_of(mesh.trunk, self.images.images), self.images.labels
            statistics = ClassStatistics.from_features(features_ND, labels, fingerprint=mesh.fingerprint)
            key, now_s = load_or_create_identity(home), time.time()
            await contributions.contribute(key, self._task.stem, statistics.to_bytes(), issued_at=now_s)
            digest = digest_of(self._task.read_bytes())
            state.ledger.put_task(TaskRow(name=self._task.stem, digest=digest, state=LEARNED, learned_at=now_s))
        compute.close()


def init_home(home: Home, *options: object) -> None:
    """`meshnode init` with these options. Raises BenchFailed if it fails."""
    run_python("-m", "meshnode", "--home", home.path, "init", *options)
