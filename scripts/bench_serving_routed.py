"""Routed inference over peers that are processes: questions to eight at once, all test images, and a replica killed."""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

import numpy as np
from bench_children import Child, together
from bench_node import BenchFailed, Node
from bench_serving_figures import Paced, interruption_of, latencies_ms, p50, paced_from
from bench_serving_mesh import Expert
from bench_stage import Stage, address_of, settings_of

__all__ = ["Eight", "measure_failover"]

PAIRS = (("0", "1"), ("2", "3"), ("4", "5"), ("6", "7"), ("8", "9"), ("0", "2"), ("4", "6"), ("1", "8"))
"""Classes of the eight experts, one a peer."""

DELAY_S = 0.1

REPLICAS = 3
FAILOVER_RATE_PER_S = 100.0
BEFORE_S, AFTER_S = 3.0, 5.0
"""Of steady load around a kill."""

SHOWN_S = 1.0
"""Of that, request by request in the document of the kill that cost most."""


class Eight:
    """Eight peers with an expert each, in processes of their own, and a client that has their spec, trunk and router.

    Args:
        stage: Where the processes belong.
        resources: Give them back.
    """

    def __init__(self, stage: Stage, resources: ExitStack) -> None:
        self._stage = stage
        ground = stage.ground
        stage.tell("routed: eight peers and a client are starting")
        self._experts = [ground.trained(*classes) for classes in PAIRS]
        homes = [
            ground.home(f"peer-{number}", [expert], knows_router=number == 0, config=settings_of())
            for number, expert in enumerate(self._experts)
        ]
        *self._peers, self._client = resources.enter_context(stage.hands(len(PAIRS) + 1))
        first = self._peers[0].call("open_peer", home=str(homes[0].path), join=[])
        others = zip(self._peers[1:], homes[1:], strict=True)
        orders = ((peer, "open_peer", {"home": str(home.path), "join": [first]}) for peer, home in others)
        addresses = [first, *together(orders)]
        self._to_all("announce")
        where = self._client.call("join_mesh", addresses=addresses, experts=len(PAIRS), replicas=len(PAIRS))
        for number, (expert, address) in enumerate(zip(self._experts, addresses, strict=True)):
            if where[expert.uid] != [address.rpartition("/")[2]]:
                raise BenchFailed(f"an expert is not where it should be: {where}")
            how = {"uid": expert.uid, "sizes": [1], "is_checked": False}
            self._client.call("connect", way=f"ours-{number}", address=address, **how)
        self._to_all("settle")
        self._client.call("settle")

    def fan_out(self) -> dict[str, Any]:
        """Milliseconds of a routed question to all eight, each delayed, and of asking them one after another."""
        self._to_all("delay", seconds=DELAY_S)
        together_ms, sequential_ms = [], []
        self._client.call("one_question", top_k=len(PAIRS))
        for number in range(self._stage.effort.questions):
            self._stage.tell(f"fan-out: question {number + 1} of {self._stage.effort.questions}")
            answer = self._client.call("one_question", top_k=len(PAIRS))
            if len(answer["peers"]) != len(PAIRS) or answer["missing"]:
                raise BenchFailed(f"not all eight answered: {answer}")
            together_ms.append(answer["ms"])
            names = [f"ours-{number}/1" for number in range(len(PAIRS))]
            sequential_ms.append(self._client.call("one_after_another", names=names))
        self._to_all("delay", seconds=0.0)
        ratio = median(together_ms) / median(sequential_ms)
        return {"ratio": ratio, "routed_ms": together_ms, "sequential_ms": sequential_ms, "delay_s": DELAY_S}

    def accuracy(self) -> dict[str, Any]:
        """Of routed inference over these peers and of the same computation in this process, on the test images."""
        ground, outcome = self._stage.ground, {}
        labels = ground.test.labels
        for top_k in (1, 2, len(PAIRS)):
            self._stage.tell(f"accuracy: {len(labels)} test images, top {top_k}")
            routed = self._client.call("all_images", top_k=top_k)
            here, outputs_BC = ground.answer_here(self._experts, top_k=top_k)
            if routed["missing"] or (top_k == len(PAIRS) and len(routed["peers"]) != len(PAIRS)):
                raise BenchFailed(f"not all experts answered: {routed['missing']} of a row is missing")
            outcome[top_k] = {
                "routed": _accuracy(routed["predictions"], labels),
                "in_one_process": _accuracy(here, labels),
                "largest_difference": float(np.abs(np.array(routed["outputs"]) - outputs_BC).max()),
                "differing_predictions": sum(a != b for a, b in zip(routed["predictions"], here, strict=True)),
            }
        return {"images": len(labels), "by_top_k": outcome}

    def _to_all(self, command: str, **arguments: Any) -> None:
        together((peer, command, arguments) for peer in self._peers)


