"""The table of `simulate.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["table_of"]


def table_of(document: Mapping[str, Any]) -> str:
    """What the document says, for a terminal."""
    figures = document["figures"]
    parts = [
        _consensus(figures["consensus"]),
        _quality("loss, 16 replicas", figures["loss"], ("method", "loss_ratio")),
        _quality("churn", figures["churn"], ("replicas", "leaving_per_minute", "silent_ratio")),
        _quality("expert, 16 replicas", figures["experts"], ("compression", "parameters")),
        _quality("nothing learned", figures["idle"], ("replicas", "group")),
        _variants(figures["variants"]),
        _partition(figures["partition"]),
        _dht(figures["dht"], figures["dht_real"]),
        _limits(figures["gives_at_nodes"]),
    ]
    return "\n\n".join(parts)


def _consensus(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = f"{'rounds':>7}{'kB/node':>9}{'commits':>9}{'drift':>9}{'stale p50':>10}{'p95':>6}"
    lines = [f"{'consensus':<34}{heads}{'known 50%':>10}{'95%':>6}{'100%':>6}"]
    for row in rows:
        name = f"{row['method']}, {row['replicas']}, {row['faults']}"
        known = row["known_s"].values()
        cells = [
            _cell(row["rounds"], 7, 0),
            _cell(row["kb_a_node"], 9, 0),
            _cell(row["committed_ratio"], 9, 3),
            f"{row['drift']:>9.1e}",
            *(_cell(age, width, 1) for age, width in zip(row["staleness_s"], (10, 6), strict=True)),
            *(_cell(span, width, 1) for span, width in zip(known, (10, 6, 6), strict=True)),
        ]
        lines.append(f"{name:<34}{''.join(cells)}")
    return "\n".join(lines)


def _quality(title: str, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    lines = [f"{title:<34}{'commits':>9}{'kB a round':>12}{'stale p50':>10}{'p95':>6}{'disagree':>10}"]
    for row in rows:
        stale = row.get("staleness_s", (None, None))
        cells = [
            _cell(row["committed_ratio"], 9, 3),
            _cell(row["kb_a_node_and_round"], 12, 0),
            _cell(stale[0], 10, 1),
            _cell(stale[1], 6, 1),
            _cell(row.get("disagreement"), 10, 4),
        ]
        lines.append(f"{', '.join(str(row[name]) for name in names):<34}{''.join(cells)}")
    return "\n".join(lines)


def _variants(variants: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"{'100 replicas':<34}{'rounds':>9}{'kB a node':>12}{'drift':>9}"]
    for name, row in variants.items():
        lines.append(f"{name:<34}{row['rounds']:>9}{row['kb_a_node']:>12.0f}{row['drift']:>9.1e}")
    return "\n".join(lines)


def _partition(partition: Mapping[str, Any]) -> str:
    lines = [f"parted for {partition['parted_rounds']} rounds; disagreement by round"]
    for name, course in partition["courses"].items():
        lines.append(f"{name:<20}{' '.join(f'{value:8.1e}' for value in course['disagreement'])}")
    return "\n".join(lines)


def _dht(rows: Sequence[Mapping[str, Any]], real: Sequence[Mapping[str, Any]]) -> str:
    heads = (
        f"{'value kB':>9}{'requests/s':>11}{'kB/s':>9}{'learning':>10}{'hottest':>11}{'of a core':>10}{'look-up s':>10}"
    )
    lines = [f"{'DHT, nodes':<14}{heads}"]
    for row in rows:
        cells = [
            _cell(row["value_kb"], 9, 0),
            _cell(row["requests_per_s"], 11, 1),
            _cell(row["sent_kb_per_s"], 9, 0),
            _cell(row["learning_sent_kb_per_s"], 10, 0),
            _cell(row["hottest_sent_kb_per_s"], 11, 0),
            _cell(row["checking_ratio"], 10, 2),
            _cell(row["lookup_s"][0], 10, 2),
        ]
        lines.append(f"{row['nodes']:<14}{''.join(cells)}")
    for row in real:
        numbers = (
            f"{row['requests_per_s']:>11.1f}{row['sent_kb_per_s']:>9.0f}{'':>10}{row['hottest_sent_kb_per_s']:>11.0f}"
        )
        lines.append(f"{row['nodes']:<6}hivemind{'':>9}{numbers}{'':>10}{row['lookup_s'][0]:>10.2f}")
    return "\n".join(lines)


def _limits(limits: Mapping[str, int]) -> str:
    return "\n".join(["gives at nodes", *(f"{name:<34}{nodes:>7}" for name, nodes in limits.items())])


def _cell(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"
