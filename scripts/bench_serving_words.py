"""From what a part has measured to its figures, each with a line of what it was made from: rates, sizes, how many."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from bench_command import Measured
from bench_serving_figures import paired_ratio

__all__ = [
    "accuracy",
    "failover",
    "fan_out",
    "latency",
    "look_ups",
    "overload",
    "slowest",
    "throughput",
    "training",
]

Raw = Mapping[str, Any]


def latency(raw: Raw) -> Measured:
    """Ratios of medians, round by round."""
    figures, how = {}, {}
    for name, rows, rival in (
        ("forward_1kb_p50_over_tcp", 1, "tcp"),
        ("forward_1kb_p50_over_moe_server", 1, "moe"),
        ("forward_1mb_p50_over_raw_stream", 1024, "raw"),
    ):
        ours, theirs = raw["p50_ms"]["ours"][rows], raw["p50_ms"][rival][rows]
        figures[name] = paired_ratio(ours, theirs)
        how[name] = (
            f"p50 {median(ours):.3g} against {median(theirs):.3g} ms, one caller, {raw['calls'][rows]} calls a round, "
            f"median of {len(ours)} rounds"
        )
    p2pd = paired_ratio(raw["p50_ms"]["raw"][1], raw["p50_ms"]["tcp"][1])
    how["forward_1kb_p50_over_tcp"] += f"; a raw stream through both p2pd: {p2pd:.3g}"
    return Measured(figures, how)


def throughput(raw: Raw) -> Measured:
    """Requests a second over those of hivemind's server."""
    name, ours, theirs = "throughput_1kb_c64_over_moe_server", raw["per_s"]["ours"], raw["per_s"]["moe"]
    told = (
        f"{median(ours):,.0f} against {median(theirs):,.0f} a second, {raw['callers']} callers, "
        f"median of {len(ours)} rounds of {raw['span_s']:g} s"
    )
    return Measured({name: paired_ratio(ours, theirs)}, {name: told})


def slowest(raw: Raw) -> Measured:
    """p99 over a unary call's."""
    name, ours, theirs = "forward_64kb_p99_over_unary", raw["p99_ms"]["ours"], raw["p99_ms"]["unary"]
    told = f"p99 {median(ours):.3g} against {median(theirs):.3g} ms, {_p99_terms(raw)}"
    return Measured({name: median(ours) / median(theirs)}, {name: told})


def fan_out(raw: Raw) -> Measured:
    """A routed question over eight in sequence."""
    name, routed, sequential = "fanout8_100ms_over_sequential", raw["routed_ms"], raw["sequential_ms"]
    told = (
        f"{median(routed):.0f} against {median(sequential):.0f} ms, {1e3 * raw['delay_s']:.0f} ms in each handler, "
        f"median of {len(routed)} questions"
    )
    return Measured({name: median(routed) / median(sequential)}, {name: told})


def accuracy(raw: Raw) -> Measured:
    """The difference that the network makes, in points: the largest over the numbers of experts asked."""
    name, by_top_k = "routed_accuracy_delta", raw["by_top_k"]
    delta = max((one["routed"] - one["in_one_process"] for one in by_top_k.values()), key=abs)
    routed = ", ".join(f"{one['routed']:.1f} % with top {top_k}" for top_k, one in by_top_k.items())
    return Measured({name: delta}, {name: f"{routed}; {raw['images']} test images of digits, 8 peers"})


def training(raw: Raw) -> Measured:
    """p99 while the trainer distils over that while it rests."""
    name, p99_ms = "serve_p99_while_training_over_idle", raw["p99_ms"]
    told = f"p99 {median(p99_ms['training']):.3g} against {median(p99_ms['idle']):.3g} ms, {_p99_terms(raw)}"
    return Measured({name: raw["ratio"]}, {name: told})


def overload(raw: Raw) -> Measured:
    """Goodput at ten times the peak's rate over that of the peak."""
    name = "goodput_at_10x_over_peak"
    told = (
        f"{raw['at_10x_per_s']:.1f} against {raw['peak_per_s']:.1f} in time a second, {raw['offered_10x_per_s']:.0f} "
        f"offered, deadline {raw['deadline_s']:g} s, batch {raw['rows']}, median of {len(raw['at_10x'])} runs"
    )
    return Measured({name: raw["ratio"]}, {name: told})


def failover(raw: Raw) -> Measured:
    """The longest that a kill held anything up, and the share of requests that were answered."""
    kills, unanswered = raw["kills"], sum(kill["unanswered"] for kill in raw["kills"])
    figures = {"failover_s": raw["failover_s"], "failover_success_ratio": raw["success_ratio"]}
    hit, longest = sum(kill["hit"] for kill in kills), max(kill["longest_hit_s"] for kill in kills)
    how = {
        "failover_s": f"longest wait or pause over {len(kills)} kills of one of 3 replicas; "
        f"{hit} requests hit, {longest:.3f} s at most",
        "failover_success_ratio": f"{unanswered} of {raw['requests']:,} unanswered, at {raw['rate_per_s']:g}/s",
    }
    return Measured(figures, how)


def look_ups(raw: Raw) -> Measured:
    """Each span of a look-up, with all peers alive and with some dead."""
    said = {
        "cold": "the first refresh after connecting, and the listing",
        "again": "a repeated refresh",
        "cached": "the listing once more",
    }
    figures, how = {}, {}
    for part, suffix in (("all_alive", ""), ("30_dead", "_30_dead")):
        for span, meaning in said.items():
            name = f"lookup_1000_experts_{span}{suffix}_ms"
            figures[name] = raw[part][f"{span}_ms"]
            how[name] = f"{meaning}, median of {len(raw[part]['listed'])} clients"
    name, parts = "lookup_live_experts_found_ratio", [raw["all_alive"], raw["30_dead"]]
    figures[name] = min(min(part["live_found"]) / part["live"] for part in parts)
    told = " and ".join(f"{min(part['live_found'])} of {part['live']}" for part in parts)
    how[name] = f"{told} at {raw['peers']} peers, of which 30% were killed; the least that any client found at once"
    return Measured(figures, how)


def _p99_terms(raw: Raw) -> str:
    """What every p99 has to say of itself."""
    return f"at {raw['rate_per_s']:g}/s, batch {raw['rows']}, n = {raw['requests']:,}, median of {raw['runs']} runs"
