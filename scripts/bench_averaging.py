"""Averaging of replicas: whole rounds, what they cost everybody else, and what faults do to them, beside hivemind's.

Everything runs in processes of its own on loopback, with real p2pd, but for most of the faults, whose groups are on
networks in memory with the node's own code above them. Rivals are measured in the same run, in turn with ours, one
torch thread each and on uvloop. Progress goes to stderr, the table to stdout. The exit code is 0 if every target is
met, 10 if one is missed, 1 if something could not be measured.
"""

import sys
from collections.abc import Mapping

from bench_averaging_daemons import count_processes, measure_training
from bench_averaging_effort import FULL, QUICK
from bench_averaging_plot import draw
from bench_averaging_pull import measure_pulls
from bench_averaging_rounds import Single, Sixteen, measure_stalls
from bench_averaging_trials import over_p2pd, struck_in_memory
from bench_averaging_words import faults, faults_p2pd, processes, pulled, single, sixteen, stalls, training
from bench_command import Bench, Part, Target, alone

TARGETS: Mapping[str, Target | None] = {
    "round16_over_decentralized_averager": Target(0.10),
    "round16_over_allreduce_runner": None,
    "bytes_over_optimum": Target(1.05),
    "single_1e6_over_decentralized_averager": Target(0.25),
    "loop_stall_p99_ms": Target(20),
    "processes_16_experts": Target(3, "="),
    "training_throughput_while_averaging": Target(0.9, ">="),
    "newcomer_pull_over_raw_stream": Target(0.5, ">="),
    "faults_wrong_or_differing": Target(0, "="),
    "faults_recovery_over_deadline": Target(1),
    "faults_survivors_committed_ratio": None,
    "faults_wrong_or_differing_p2pd": Target(0, "="),
    "faults_recovery_over_deadline_p2pd": Target(1),
    "faults_survivors_committed_ratio_p2pd": None,
}
"""Every figure, with what it is held against if with anything."""

_FAULTS = ("faults_wrong_or_differing", "faults_recovery_over_deadline", "faults_survivors_committed_ratio")

PARTS: Mapping[str, Part] = {
    "sixteen": Part(
        Sixteen,
        Sixteen.rounds,
        sixteen,
        ("round16_over_decentralized_averager", "round16_over_allreduce_runner", "bytes_over_optimum"),
    ),
    "single": Part(Single, Single.rounds, single, ("single_1e6_over_decentralized_averager",)),
    "stalls": Part(alone, measure_stalls, stalls, ("loop_stall_p99_ms",)),
    "processes": Part(alone, count_processes, processes, ("processes_16_experts",)),
    "training": Part(alone, measure_training, training, ("training_throughput_while_averaging",)),
    "pulls": Part(alone, measure_pulls, pulled, ("newcomer_pull_over_raw_stream",)),
    "faults": Part(alone, struck_in_memory, faults, _FAULTS),
    "faults_p2pd": Part(alone, over_p2pd, faults_p2pd, tuple(f"{name}_p2pd" for name in _FAULTS)),
}

BENCH = Bench(
    name="bench_averaging",
    about=__doc__,
    targets=TARGETS,
    parts=PARTS,
    draw=draw,
    full=FULL,
    quick=QUICK,
    quick_help="the same on less, within five minutes",
    seed_help="of what replicas learn, and of all faults",
)

if __name__ == "__main__":
    sys.exit(BENCH.main(sys.argv[1:]))
