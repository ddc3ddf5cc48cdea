"""Routed inference as a mesh serves it: latency, throughput, overload, death of a replica, each beside its rival.

Everything runs in processes of its own on loopback, with real p2pd; ours are `meshnode run` daemons, but for peers that
are slowed down on purpose or have no expert. Rivals are measured in the same run, in turn with ours, with the same
module, the same tensors, one torch thread each and on uvloop. Progress goes to stderr, the table to stdout. The exit
code is 0 if every target is met, 10 if one is missed, 1 if something could not be measured.
"""

import sys
from collections.abc import Mapping

from bench_command import Bench, Part, Target, alone
from bench_serving_calls import Ways
from bench_serving_effort import FULL, QUICK
from bench_serving_lookup import measure_look_ups
from bench_serving_overload import measure_overload
from bench_serving_plot import draw
from bench_serving_routed import Eight, measure_failover
from bench_serving_training import measure_while_training
from bench_serving_words import accuracy, failover, fan_out, latency, look_ups, overload, slowest, throughput
from bench_serving_words import training as while_training

TARGETS: Mapping[str, Target | None] = {
    "forward_1kb_p50_over_tcp": Target(5),
    "forward_1kb_p50_over_moe_server": Target(0.10),
    "forward_1mb_p50_over_raw_stream": Target(1.5),
    "throughput_1kb_c64_over_moe_server": Target(4, ">="),
    "forward_64kb_p99_over_unary": Target(0.1),
    "fanout8_100ms_over_sequential": Target(0.15),
    "routed_accuracy_delta": Target(0, "="),
    "serve_p99_while_training_over_idle": Target(2),
    "goodput_at_10x_over_peak": Target(0.9, ">="),
    "failover_s": Target(1),
    "failover_success_ratio": Target(0.999, ">="),
    "lookup_1000_experts_cold_ms": None,
    "lookup_1000_experts_again_ms": None,
    "lookup_1000_experts_cached_ms": None,
    "lookup_1000_experts_cold_30_dead_ms": None,
    "lookup_1000_experts_again_30_dead_ms": None,
    "lookup_1000_experts_cached_30_dead_ms": None,
    "lookup_live_experts_found_ratio": Target(1, "="),
}
"""Every figure, with what it is held against if with anything."""

_LOOK_UPS = tuple(name for name in TARGETS if name.startswith("lookup_"))

PARTS: Mapping[str, Part] = {
    "latency": Part(
        Ways,
        Ways.latency,
        latency,
        ("forward_1kb_p50_over_tcp", "forward_1kb_p50_over_moe_server", "forward_1mb_p50_over_raw_stream"),
    ),
    "throughput": Part(Ways, Ways.throughput, throughput, ("throughput_1kb_c64_over_moe_server",)),
    "slowest": Part(Ways, Ways.slowest, slowest, ("forward_64kb_p99_over_unary",)),
    "fan_out": Part(Eight, Eight.fan_out, fan_out, ("fanout8_100ms_over_sequential",)),
    "accuracy": Part(Eight, Eight.accuracy, accuracy, ("routed_accuracy_delta",)),
    "training": Part(alone, measure_while_training, while_training, ("serve_p99_while_training_over_idle",)),
    "overload": Part(alone, measure_overload, overload, ("goodput_at_10x_over_peak",)),
    "failover": Part(alone, measure_failover, failover, ("failover_s", "failover_success_ratio")),
    "look_ups": Part(alone, measure_look_ups, look_ups, _LOOK_UPS),
}

BENCH = Bench(
    name="bench_serving",
    about=__doc__,
    targets=TARGETS,
    parts=PARTS,
    draw=draw,
    full=FULL,
    quick=QUICK,
    quick_help="the same on less, within four minutes",
    seed_help="of the arrivals of requests",
)

if __name__ == "__main__":
    sys.exit(BENCH.main(sys.argv[1:]))
