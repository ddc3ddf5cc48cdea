"""What `docs/scale.md` says of the simulation's figures: every number in it is read from the committed result."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from bench_document import RESULTS

__all__ = ["scale_words"]

LIMITS = {
    "uplink_of_the_hottest_node": "the uplinks of the nodes next to the key are full",
    "uplink_of_every_node": "the uplink of a node with the mean load is full",
    "answer_within_the_timeout": "one answer no longer fits the second that a node waits for it",
    "checking_signatures_one_core": "to check the signatures of what is read takes a core, on the machine of the run",
    "message_limit_of_p2pd": "an answer is larger than p2pd lets pass",
    "peers_of_a_record_book": "a record book is full",
}

NODES = 100
"""The size that is told of in detail."""


def scale_words() -> str:
    """The part of the page that is copied from the result."""
    document = json.loads((RESULTS / "simulate.json").read_text(encoding="utf-8"))
    figures = document["figures"]
    parts = [
        _what_gives_first(figures),
        _averaging(figures),
        _methods(figures["consensus"]),
        _wins(figures),
        _news(figures["consensus"]),
        _churn(figures["churn"]),
    ]
    return "\n\n".join(parts) + "\n"


def _what_gives_first(figures: Mapping[str, Any]) -> str:
    load = next(row for row in figures["dht"] if row["nodes"] == NODES)
    real = next(row for row in figures["dht_real"] if row["nodes"] == NODES)
    said = _wrapped(f"""
        **What gives first is the mesh's one key in the DHT.** Every node reads all records of its mesh from it, again
        and again. A search goes on to its end, {load["finds_a_lookup"]:.0f} requests, and each of them is answered with
        all records: whoever is asked has read them itself a moment ago, and hivemind gives out what is in its cache.
        At {NODES} nodes with records of {load["record_bytes"]:,} bytes an answer takes {load["value_kb"]:.0f} kB; a
        node sends {load["sent_kb_per_s"]:,.0f} kB/s on average, and those next to the key, which every search comes by,
        {load["hottest_sent_kb_per_s"]:,.0f}. hivemind's own nodes, simulated message by message, come to
        {real["sent_kb_per_s"]:,.0f} and {real["hottest_sent_kb_per_s"]:,.0f}. While a node learns it has a new record
        to publish whenever the last one is out, each after a search of its own, and sends
        {load["learning_sent_kb_per_s"]:,.0f} kB/s. With uplinks of 10 Mbit/s, and nobody learning, this is how it goes:
    """)
    given = [f"at {nodes:,} nodes {LIMITS[name]}" for name, nodes in figures["gives_at_nodes"].items()]
    return "\n".join([said, "", *(f"- {line}{'.' if line == given[-1] else ';'}" for line in given)])


def _averaging(figures: Mapping[str, Any]) -> str:
    rows = {row["replicas"]: row for row in _of(figures["consensus"], "group", "none")}
    largest = max(rows)
    whole = [row for row in figures["experts"] if row["committed_ratio"] == 1.0]
    fits = {
        compression: max(row["parameters"] for row in whole if row["compression"] == compression)
        for compression in ("none", "int8")
    }
    return _wrapped(f"""
        **Averaging grows more slowly.** Without faults {largest:,} replicas of one expert are within a thousandth of
        the variance after {rows[largest]["rounds"]} rounds, for {rows[largest]["kb_a_node"] / 1e3:.1f} MB a node,
        against {rows[16]["rounds"]} and {rows[16]["kb_a_node"] / 1e3:.1f} MB of 16: what a node sends in a round
        depends on its group alone. What gives first here is the expert's size. Of those tried, groups of 16 with
        default settings and 10 Mbit/s average every round of up to {fits["none"]:,} parameters as they are and of up to
        {fits["int8"]:,} in int8; the next larger ones miss rounds, or all of them.
    """)


def _methods(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in sorted(rows, key=lambda row: (row["replicas"], row["faults"] != "none")):
        cells = [
            f"{row['replicas']:,}",
            row["faults"],
            row["method"],
            str(row["rounds"] or f"not in time: {row['disagreement_left']:.2g} left"),
            f"{row['kb_a_node'] / 1e3:.1f}" if row["rounds"] else "",
            _percent(row["committed_ratio"]),
            _percent(row["differing_views_ratio"]),
        ]
        lines.append(cells)
    heads = ("replicas", "faults", "method", "rounds", "MB a node", "rounds committed", "attempts of differing views")
    return _table(heads, lines)


def _wins(figures: Mapping[str, Any]) -> str:
    names = {"group": "the group", "hypercube": "the hypercube", "random": "pairing at random"}
    sentences = ["**When each wins.**"]
    for faults in ("none", "loss and churn"):
        rows = [win for win in figures["wins"] if win["faults"] == faults]
        said = []
        for method, name in names.items():
            for what in ("fewest_rounds", "fewest_bytes"):
                sizes = [f"{row['replicas']:,}" for row in rows if row[what] == method]
                if sizes:
                    said.append(f"{name} takes the {what.replace('_', ' ')} at {_listed(sizes)} replicas")
        sentences.append(f"{'Without faults' if faults == 'none' else 'With loss and churn'} {'; '.join(said)}.")
    sentences.append("Of sixteen replicas that learn on, by the share of messages lost:")
    return _wrapped(" ".join(sentences)) + "\n\n" + _losses(figures["loss"])


def _losses(rows: Sequence[Mapping[str, Any]]) -> str:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = []
    for loss in sorted({row["loss_ratio"] for row in rows}):
        own = {row["method"]: row for row in rows if row["loss_ratio"] == loss}
        closest = min(own.values(), key=lambda row: row["disagreement"])["method"]
        lines.append([f"{100 * loss:g} %", *(_percent(own[method]["committed_ratio"]) for method in methods), closest])
    return _table(("lost", *(f"{method}: committed" for method in methods), "keeps them closest together"), lines)


def _news(rows: Sequence[Mapping[str, Any]]) -> str:
    said = []
    for row in _of(rows, "group", "none"):
        if row["replicas"] >= NODES and all(row["known_s"].values()):
            spans = " / ".join(f"{span:.1f}" for span in row["known_s"].values())
            said.append(f"{spans} s among {row['replicas']:,} nodes")
    return _wrapped(f"""
        **A new expert** is known to 50 / 95 / 100 % of the nodes after {_listed(said)}, as long as the DHT answers as
        fast as an idle one: a refresh and a look-up, whatever the size.
    """)


def _churn(rows: Sequence[Mapping[str, Any]]) -> str:
    said = _wrapped("""
        **Staleness** is the age of the average that a replica holds just before the next round, in groups of up to 16
        that learn on, by the share of nodes that leave within a minute:
    """)
    lines = [
        [
            str(row["replicas"]),
            f"{100 * row['leaving_per_minute']:g} %",
            _percent(row["silent_ratio"]),
            _percent(row["committed_ratio"]),
            _percent(row["differing_views_ratio"]),
            *(f"{age_s:.1f} s" for age_s in row["staleness_s"]),
        ]
        for row in rows
    ]
    heads = (
        "replicas",
        "leave",
        "of them silently",
        "rounds committed",
        "attempts of differing views",
        "median",
        "95 %",
    )
    return f"{said}\n\n{_table(heads, lines)}"


def _of(rows: Sequence[Mapping[str, Any]], method: str, faults: str) -> list[Mapping[str, Any]]:
    return [row for row in rows if (row["method"], row["faults"]) == (method, faults)]


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def _percent(ratio: float) -> str:
    return f"{100 * ratio:.1f} %"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows))
