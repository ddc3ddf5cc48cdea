"""The runs that `simulate.py` is made of: consensus by method, size and faults; what loss, churn, a partition and an
expert's size cost; and what happens after training has stopped."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from bench_document import say
from simulate_mesh import DhtTimes, Mesh, MeshConfig, RoundSample
from simulate_network import NetworkConfig

from meshnode.averaging.settings import AveragerConfig
from protocol.mixing import MixingMethod, rounds_to_mean

__all__ = ["Effort", "FAULTS", "METHODS", "Study", "TARGET"]

METHODS: tuple[MixingMethod, ...] = ("group", "hypercube", "random")
TARGET = 1e-3
"""Disagreement at which replicas count as one: a thousandth of the variance at the beginning."""

LOSS_RATIO = 1e-3
LEAVING_PER_MINUTE = 0.02
FAULTS = {"none": (0.0, 0.0), "loss and churn": (LOSS_RATIO, LEAVING_PER_MINUTE)}
"""Share of messages that are lost, and of the nodes that leave within a minute."""

MOST_RANDOM = 1000
"""To find its pair, every member digests the name of every replica: half a minute a round and node here beyond this."""

TRAINING = 0.1


class Effort(NamedTuple):
    """How much is simulated."""

    sizes: tuple[int, ...]
    """Replicas of one expert."""
    most_rounds: int = 24
    rounds_at_10000: int = 4
    """With faults, where a round takes half a minute."""
    long_rounds: int = 30
    """Of the runs that count rounds."""
    losses: tuple[float, ...] = (0.0, 3e-4, 1e-3, 3e-3, 1e-2)
    leaving: tuple[float, ...] = (0.0, 0.005, 0.02, 0.05, 0.1)
    parameters: tuple[int, ...] = (100_000, 200_000, 300_000, 500_000, 1_000_000, 2_000_000)


class Study:
    """All runs of one seed.

    Args:
        effort: How much.
        dht: How long the DHT of a mesh of so many nodes takes.
        seed: Of all runs.
    """

    def __init__(self, effort: Effort, dht: Mapping[int, DhtTimes], seed: int) -> None:
        self._effort = effort
        self._dht = dht
        self._seed = seed

    def consensus(self) -> Iterator[dict[str, Any]]:
        """Rounds and bytes until replicas agree, of every method and size, without faults and with them."""
        for faults, (loss_ratio, leaving) in FAULTS.items():
            for num_nodes in self._effort.sizes:
                for method in METHODS:
                    if not self._is_skipped(method, num_nodes, faults):
                        config = self._config(num_nodes, method, loss_ratio=loss_ratio, leaving=leaving)
                        yield self._consensus(config, faults)

    def _is_skipped(self, method: MixingMethod, num_nodes: int, faults: str) -> bool:
        if method == "random":
            return num_nodes > MOST_RANDOM
        return method == "hypercube" and faults != "none" and num_nodes > MOST_RANDOM

    def _consensus(self, config: MeshConfig, faults: str) -> dict[str, Any]:
        num_nodes, method = config.num_nodes, config.averaging.method
        effort = self._effort
        is_short = faults != "none" and num_nodes > MOST_RANDOM
        mesh = Mesh(config)
        mesh.watch_news()
        mesh.run(effort.rounds_at_10000 if is_short else effort.most_rounds, until=TARGET)
        samples, tally = mesh.samples, mesh.tally
        reached = samples[-1].disagreement <= TARGET
        begun = max(1, tally.begun)
        row = {
            "method": method,
            "replicas": num_nodes,
            "faults": faults,
            "rounds": len(samples) if reached else None,
            "exact_after": rounds_to_mean(num_nodes, method=method, most=config.averaging.group),
            "kb_a_node": samples[-1].sent_bytes / num_nodes / 1e3 if reached else None,
            "kb_a_node_and_round": samples[-1].sent_bytes / begun / 1e3,
            "committed_ratio": tally.committed / begun,
            "lost_ratios": {reason: count / begun for reason, count in sorted(tally.lost_rounds.items())},
            "attempts": dict(sorted(tally.attempts.items())),
            "differing_views_ratio": tally.attempts["differing_views"] / max(1, tally.attempts.total()),
            "divided_attempts": tally.divided,
            "drift": samples[-1].drift,
            "staleness_s": samples[-1].staleness_s,
            "disagreement_left": samples[-1].disagreement,
            "disagreement": [sample.disagreement for sample in samples],
            "known_s": _quantiles(mesh.known_s, num_nodes),
            "events": mesh.clock.num_events,
        }
        say(f"{method:<10}{num_nodes:>6} replicas, faults: {faults}: {row['rounds']} rounds, {row['events']} events")
        return row

    def loss(self) -> list[dict[str, Any]]:
        """Share of its rounds that a replica commits, by the share of messages lost; sixteen replicas that learn on."""
        rows = []
        for method in METHODS:
            for loss_ratio in self._effort.losses:
                mesh = self._long(16, method, loss_ratio=loss_ratio).run(self._effort.long_rounds)
                rows.append({"method": method, "loss_ratio": loss_ratio, **self._quality(mesh)})
        say("loss: done")
        return rows

    def churn(self) -> list[dict[str, Any]]:
        """The same by the share of nodes that leave within a minute, of one group and of a grid.

        Half of them leave without a word; at the highest rate also none of them, and all.
        """
        rows = []
        worst = self._effort.leaving[-1]
        ways = [*((leaving, 0.5) for leaving in self._effort.leaving), (worst, 0.0), (worst, 1.0)]
        for num_nodes in (16, 100):
            for leaving, silent_ratio in ways:
                config = self._config(num_nodes, "group", leaving=leaving, training=TRAINING)
                mesh = Mesh(replace(config, silent_ratio=silent_ratio))
                # The fewer there are, the longer it takes until some have left.
                mesh.run(self._effort.long_rounds * (4 if num_nodes < 100 else 1))
                rows.append(
                    {
                        "replicas": num_nodes,
                        "leaving_per_minute": leaving,
                        "silent_ratio": silent_ratio,
                        **self._quality(mesh),
                    }
                )
        say("churn: done")
        return rows

    def partition(self) -> dict[str, Any]:
        """Two halves that cannot reach each other for three rounds, while replicas learn and when they do not."""
        courses = {}
        for name, training in (("learning", TRAINING), ("nothing learned", 0.0)):
            config = replace(self._config(16, "group", training=training), partition_s=(5.0, 35.0))
            mesh = Mesh(config).run(8)
            courses[name] = {
                "disagreement": [sample.disagreement for sample in mesh.samples],
                "silent_attempts": mesh.tally.attempts["partner_silent"],
                "committed_ratio": mesh.tally.committed / mesh.tally.begun,
            }
        say("partition: done")
        return {"parted_rounds": 3, "courses": courses}

    def idle(self) -> list[dict[str, Any]]:
        """Rounds of replicas that agree and learn nothing more: the share that is committed all the same."""
        rows = []
        for num_nodes, most in ((16, 16), (100, 16), (13, 4), (241, 16)):
            config = self._config(num_nodes, "group")
            mesh = Mesh(replace(config, averaging=replace(config.averaging, group=most))).run(14)
            committed, begun, sent = mesh.tally.committed, mesh.tally.begun, mesh.samples[-1].sent_bytes
            mesh.run(6)
            ratio = (mesh.tally.committed - committed) / (mesh.tally.begun - begun)
            kb = (mesh.samples[-1].sent_bytes - sent) / num_nodes / 6 / 1e3
            rows.append({"replicas": num_nodes, "group": most, "committed_ratio": ratio, "kb_a_node_and_round": kb})
        say("idle: done")
        return rows

    def sizes_of_experts(self) -> list[dict[str, Any]]:
        """Share of rounds that sixteen replicas commit, by parameters and compression: a round has so many seconds."""
        rows = []
        for compression in ("none", "int8"):
            for num_parameters in self._effort.parameters:
                config = self._config(16, "group", training=TRAINING)
                averaging = replace(config.averaging, compression=compression)
                mesh = Mesh(replace(config, averaging=averaging, num_parameters=num_parameters)).run(3)
                rows.append(
                    {
                        "compression": compression,
                        "parameters": num_parameters,
                        "committed_ratio": mesh.tally.committed / mesh.tally.begun,
                        "kb_a_node_and_round": mesh.samples[-1].sent_bytes / mesh.tally.begun / 1e3,
                    }
                )
        return rows

    def variants(self) -> dict[str, Any]:
        """A hundred replicas of uneven weights, of a compressed expert, and ninety-seven on a grid that is not full."""
        even = self._config(100, "group")
        variants = {
            "even": even,
            "uneven_weights": replace(even, uneven_weights=True),
            "int8": replace(even, averaging=replace(even.averaging, compression="int8")),
            "97_replicas": self._config(97, "group"),
        }
        rows = {}
        for name, config in variants.items():
            mesh = Mesh(config).run(self._effort.most_rounds, until=TARGET)
            rows[name] = {
                "rounds": len(mesh.samples),
                "kb_a_node": mesh.samples[-1].sent_bytes / config.num_nodes / 1e3,
                "drift": mesh.samples[-1].drift,
                "disagreement": [sample.disagreement for sample in mesh.samples],
            }
        return rows

    def _long(self, num_nodes: int, method: MixingMethod, **faults: float) -> Mesh:
        return Mesh(self._config(num_nodes, method, training=TRAINING, **faults)).run(self._effort.long_rounds)

    def _quality(self, mesh: Mesh) -> dict[str, Any]:
        samples: Sequence[RoundSample] = mesh.samples[len(mesh.samples) // 2 :]
        begun = max(1, mesh.tally.begun)
        return {
            "committed_ratio": mesh.tally.committed / begun,
            "divided_attempts": mesh.tally.divided,
            "differing_views_ratio": mesh.tally.attempts["differing_views"] / max(1, mesh.tally.attempts.total()),
            "lost_ratios": {reason: count / begun for reason, count in sorted(mesh.tally.lost_rounds.items())},
            "staleness_s": [sum(sample.staleness_s[i] for sample in samples) / len(samples) for i in (0, 1)],
            "disagreement": sum(sample.disagreement for sample in samples) / len(samples),
            "kb_a_node_and_round": mesh.samples[-1].sent_bytes / begun / 1e3,
        }

    def _config(
        self,
        num_nodes: int,
        method: MixingMethod,
        *,
        loss_ratio: float = 0.0,
        leaving: float = 0.0,
        training: float = 0.0,
    ) -> MeshConfig:
        nearest = min(self._dht, key=lambda known: abs(known - num_nodes))
        return MeshConfig(
            num_nodes=num_nodes,
            averaging=AveragerConfig(method=method),
            network=NetworkConfig(loss_ratio=loss_ratio),
            dht=self._dht[nearest],
            leaving_per_minute=leaving,
            training=training,
            seed=self._seed,
        )


def _quantiles(known_s: Sequence[float], num_nodes: int) -> dict[str, float | None]:
    """When so many percent of all nodes knew; None if they never did."""
    ordered = sorted(known_s)
    wanted = {percent: -(-num_nodes * percent // 100) for percent in (50, 95, 100)}
    return {
        f"{percent}_percent": ordered[count - 1] if count <= len(ordered) else None for percent, count in wanted.items()
    }