def measure_failover(stage: Stage) -> dict[str, Any]:
    """What requests around the SIGKILL of one of three daemons with the same expert took, kill by kill."""
    ground = stage.ground
    expert = ground.trained(*ground.train.classes)
    stage.tell("failover: starting three daemons with a replica each")
    kills: list[dict[str, Any]] = []
    for number in range(stage.effort.kills):
        with ExitStack() as resources:
            (client,) = resources.enter_context(stage.hands(1))
            nodes = _replicas(stage, expert, resources, f"kill-{number}")
            addresses = [address_of(node) for node in nodes]
            client.call("join_mesh", addresses=addresses[::-1], experts=1, replicas=REPLICAS)
            client.call("settle")
            kills.append(_kill_one(stage, client, nodes[number % REPLICAS], number))
    requests = sum(kill["requests"] for kill in kills)
    worst = max(kills, key=lambda kill: kill["failover_s"])
    timeline = worst["timeline"]
    for kill in kills:
        del kill["timeline"]
    return {
        "failover_s": max(kill["failover_s"] for kill in kills),
        "success_ratio": 1 - sum(kill["unanswered"] for kill in kills) / requests,
        "requests": requests,
        "rate_per_s": FAILOVER_RATE_PER_S,
        "kills": kills,
        "timeline": timeline,
    }


def _replicas(stage: Stage, expert: Expert, resources: ExitStack, name: str) -> list[Node]:
    """Three daemons that serve the expert and know each other."""
    ground, nodes = stage.ground, []
    join: list[str] = []
    for number in range(REPLICAS):
        config = settings_of(net={"join": join, "refresh": "500ms"})
        home = ground.home(f"{name}-replica-{number}", [expert], knows_router=number == 0, config=config)
        nodes.append(resources.enter_context(Node(home)))
        if number == 0:
            nodes[0].wait_ready()
            join = [address_of(nodes[0])]
    for node in nodes:
        node.wait_until("in sight of all", lambda status: status["peers"] == REPLICAS)
    return nodes


def _kill_one(stage: Stage, client: Child, node: Node, number: int) -> dict[str, Any]:
    stage.tell(f"failover: kill {number + 1} of {stage.effort.kills}, at {FAILOVER_RATE_PER_S:g} questions a second")
    begin_at_s = time.monotonic() + 0.5
    client.send(
        "paced",
        name="image",
        rate_per_s=FAILOVER_RATE_PER_S,
        requests=round(FAILOVER_RATE_PER_S * (BEFORE_S + AFTER_S)),
        seed=stage.seed + number,
        begin_at_s=begin_at_s,
    )
    time.sleep(begin_at_s + BEFORE_S - time.monotonic())
    killed_s = time.monotonic() - begin_at_s
    node.kill()
    outcome = client.answer()
    requests, hit = paced_from(outcome), [int(number) for number in outcome["notes"]]
    interruption = interruption_of(requests, killed_s=killed_s, hit=hit, within_s=AFTER_S)
    stage.tell(f"failover: {interruption}")
    return {
        **interruption._asdict(),
        "killed_s": killed_s,
        "before_p50_ms": p50(latencies_ms([one for one in requests if one.due_s < killed_s])),
        "timeline": _timeline(requests, killed_s, hit),
    }


def _timeline(requests: Sequence[Paced], killed_s: float, hit: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """When after the kill requests were due and how long they took, by what became of them."""
    by_state: dict[str, dict[str, list[float]]] = {}
    for number, one in enumerate(requests):
        after_s = one.due_s - killed_s
        if -SHOWN_S <= after_s < SHOWN_S:
            state = "unanswered" if one.error else "hit" if number in hit else "answered"
            of_state = by_state.setdefault(state, {"after_s": [], "ms": []})
            of_state["after_s"].append(round(after_s, 3))
            of_state["ms"].append(round(1e3 * (one.ended_s - one.due_s), 2))
    return by_state


def _accuracy(predictions: Any, labels: Any) -> float:
    """In percent."""
    return 100 * sum(a == b for a, b in zip(predictions, labels, strict=True)) / len(labels)
