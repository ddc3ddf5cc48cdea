"""What the README says was measured, row by row, each read from the committed result of a benchmark."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bench_document import RESULTS

__all__ = ["claim_rows"]

Figures = Mapping[str, Any]


class _Claim(NamedTuple):
    what: str
    measured: Callable[[Figures], str]
    held_against: str
    bench: str


def _accuracy(figure: Mapping[str, Any]) -> str:
    return f"{figure['accuracy']:.1f} ± {figure['std']:.1f} %"


def _sent(figure: Mapping[str, Any]) -> str:
    return f"{_accuracy(figure)}; {figure['accuracy_8_bits']:.1f} % from {figure['wire_kb']:,.0f} kB in 8 bits"


def _over(scenario: str, rival: str, on: str = "trunk") -> Callable[[Figures], str]:
    def points(figures: Figures) -> str:
        rows = figures[scenario]
        experts, router = rows[f"routed experts, {on}"]["accuracy"], rows[f"{rival}, {on}"]["accuracy"]
        return f"{experts:.1f} against {router:.1f} %: {experts - router:+.1f} points"

    return points


def _over_with_bytes(scenario: str, rival: str) -> Callable[[Figures], str]:
    def points(figures: Figures) -> str:
        kept = (figures[scenario][f"{name}, trunk"]["kept_kb"] for name in ("routed experts", rival))
        return f"{_over(scenario, rival)(figures)}; {' against '.join(f'{kb:,.0f}' for kb in kept)} kB kept"

    return points


def _method(scenario: str, row: str) -> Callable[[Figures], str]:
    return lambda figures: _accuracy(figures[scenario][row])


def _gains(name: str) -> Callable[[Figures], str]:
    return lambda figures: ", ".join(f"{points:+.1f} at {int(n):,}" for n, points in figures[name].items())


def _failover(figures: Figures) -> str:
    return f"{1e3 * figures['failover_s']:.0f} ms; {100 * figures['failover_success_ratio']:.2f} % answered"


def _learned(figures: Figures) -> str:
    row = figures["split-fashion-mnist, tasks"]
    return f"{_accuracy(row)}; forgetting {row['forgetting']:.1f} points"


def _four_nodes(figures: Figures) -> str:
    one, four = figures["one node"], figures["four nodes"]
    return f"{four['accuracy']:.1f} against {one['accuracy']:.1f} %; {four['sent_kb'] / 1000:.1f} MB sent by all"


def _late_joiner(figures: Figures) -> str:
    late = figures["late_joiner"]
    behind = figures["four nodes"]["accuracy"] - late["accuracy_by_statistics"]
    return f"{behind:.1f} points, {late['statistics_s']:.0f} s, {late['statistics_kb'] / 1000:.1f} MB"


def _tidied(figures: Figures) -> str:
    before, after = (figures["even"]["tidied"][name] for name in ("all kept", "merged and retired"))
    experts = f"{before['experts']:.0f} to {after['experts']:.0f} experts"
    return f"{experts}, {before['accuracy']:.1f} to {after['accuracy']:.1f} %"


def _specialization(figures: Figures) -> str:
    usage, information = figures["mixture_max_usage_ratio"], figures["mixture_mutual_information_nats"]
    return f"{usage:.2f} of at least 0.20, {information:.2f} of at most {math.log(5):.2f} nats"


def _faults(figures: Figures) -> str:
    wrong = figures["faults_wrong_or_differing"] + figures["faults_wrong_or_differing_p2pd"]
    return f"{wrong:.0f}; {100 * figures['faults_survivors_committed_ratio']:.0f} % of survivors committed at once"


def _step0(figures: Figures) -> str:
    gaps = {words: figures[f"step0_gap_points.{form}"] for form, words in _PRESERVED.items()}
    return ", ".join(f"{gap:.1f} {words}" for words, gap in gaps.items())


def _ten_steps(figures: Figures) -> str:
    gains = (figures[f"ten_steps_over_scratch_1000_points.{form}"] for form in _PRESERVED)
    return ", ".join(f"{gain:+.1f}" for gain in gains)


def _flops_saved(figures: Figures) -> str:
    return ", ".join(f"{100 * figures[f'flops_saved_ratio.{form}']:.0f} %" for form in _PRESERVED)


_PRESERVED = {
    "half": "with half the units",
    "double": "with twice as many",
    "deeper": "with a layer more",
    "trunk_half": "on the trunk with half",
}

_SPLIT, _NODES, _ROTATED = "split-fashion-mnist", "split-fashion-mnist-on-e5", "rotated-fashion-mnist"
_MAMMOTH = "split-fashion-mnist-60k"

_CLAIMS = (
    _Claim(
        "Split Fashion-MNIST, five tasks of two classes: the small trunk (E5c40)",
        lambda figures: _sent(figures["ridge_small"]),
        "88.3",
        "bench_router",
    ),
    _Claim("the same on the larger trunk (E5)", lambda figures: _sent(figures["ridge"]), "90.9", "bench_router"),
    _Claim(
        "the same on two taps and random features",
        lambda figures: _sent(figures["ridge_quality"]),
        "91.6",
        "bench_router",
    ),
    _Claim(
        "the same by experience replay, 500 images, on trunk B4",
        _method(_SPLIT, "ER 500, trunk"),
        "",
        "bench_scenarios",
    ),
    _Claim("the same by joint training on trunk B4", _method(_SPLIT, "joint, trunk"), "", "bench_scenarios"),
    _Claim(
        "routed experts over DER++ that keeps as many bytes, both on the trunk that a node has by default (E5)",
        _over(_NODES, "DER++ same bytes"),
        "+1",
        "bench_scenarios",
    ),
    _Claim("the same over DER++ that keeps 500 images", _over(_NODES, "DER++ 500"), "+4", "bench_scenarios"),
    _Claim("the same over DER++ that keeps 200 images", _over(_NODES, "DER++ 200"), "+6", "bench_scenarios"),
    _Claim(
        "routed experts over DER++ that keeps as many bytes, both on trunk B4",
        _over(_SPLIT, "DER++ same bytes"),
        "+1",
        "bench_scenarios",
    ),
    _Claim("the same over DER++ that keeps 500 images", _over(_SPLIT, "DER++ 500"), "+4", "bench_scenarios"),
    _Claim(
        "the same over DER++ that keeps as many bytes on raw pixels, where there is no trunk",
        _over(_SPLIT, "DER++ same bytes", on="pixels"),
        "",
        "bench_scenarios",
    ),
    _Claim(
        "routed experts over SLDA, which keeps as many bytes, on trunk B4",
        _over(_SPLIT, "SLDA"),
        "",
        "bench_scenarios",
    ),
    _Claim(
        "the same over a ridge on random features as RanPAC has, which keeps more bytes",
        _over_with_bytes(_SPLIT, "projected ridge"),
        "",
        "bench_scenarios",
    ),
    _Claim(
        "the learner of a node (E5), which decides task by task",
        _learned,
        "90.9; at most 5",
        "bench_continual",
    ),
    _Claim(
        "four daemons that got the tasks apart, against one that got all",
        _four_nodes,
        "at most 0.3 less",
        "bench_continual_mesh",
    ),
    _Claim(
        "a node that joins them late without data: behind them, after so long, of bytes",
        _late_joiner,
        "at most 0.3",
        "bench_continual_mesh",
    ),
    _Claim(
        "a mesh that merges and retires experts that it can do without",
        _tidied,
        "",
        "bench_tidy",
    ),
    _Claim(
        "routed experts over the router alone, tasks of classes", _over(_SPLIT, "router argmax"), "", "bench_scenarios"
    ),
    _Claim(
        "routed experts over the router alone, rotated domains: one ridge over all",
        _over(_ROTATED, "router argmax"),
        "+2",
        "bench_scenarios",
    ),
    _Claim(
        "the same against a ridge with columns by domain and class",
        _over(_ROTATED, "router argmax by domain"),
        "+2",
        "bench_scenarios",
    ),
    _Claim(
        "the same with random features beside it",
        _over_with_bytes(_ROTATED, "projected ridge by domain"),
        "",
        "bench_scenarios",
    ),
    _Claim(
        "the ridge with columns by domain and class on raw pixels, where there is no trunk",
        _over(_ROTATED, "router argmax by domain", on="pixels"),
        "",
        "bench_scenarios",
    ),
    _Claim(
        "experience replay, 500 images, on pixels by Mammoth's protocol",
        _method(_MAMMOTH, "ER 500, pixels"),
        "77.6 ± 2, Mammoth's own",
        "bench_scenarios",
    ),
    _Claim(
        "Split Fashion-MNIST on all 60,000 training images, two taps and random features",
        lambda figures: f"{figures['pretrained, two taps and random features']['accuracy']:.1f} %",
        "92.3",
        "bench_all_images",
    ),
    _Claim(
        "the same without a pretrained trunk: whitened patches of the first task",
        lambda figures: f"{figures['whitened patches of the first task']['accuracy']:.1f} %",
        "87",
        "bench_all_images",
    ),
    _Claim(
        "learning the fifth task on trunk B4 at 32 px, in FLOPs of one epoch of a CNN on all five",
        lambda figures: f"{100 * figures['B4 at 32 px, routed experts']['of_one_epoch_ratio']:.0f} %",
        "at most 25 %",
        "bench_update_cost",
    ),
    _Claim(
        "the same by the learner of a node, which also decides, tries and replays",
        lambda figures: f"{100 * figures['B4 at 32 px, continual learner']['of_one_epoch_ratio']:.0f} %",
        "at most 25 %",
        "bench_update_cost",
    ),
    _Claim(
        "classes 100:1, rebalanced prior over the plain one",
        lambda figures: f"{figures['long_tail_100']['gain']:+.1f} ± {figures['long_tail_100']['std']:.1f} points",
        "+3",
        "bench_router",
    ),
    _Claim(
        "router merged from four skewed peers in 8 bits, points lost",
        lambda figures: f"{figures['merged']['loss_points']:.2f} ± {figures['merged']['std']:.2f}",
        "at most 0.3",
        "bench_router",
    ),
    _Claim(
        "points of distillation over cross-entropy, by labels; a teacher that saw 20,000",
        _gains("kd_gain"),
        "+6.9, +2.1, +0.6, the prototype's",
        "bench_experts",
    ),
    _Claim(
        "the same; a teacher of the same labels, and unlabelled images",
        _gains("kd_gain_same_labels"),
        "",
        "bench_experts",
    ),
    _Claim(
        "five experts trained with their router: usage of the busiest, I(E;C)",
        _specialization,
        "",
        "bench_mixture",
    ),
    _Claim(
        "p50 of asking a remote expert about 1 KB, over that of hivemind.moe.Server",
        lambda figures: f"{figures['forward_1kb_p50_over_moe_server']:.2f}",
        "at most 0.10",
        "bench_serving",
    ),
    _Claim(
        "the same with 64 callers, requests a second over those of hivemind.moe.Server",
        lambda figures: f"{figures['throughput_1kb_c64_over_moe_server']:.1f}",
        "4",
        "bench_serving",
    ),
    _Claim(
        "a question routed to 8 experts on 8 peers, 100 ms each, over asking one after another",
        lambda figures: f"{figures['fanout8_100ms_over_sequential']:.2f}",
        "at most 0.15",
        "bench_serving",
    ),
    _Claim(
        "answers in time when ten times the peak's rate is offered, over the peak",
        lambda figures: f"{figures['goodput_at_10x_over_peak']:.2f}",
        "0.9",
        "bench_serving",
    ),
    _Claim(
        "one of three replicas killed under load: the longest wait, and questions answered",
        _failover,
        "at most 1 s; 99.9 %",
        "bench_serving",
    ),
    _Claim(
        "one averaging of 16 experts on 4 peers, over hivemind's DecentralizedAverager",
        lambda figures: f"{figures['round16_over_decentralized_averager']:.2f}",
        "at most 0.10",
        "bench_averaging",
    ),
    _Claim(
        "bytes of it over those of a butterfly all-reduce",
        lambda figures: f"{figures['bytes_over_optimum']:.3f}",
        "at most 1.05",
        "bench_averaging",
    ),
    _Claim(
        "steps of a trainer while its node averages, over those without",
        lambda figures: f"{figures['training_throughput_while_averaging']:.2f}",
        "0.9",
        "bench_averaging",
    ),
    _Claim(
        "one of four members killed, hung or slowed in a round: wrong or differing replicas",
        _faults,
        "0",
        "bench_averaging",
    ),
    _Claim(
        "points an expert loses on its way into another architecture, without a step of training",
        _step0,
        "at most 3",
        "bench_preservation",
    ),
    _Claim(
        "the same four after ten steps, over a thousand from random weights at the best of five rates",
        _ten_steps,
        "more than 0",
        "bench_preservation",
    ),
    _Claim(
        "their FLOPs to the old accuracy, saved of retraining from the reference CNN",
        _flops_saved,
        "",
        "bench_preservation",
    ),
)


def claim_rows() -> Iterator[Sequence[str]]:
    """What, measured, held against, and the file it stands in."""
    for claim in _CLAIMS:
        if not (RESULTS / f"{claim.bench}.json").exists():
            continue  # not yet run for the record
        figures = json.loads((RESULTS / f"{claim.bench}.json").read_text(encoding="utf-8"))["figures"]
        link = f"[{claim.bench}](docs/results/{claim.bench}.json)"
        yield claim.what, claim.measured(figures), claim.held_against, link
