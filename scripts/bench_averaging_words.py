"""From what a part has measured to its figures, each with a line of what it was made from."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from bench_command import Measured
from bench_serving_figures import paired_ratio

__all__ = ["faults", "faults_p2pd", "processes", "pulled", "single", "sixteen", "stalls", "training"]

Raw = Mapping[str, Any]


def sixteen(raw: Raw) -> Measured:
    """16 experts at once: over hivemind's ways, and the bytes that it takes."""
    ours, runner, averager = (raw[way]["ended_s"] for way in ("ours", "runner", "averager"))
    sent = [sent_bytes / raw["optimum_bytes"] for sent_bytes in raw["ours"]["sent_bytes"]]
    figures = {
        "round16_over_decentralized_averager": paired_ratio(ours, averager),
        "round16_over_allreduce_runner": paired_ratio(ours, runner),
        "bytes_over_optimum": max(sent),
    }
    how = {
        "round16_over_decentralized_averager": f"{_against(raw['ours'], averager)}; hivemind's, "
        f"{raw['members'] * raw['experts']} processes, writes nothing to disk; {_terms(raw)}",
        "round16_over_allreduce_runner": f"{_against(raw['ours'], runner)}; the same commits after a leaderless "
        f"AllReduceRunner take {_ms(runner)} in all, {_ms(raw['runner']['commits_s'])} before the last of them began",
        "bytes_over_optimum": f"{median(raw['ours']['sent_bytes']) / 1e6:.2f} MB of payload by all peers, over "
        f"2 ({raw['members']} - 1) 4 D = {raw['optimum_bytes'] / 1e6:.2f} MB; the worst of {len(sent)} rounds",
    }
    return Measured(figures, how)


def single(raw: Raw) -> Measured:
    """One large expert over hivemind's averager."""
    name, ours, averager = "single_1e6_over_decentralized_averager", raw["ours"], raw["averager"]["ended_s"]
    told = f"{_against(ours, averager)}; AllReduceRunner and a commit {_ms(raw['runner']['ended_s'])}; {_terms(raw)}"
    return Measured({name: paired_ratio(ours["ended_s"], averager)}, {name: told})


def stalls(raw: Raw) -> Measured:
    """p99 of a loop's lateness while a large expert is averaged."""
    name, p99_ms, max_ms = "loop_stall_p99_ms", raw["p99_ms"], raw["max_ms"]
    told = (
        f"at most {max(max_ms['averaging']):.0f} ms; at rest p99 {median(p99_ms['idle']):.2g} ms, a process beside it "
        f"{median(p99_ms['bystander']):.2g} ms; 2 peers, {raw['parameters']:.0e} parameters, "
        f"median of {raw['rounds']} rounds of {raw['round_s']:.2g} s"
    )
    return Measured({name: median(p99_ms["averaging"])}, {name: told})


def processes(raw: Raw) -> Measured:
    """Of a daemon that hosts and averages 16 experts."""
    name, kinds = "processes_16_experts", raw["processes"]
    told = " and ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    return Measured({name: sum(kinds.values())}, {name: f"{told}, after rounds of all {raw['experts']} experts"})


def training(raw: Raw) -> Measured:
    """Steps a second with averaging over those without."""
    name, with_it, without = "training_throughput_while_averaging", raw["per_s"]["averaging"], raw["per_s"]["alone"]
    told = (
        f"{median(with_it):,.0f} against {median(without):,.0f} steps a second, {sum(raw['committed'])} rounds in all "
        f"meanwhile, one every {raw['period_s']:g} s; median of {raw['runs']} runs of {raw['span_s']:g} s"
    )
    return Measured({name: median(with_it) / median(without)}, {name: told})


def faults(raw: Raw) -> Measured:
    """Of members struck on networks in memory."""
    return _struck(raw, "")


def faults_p2pd(raw: Raw) -> Measured:
    """Of members whose p2pd was struck."""
    return _struck(raw, "_p2pd")


def pulled(raw: Raw) -> Measured:
    """A newcomer's bytes a second over those of a raw stream."""
    name, ours, stream = "newcomer_pull_over_raw_stream", raw["mb_per_s"]["pull"], raw["mb_per_s"]["raw"]
    told = (
        f"{median(ours):.0f} against {median(stream):.0f} MB a second, a blob of {raw['mb']:.0f} MB, written to disk "
        f"and checked; median of {len(ours)} pulls"
    )
    return Measured({name: paired_ratio(ours, stream)}, {name: told})


def _struck(raw: Raw, suffix: str) -> Measured:
    by_fault = raw["by_fault"]
    counts = ", ".join(f"{tally['trials']} {fault}" for fault, tally in by_fault.items())
    figures = {
        f"faults_wrong_or_differing{suffix}": raw["wrong"],
        f"faults_recovery_over_deadline{suffix}": raw["recovery_over_deadline"],
        f"faults_survivors_committed_ratio{suffix}": raw["survivors_ratio"],
    }
    how = {
        f"faults_wrong_or_differing{suffix}": f"one of four {counts}, at a random message of a round, a trainer "
        f"reporting to another; {raw['not_healed']} times not all four were one after the next round",
        f"faults_recovery_over_deadline{suffix}": f"p99 of the time until all survivors had committed, over "
        f"the {raw['timeout_s']:g} s of a round; {_by_fault(by_fault, 'recovery_over_deadline')}; "
        f"p50 {raw['recovery_over_deadline_p50']:.2g}",
        f"faults_survivors_committed_ratio{suffix}": f"in the round that was struck; "
        f"{_by_fault(by_fault, 'survivors_ratio')}",
    }
    return Measured(figures, how)


def _by_fault(by_fault: Raw, name: str) -> str:
    return ", ".join(f"{fault} {tally[name]:.3g}" for fault, tally in by_fault.items())


def _against(ours: Raw, rival_s: Sequence[float]) -> str:
    return f"{_ms(ours['ended_s'])}, {_ms(ours['commits_s'])} before the last commit began, against {_ms(rival_s)}"


def _ms(seconds: Sequence[float]) -> str:
    return f"{1e3 * median(seconds):.0f} ms"


def _terms(raw: Raw) -> str:
    return f"{raw['members']} peers, a process each, median of {raw['rounds']} rounds"
