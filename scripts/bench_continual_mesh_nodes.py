"""The daemons of a mesh that learns on and on: given tasks, awaited, asked, killed."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Self

import numpy as np
from bench_continual_mesh_plan import Share
from bench_homes import init_home
from bench_node import BenchFailed, Node
from bench_serving_mesh import settings_toml
from bench_stage import address_of

from experts.data.dataset import ImageDataset
from experts.data.npz import save_task
from experts.trunk.base import features_of
from meshnode.cli.client import ApiFailure
from meshnode.compute import Compute
from meshnode.errors import NodeError
from meshnode.home import Home
from meshnode.mesh import load_mesh
from meshnode.runtime import contributions_of
from meshnode.state.state import State

__all__ = ["Answer", "MeshUnderTest", "argmax_alone"]

TRUNK, PIXELS = "efficientnet-b4", 64

SOON = {
    "net": {"refresh": "1s"},
    "average": {"every": "3s", "timeout": "2s"},
    "compute": {"device": "cpu", "threads": 1},
}
"""Rounds and looks at the records come often, so that less is waited for; how to learn is left as it is."""

PATIENCE_S = 240.0
"""For a task to be learned and told by nodes that share two cores."""

ASKED_AT_ONCE = 1000

STILL_S = 6.0
"""So long nothing may change before replicas count as agreed: two rounds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one node said of test images."""

    predictions: tuple[str, ...]
    seconds: float
    own_share: float
    """Of the expert calls, those that it answered itself, in [0, 1]."""


@dataclass(kw_only=True, slots=True)
class _Member:
    home: Home
    data: Path | None
    node: Node
    address: str
    given: set[str] = field(default_factory=set)
    """Tasks in its data folder."""


class MeshUnderTest:
    """Real daemons of one mesh, which runs inside the ``with`` block.

    Args:
        folder: Exists, and is empty.
        first: What the mesh is founded on.
        seed: Of the nodes' training.
        tell: Takes a line of progress.
    """

    def __init__(self, folder: Path, first: Share, *, seed: int, tell: Callable[[str], None]) -> None:
        self._folder = folder
        self._seed = seed
        self._tell = tell
        self._resources = ExitStack()
        self._members: dict[str, _Member] = {}
        self._founding = folder / "founding.npz"
        self._founder = first.node
        save_task(self._founding, first.images)

    def __enter__(self) -> Self:
        self.start(self._founder)
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Those that have been started."""
        return tuple(self._members)

    def home(self, name: str) -> Home:
        """Where a node lives."""
        return self._members[name].home

    def start(self, name: str, *, has_data: bool = True) -> None:
        """Start a node and wait until it is ready: the founder, or one that joins it."""
        home = Home(self._folder / name)
        data = self._folder / f"{name}-data" if has_data else None
        if data is not None:
            data.mkdir()
        founding = ("--mesh", "bench", "--data", self._founding, "--trunk", TRUNK, "--pixels", PIXELS)
        init_home(home, *(founding if name == self._founder else ()))
        sections: dict[str, dict[str, object]] = {part: dict(settings) for part, settings in SOON.items()}
        sections["train"] = {"seed": self._seed, "enabled": has_data}
        if name != self._founder:
            sections["net"]["join"] = [self._members[self._founder].address]
        home.config_toml.write_text(settings_toml(**sections), encoding="utf-8")
        node = self._resources.enter_context(Node(home, data))
        node.wait_until("a member of the mesh", lambda status: status["state"] == "ready")
        self._members[name] = _Member(home=home, data=data, node=node, address=address_of(node))

    def give(self, share: Share) -> None:
        """Put a task into a node's data folder; it is started if it does not run yet."""
        if share.node not in self._members:
            self.start(share.node)
        member = self._members[share.node]
        assert member.data is not None
        save_task(member.data / f"{share.task}.npz", share.images)
        member.given.add(share.task)
        member.node.api().post("train/now")

    def wait_told(self) -> float:
        """Until all that was given is learned, every node has everybody's statistics, and all replicas of each expert
        are one; since when that is so, by `time.monotonic`."""
        began_s = time.monotonic()
        since_s, seen = began_s, None
        while True:
            now = self._agreement()
            if now is None or now != seen:
                since_s, seen = time.monotonic(), now
            elif time.monotonic() - since_s >= STILL_S:
                return since_s
            if time.monotonic() - began_s > PATIENCE_S:
                raise BenchFailed(f"the mesh has not learned and told within {PATIENCE_S:g} s: {self._what_lacks()}")
            time.sleep(0.2)

    def wait_contributions(self, name: str) -> float:
        """Until a node has the statistics of all that was given; the seconds that took."""
        began_s, wanted = time.monotonic(), self._num_given()
        while self._status(name)["router"]["contributions"] < wanted:
            if time.monotonic() - began_s > PATIENCE_S:
                raise BenchFailed(f"{name} has not got all statistics within {PATIENCE_S:g} s")
            time.sleep(0.05)
        return time.monotonic() - began_s

    def pull_all(self, name: str) -> float:
        """Have a node host a replica of every expert; the seconds that took."""
        began_s = time.monotonic()
        while missing := [one["uid"] for one in self._experts(name) if not one["local"]]:
            for uid in missing:
                try:
                    self._members[name].node.api().post(f"experts/{uid}/pull")
                except (ApiFailure, NodeError):
                    continue  # it is on its way already, or its holder is busy
            if time.monotonic() - began_s > PATIENCE_S:
                raise BenchFailed(f"{name} has not got all experts within {PATIENCE_S:g} s")
            time.sleep(0.2)
        return time.monotonic() - began_s

    def ask(self, name: str, images: np.ndarray) -> Answer:
        """What a node answers by whoever it asks."""
        predictions: list[str] = []
        own = calls = 0
        began_s = time.perf_counter()
        for start in range(0, len(images), ASKED_AT_ONCE):
            body = BytesIO()
            np.save(body, images[start : start + ASKED_AT_ONCE])
            document = (
                self._members[name]
                .node.api()
                .post_bytes("infer", body.getvalue(), {"timeout_s": "60"}, media_type="application/x-npy", wait_s=70.0)
            )
            predictions += document["predictions"]
            own += sum(hop["peer_name"] == "self" for hop in document["route"])
            calls += len(document["route"])
        seconds = time.perf_counter() - began_s
        return Answer(predictions=tuple(predictions), seconds=seconds, own_share=own / max(1, calls))

    def sent(self, name: str) -> dict[str, int]:
        """Payload bytes that a node has sent since it was started, by kind."""
        return dict(self._status(name)["traffic"]["sent"])

    def received(self, name: str) -> dict[str, int]:
        """Likewise received."""
        return dict(self._status(name)["traffic"]["received"])

    def experts(self) -> list[dict[str, Any]]:
        """All of the mesh, as the founder sees them."""
        return self._experts(self._founder)

    def wait_stage(self, name: str, *, least_done: float) -> None:
        """Until a node is so far with the distillation of a task, as a share in [0, 1]."""
        began_s = time.monotonic()
        while True:
            training = self._status(name)["training"]
            if training["stage"] == "distil" and training["done"] >= least_done * training["total"]:
                return
            if time.monotonic() - began_s > PATIENCE_S:
                raise BenchFailed(f"{name} has not come so far within {PATIENCE_S:g} s")
            time.sleep(0.02)

    def kill_daemon(self, name: str) -> None:
        """SIGKILL to a daemon; it is started again on what it has left behind."""
        member = self._members[name]
        member.node.kill()
        self._tell(f"{name} was killed")
        member.node = self._resources.enter_context(Node(member.home, member.data))
        member.node.wait_ready()
        member.address = address_of(member.node)

    def kill_trainer(self, name: str) -> None:
        """SIGKILL to a daemon's trainer, which the daemon starts again."""
        os.kill(self._status(name)["training"]["pid"], signal.SIGKILL)
        self._tell(f"the trainer of {name} was killed")

    def _status(self, name: str) -> dict[str, Any]:
        return self._members[name].node.api().get("status")

    def _experts(self, name: str) -> list[dict[str, Any]]:
        experts = self._members[name].node.api().get("experts")["experts"]
        return [one for one in experts if one["replicas"] and one["superseded_by"] is None]

    def _num_given(self) -> int:
        return sum(len(member.given) for member in self._members.values())

    def _agreement(self) -> Mapping[str, Sequence[object]] | None:
        """What all nodes hold, if they hold the same; None as long as something is under way."""
        held = []
        for name, member in self._members.items():
            status = self._status(name)
            training = status["training"]
            if member.given and (training["state"] != "idle" or not member.given <= set(training["learned"])):
                return None
            if status["router"]["contributions"] != self._num_given():
                return None
            experts = self._experts(name)
            if any(len({replica["weights"] for replica in one["replicas"]}) > 1 for one in experts):
                return None
            held.append({one["uid"]: sorted({replica["weights"] for replica in one["replicas"]}) for one in experts})
        return held[0] if all(one == held[0] for one in held) else None

    def _what_lacks(self) -> str:
        words = []
        for name, member in self._members.items():
            status = self._status(name)
            training = status["training"]
            differ = [
                one["uid"][:8]
                for one in self._experts(name)
                if len({replica["weights"] for replica in one["replicas"]}) > 1
            ]
            words.append(
                f"{name}: {training['state']} ({training['reason']}), learned {training['learned']} of "
                f"{sorted(member.given)}, {status['router']['contributions']} of {self._num_given()} contributions, "
                f"replicas that differ {differ}"
            )
        return "; ".join(words)


def argmax_alone(home: Home, test: ImageDataset) -> tuple[str, ...]:
    """What the router of a node that has stopped says of images without any expert."""

    async def classes() -> tuple[str, ...]:
        compute = Compute()
        try:
            with State(home) as state:
                mesh = load_mesh(state)
                assert mesh is not None
                contributions = contributions_of(mesh, state, compute)
                await contributions.load(now_s=time.time())
                await contributions.solve()
                assert contributions.view is not None
                return tuple(contributions.view.router.class_argmax(features_of(mesh.trunk, test.images)))
        finally:
            compute.close()

    return asyncio.run(classes())
