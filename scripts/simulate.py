"""Meshes of up to 10,000 nodes on a virtual clock and network: what averaging and the DHT cost, and what gives first.

Every simulated node runs the state machine of `protocol.rounds` and works out its groups with `protocol.membership`
and `protocol.mixing` from the records that it has read; parts are exchanged with `experts.averaging.Share`, and what
they weigh is the real encoding. The driver around them is rewritten for the virtual clock, after `meshnode.averaging`.
DHTs are hivemind's own nodes up to a hundred of them, and its own search over sampled routing tables beyond.

Latency is lognormal with a median of 50 ms one way; every node sends at most 10 Mbit/s. ``loss and churn`` means that
one message in a thousand vanishes and 2% of the nodes leave within a minute, half of them without a word. Progress goes
to stderr, the table to stdout. A seed replays exactly, but for `checking_ratio`, which belongs to the machine.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bench_document import RESULTS, bench_document, say, write_document
from simulate_dht import sample_lookups, sealed_record, verify_s
from simulate_hivemind import run_dht
from simulate_load import limits_of, load_of, measured_load
from simulate_mesh import DhtTimes, MeshConfig
from simulate_network import NetworkConfig
from simulate_study import FAULTS, METHODS, TARGET, Effort, Study
from simulate_table import table_of

from meshnode.errors import ExitCode

FULL = Effort(sizes=(8, 16, 100, 1000, 10_000))
QUICK = Effort(
    sizes=(8, 16, 100), long_rounds=8, losses=(0.0, 1e-3, 1e-2), leaving=(0.0, 0.02), parameters=(100_000, 1_000_000)
)
DHT_SIZES = (10, 30, 100, 300, 1000, 3000, 10_000)
REAL_DHT_SIZES = (10, 30, 100)
LOOKUPS = 100
"""Sampled at each size."""


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    options = _parse(arguments)
    # Events make many objects and few cycles: looking for these at every turn takes a third of the time.
    gc.set_threshold(200_000, 20, 20)
    document = _simulate(options)
    if options.write:
        # It takes a second to import what draws.
        from simulate_plot import draw  # noqa: PLC0415

        write_document(document, "simulate")
        draw(document, RESULTS / "simulate.png")
    print(json.dumps(document, indent=2) if options.json else table_of(document))
    return ExitCode.OK


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    parser.add_argument("--quick", action="store_true", help="up to 100 replicas and fewer rounds; a minute")
    parser.add_argument("--write", action="store_true", help="also put it into docs/results/, with a plot")
    parser.add_argument("--nodes", type=int, nargs="+", metavar="N", help="sizes at which methods are compared")
    parser.add_argument("--seed", type=int, default=0, help="of every random stream (default: 0)")
    options = parser.parse_args(arguments)
    if options.write and (options.quick or options.nodes):
        parser.error("--write is for the full study: leave out --quick and --nodes")
    return options


def _simulate(options: argparse.Namespace) -> dict[str, Any]:
    began_s = time.perf_counter()
    effort = QUICK if options.quick else FULL
    if options.nodes:
        effort = effort._replace(sizes=tuple(sorted(options.nodes)))
    loads, real_loads, times = _dht(options)
    study = Study(effort, times, options.seed)
    consensus = list(study.consensus())
    loss = study.loss()
    figures = {
        "consensus": [_headline(row) for row in consensus],
        "wins": _wins(consensus),
        "loss": loss,
        "churn": study.churn(),
        "partition": study.partition(),
        "idle": study.idle(),
        "experts": study.sizes_of_experts(),
        "variants": study.variants(),
        "dht": loads,
        "dht_real": real_loads,
        "gives_at_nodes": limits_of(loads, NetworkConfig()),
    }
    mesh = MeshConfig(num_nodes=1)
    return bench_document(
        "python scripts/simulate.py",
        [options.seed],
        figures,
        measured={
            "consensus": consensus,
            "target": TARGET,
            "faults": {name: {"loss_ratio": loss, "leaving_per_minute": gone} for name, (loss, gone) in FAULTS.items()},
            "averaging": _settings(mesh.averaging),
            "network": _settings(mesh.network),
            "parameters": mesh.num_parameters,
            "refresh_s": mesh.refresh_s,
            "record_ttl_s": mesh.record_ttl_s,
            "seconds": time.perf_counter() - began_s,
        },
        digits=9,
    )


def _dht(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[int, DhtTimes]]:
    """Loads by size, those of real nodes, and how long look-ups and stores take."""
    network, mesh, record = NetworkConfig(), MeshConfig(num_nodes=1), sealed_record()
    each_s = verify_s(record)
    loads, times = [], {}
    for num_nodes in DHT_SIZES:
        lookups = sample_lookups(num_nodes, LOOKUPS, network, options.seed)
        loads.append(
            load_of(
                num_nodes,
                lookups,
                record,
                refresh_s=mesh.refresh_s,
                ttl_s=mesh.record_ttl_s,
                record_verify_s=each_s,
            )
        )
        times[num_nodes] = DhtTimes(lookup_s=lookups.lookup_s, store_s=lookups.store_s)
    real_loads = []
    for num_nodes in REAL_DHT_SIZES[: 2 if options.quick else None]:
        run = run_dht(num_nodes, record, network, refresh_s=mesh.refresh_s, ttl_s=mesh.record_ttl_s, seed=options.seed)
        real_loads.append(measured_load(run))
        say(f"hivemind's DHT of {num_nodes} nodes: {real_loads[-1]['sent_kb_per_s']:.0f} kB/s a node")
    return loads, real_loads, times


def _headline(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in {"disagreement", "attempts", "events"}}


def _wins(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """At each size, which of the methods that come to consensus takes the fewest rounds, and which the fewest bytes."""
    wins = []
    for faults in FAULTS:
        for num_nodes in sorted({row["replicas"] for row in rows}):
            arrived = [row for row in rows if (row["replicas"], row["faults"]) == (num_nodes, faults) and row["rounds"]]
            if arrived:
                by_rounds = min(arrived, key=lambda row: (row["rounds"], METHODS.index(row["method"])))
                by_bytes = min(arrived, key=lambda row: row["kb_a_node"])
                wins.append(
                    {
                        "replicas": num_nodes,
                        "faults": faults,
                        "fewest_rounds": by_rounds["method"],
                        "fewest_bytes": by_bytes["method"],
                        "of": [row["method"] for row in arrived],
                    }
                )
    return wins


def _settings(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
