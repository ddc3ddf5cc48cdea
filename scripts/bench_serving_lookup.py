"""A thousand experts in the DHT: what a fresh client needs to know them all, also when 30% of the peers are dead."""

from statistics import median
from typing import Any

from bench_children import together
from bench_stage import Stage

__all__ = ["measure_look_ups"]

PEERS, EXPERTS_EACH = 20, 50
PEERS_EACH = 2
"""Peers of a process: each with a p2pd, a DHT node and a record of its own, on one loop."""

DEAD_PROCESSES = 3
"""6 of 20 peers."""


def measure_look_ups(stage: Stage) -> dict[str, Any]:
    """Milliseconds of looking up all experts, with all peers alive and with 30% of them killed."""
    _ = stage.ground  # its spec and trunk are in the folder
    stage.tell(f"look-up: {PEERS} peers with {EXPERTS_EACH} experts each are starting")
    with stage.hands(PEERS // PEERS_EACH + 1) as (*heralds, client):
        how = {"folder": str(stage.folder), "experts": EXPERTS_EACH}
        numbers = [list(range(first, first + PEERS_EACH)) for first in range(0, PEERS, PEERS_EACH)]
        (first, *_) = heralds[0].call("advertise", join=[], numbers=numbers[0], **how)
        rest = zip(heralds[1:], numbers[1:], strict=True)
        together((herald, "advertise", {"join": [first], "numbers": own, **how}) for herald, own in rest)
        together((herald, "publish", {}) for herald in heralds)
        looking = {"folder": str(stage.folder), "address": first, "repeats": stage.effort.look_ups}
        stage.tell(f"look-up: by {stage.effort.look_ups} fresh clients, all peers alive")
        alive = client.call("look_up", **looking)
        for herald in heralds[-DEAD_PROCESSES:]:
            herald.kill()
        stage.tell(
            f"look-up: by {stage.effort.look_ups} fresh clients, {DEAD_PROCESSES * PEERS_EACH} of {PEERS} peers killed"
        )
        dead = client.call("look_up", **looking)
    return {
        "all_alive": _medians(alive, PEERS),
        "30_dead": _medians(dead, PEERS - DEAD_PROCESSES * PEERS_EACH),
        "experts": PEERS * EXPERTS_EACH,
        "peers": PEERS,
    }


def _medians(outcome: dict[str, Any], num_live: int) -> dict[str, Any]:
    """Of each span; cold is the first look-up and the listing made of it.

    Args:
        outcome: As `bench_serving_heralds.look_up` returns it.
        num_live: The first so many peers were alive: how many of their experts were listed, and of all.
    """
    spans = {name: outcome[name] for name in ("refresh", "listing", "again", "cached")}
    cold = [refresh + listing for refresh, listing in zip(outcome["refresh"], outcome["listing"], strict=True)]
    live = {f"herald-{number}" for number in range(num_live)}
    found = [sum(number for name, number in one.items() if name in live) for one in outcome["found"]]
    return {
        "cold_ms": median(cold),
        **{f"{name}_ms": median(values) for name, values in spans.items()},
        "samples_ms": spans,
        "live_found": found,
        "live": num_live * EXPERTS_EACH,
        "listed": [sum(one.values()) for one in outcome["found"]],
    }
