"""What a mesh's DHT carries by its size, and at which size which part of it gives."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from hivemind.p2p.p2p_daemon_bindings.control import DEFAULT_MAX_MSG_SIZE
from simulate_dht import Lookups, answer_bytes, store_bytes
from simulate_hivemind import DhtRun
from simulate_network import NetworkConfig

from meshnode.transport.hivemind import DHT_TIMEOUT_S
from protocol.limits import MAX_PEERS_PER_BOOK

__all__ = ["limits_of", "load_of", "measured_load"]


def load_of(
    num_nodes: int, lookups: Lookups, record: bytes, *, refresh_s: float, ttl_s: float, record_verify_s: float
) -> dict[str, Any]:
    """Requests and bytes a second of a node on average, and of the busiest one.

    A node searches once a refresh to read, and once a third of a lease to store. Either search has every node on its
    way answer with all records; after the first it also puts them into the cache of the nearest one
    (``cache_nearest``). A node that learns has a new record to store whenever the last one is stored.
    """
    answer = answer_bytes(num_nodes, record)
    own, cached = store_bytes(num_nodes, record)
    reads_per_s, renewals_per_s = 1 / (refresh_s + _mean(lookups.lookup_s)), 3 / ttl_s
    searches_per_s = reads_per_s + renewals_per_s
    finds_per_s = lookups.finds * searches_per_s
    stores = min(5, num_nodes - 1)

    def sent_kb_per_s(stores_per_s: float) -> float:
        searches = lookups.finds * (reads_per_s + stores_per_s)
        return (searches * answer + reads_per_s * cached + stores * own * stores_per_s) / 1e3

    return {
        "nodes": num_nodes,
        "record_bytes": len(record),
        "value_kb": answer / 1e3,
        "finds_a_lookup": lookups.finds,
        "requests_per_s": finds_per_s + reads_per_s + stores * renewals_per_s,
        "sent_kb_per_s": sent_kb_per_s(renewals_per_s),
        "learning_sent_kb_per_s": sent_kb_per_s(1 / _mean(lookups.store_s)),
        "hottest_requests_per_s": num_nodes * searches_per_s * lookups.hottest_ratio,
        "hottest_sent_kb_per_s": num_nodes * searches_per_s * lookups.hottest_ratio * answer / 1e3,
        "checked_records_per_s": finds_per_s * num_nodes,
        "checking_ratio": finds_per_s * num_nodes * record_verify_s,
        "lookup_s": [_quantile(lookups.lookup_s, share) for share in (0.5, 0.95)],
    }


def measured_load(run: DhtRun) -> dict[str, Any]:
    """The same of a mesh of real DHT nodes."""
    node_seconds = run.num_nodes * run.measured_s
    return {
        "nodes": run.num_nodes,
        "requests_per_s": run.requests.total() / node_seconds,
        "sent_kb_per_s": run.bytes_sent.total() / node_seconds / 1e3,
        "hottest_sent_kb_per_s": max(run.bytes_sent.values()) / run.measured_s / 1e3,
        "hottest_requests_per_s": max(run.finds_served.values()) / run.measured_s,
        "finds_a_search": run.requests["find"] / (len(run.lookup_s) + len(run.store_s)),
        "records_found_least": min(run.found),
        "lookup_s": [_quantile(run.lookup_s, share) for share in (0.5, 0.95)],
        "known_s": {
            f"{percent}_percent": _quantile(run.known_s, percent / 100) if run.known_s else None
            for percent in (50, 95, 100)
        },
    }


def limits_of(loads: Sequence[dict[str, Any]], network: NetworkConfig) -> dict[str, int]:
    """The number of nodes at which each thing gives, smallest first; between sizes on a line in logarithms."""
    uplink_kb = network.uplink_bytes_per_s / 1e3
    limits = {
        "uplink_of_the_hottest_node": _crossing(loads, "hottest_sent_kb_per_s", uplink_kb),
        "uplink_of_every_node": _crossing(loads, "sent_kb_per_s", uplink_kb),
        "answer_within_the_timeout": _crossing(loads, "value_kb", uplink_kb * DHT_TIMEOUT_S),
        "checking_signatures_one_core": _crossing(loads, "checking_ratio", 1.0),
        "message_limit_of_p2pd": _crossing(loads, "value_kb", DEFAULT_MAX_MSG_SIZE / 1e3),
        "peers_of_a_record_book": MAX_PEERS_PER_BOOK,
    }
    return dict(sorted(((name, nodes) for name, nodes in limits.items() if nodes), key=lambda limit: limit[1]))


def _crossing(loads: Sequence[dict[str, Any]], name: str, most: float) -> int:
    """Nodes at which a load reaches `most`; 0 if no size does."""
    for small, large in pairwise(loads):
        if small[name] < most <= large[name]:
            share = math.log(most / small[name]) / math.log(large[name] / small[name])
            nodes: float = small["nodes"] * (large["nodes"] / small["nodes"]) ** share
            return round(nodes)
    return 0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
