"""A run in words: made from its document, so that what people read is what programs read."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Table", "facts_of", "latency_of", "load_in_words", "peers_of"]

_FIGURES = ("p50", "p90", "p99", "p99_9", "max")


class Table(NamedTuple):
    """A heading, the names of the columns, and the rows."""

    heading: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


def load_in_words(load: Mapping[str, Any]) -> str:
    """What was asked for."""
    span = f"for {load['duration_s']:g} s"
    size = f"batch {load['batch']}" + (f", top-k {load['top_k']}" if load["top_k"] else "")
    if load["loop"] == "closed":
        workers = "1 worker" if load["concurrency"] == 1 else f"{load['concurrency']} workers"
        return f"closed loop of {workers} {span}, {size}"
    return f"open loop at {load['rate_per_s']:g}/s {span}, {size}, at most {load['concurrency']} outstanding"


def facts_of(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value, a line each."""
    mesh, load, requests, traffic = (document[name] for name in ("mesh", "load", "requests", "traffic"))
    seen = (f"{name} {mesh[name]}" for name in ("experts", "replicas", "peers"))
    ratio = document["answered_ratio"]
    parts = [f"{requests['answered']} answered" + ("" if ratio is None else f" ({_percent(ratio)})")]
    parts += [f"{requests['partial']} of them in part"]
    parts += [f"{requests[name]} {name.replace('_', ' ')}" for name in ("failed", "not_sent")]
    parts += [f"{requests['cut_off']} cut off"] if requests["cut_off"] else []
    offered = document["offered_per_s"]
    rates = [] if offered is None else [f"{offered:.1f}/s offered"]
    rates += [f"{document['answered_per_s']:.1f}/s answered", f"{document['rows_per_s']:.1f} rows/s"]
    failures = ", ".join(f"{count} {code}" for code, count in document["failures"].items())
    return [
        ("mesh", f"{mesh['name']} {mesh['id'][:12]}: {', '.join(seen)}"),
        ("load", load_in_words(load)),
        ("images", load["images"]),
        ("warm-up", f"{load['warm_up_s']:g} s, {requests['warm_up']} requests, not counted below"),
        ("requests", f"{requests['offered']}: {', '.join(parts)}"),
        ("failures", failures or "none"),
        ("rate", ", ".join(rates)),
        ("traffic", f"{_kb(traffic['sent_bytes'])} sent, {_kb(traffic['received_bytes'])} received"),
    ]


def latency_of(document: Mapping[str, Any]) -> Table:
    """Percentiles of all answers, with how many there are and under what load."""
    load = document["load"]
    is_open = load["loop"] == "open"
    under = f"{document['offered_per_s']:.1f}/s offered" if is_open else f"{load['concurrency']} at a time"
    since = "from when a request was due" if is_open else "from when a request was sent"
    rows = [("to the answer", document["latency_ms"]), ("of it, asking peers", document["asking_ms"])]
    rows += [("of it, until sent", document["late_ms"])] if is_open else []
    return Table(
        f"ms {since}, batch {load['batch']}, {under}:",
        ("", "N", "P50", "P90", "P99", "P99.9", "MAX"),
        [(name, spread["count"], *(_ms(spread[figure]) for figure in _FIGURES)) for name, spread in rows],
    )


def peers_of(document: Mapping[str, Any]) -> Table:
    """Who answered."""
    rows = [
        (
            peer["name"],
            peer["rows"],
            "-" if peer["share"] is None else f"{100 * peer['share']:.1f}%",
            peer["calls"],
            peer["failures"],
            _ms(peer["call_ms"]["p50"]),
        )
        for peer in document["peers"]
    ]
    return Table("who answered, ms of a call:", ("PEER", "ROWS", "SHARE", "CALLS", "FAILED", "P50"), rows)


def _percent(ratio: float) -> str:
    # Cut off, not rounded: what is not all must not read as 100%.
    return f"{int(1e4 * ratio + 1e-6) / 100:g}%"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _kb(num_bytes: int) -> str:
    return f"{num_bytes / 1000:,.0f} kB"
