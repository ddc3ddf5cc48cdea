"""Merging, retiring and placing experts, with S(E_i) and I(E;C) and without: accuracy, experts, parameters, bytes.

Split Fashion-MNIST on tap E5, learned apart by two nodes in three class orders: evenly, with a long tail, and with few
images at one of the nodes. Experts
that say the same are merged, unused ones retired, what they know is handed on: beside all kept, beside the same without
handing on, and beside the same without S and I. Then one expert after another is retired in the order of what it adds
to I(E;C), of its usage, or at random; and replicas are placed by what an expert adds, or as the hash has it, before
peers die. Progress goes to stderr.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from bench_continual_rows import Sizes, prepared
from bench_document import RESULTS, bench_document, say, write_document
from bench_tidy_mesh import FEW, GROUPS, MARGIN, TAIL, TWINS, BenchMesh, made
from bench_tidy_plot import draw

from experts.evaluation.metrics import spread
from meshnode.errors import ExitCode
from protocol.identifiers import ExpertUid, PeerId, digest_of
from protocol.placement import KeptExpert, adoptions

NAME = "bench_tidy"

QUICK = Sizes(train=600, test=400)

RETIRED = 6
"""Experts that go one after another; more, and a class has no expert left in some orders."""

RANDOM_DRAWS, DEATHS = 5, 40

PEERS, DYING = 8, 3
"""Peers, and those that die at once; half as many as there are experts have room for one further one each."""

SCENARIOS: Mapping[str, Mapping[str, bool]] = {
    "even": {},
    "long tail": {"tail": True},
    "few at one node": {"few": True},
}


def main(arguments: Sequence[str]) -> int:
    """Run the script; returns its exit code."""
    options = _parse(arguments)
    torch.set_num_threads(1)
    began_s = time.perf_counter()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in SCENARIOS}
    for seed in range(options.runs):
        scenario, inputs = prepared("split-fashion-mnist", seed, QUICK if options.quick else Sizes())
        for name, how in SCENARIOS.items():
            mesh = made(scenario, inputs, seed, **how)
            tidied = mesh.copy()
            _tidied(tidied, use_specialization=True, hands_on=True)
            placement = {"all kept": _placement(mesh), "merged and retired": _placement(tidied)}
            runs[name].append(
                {"rows": _rows(mesh), "choice": _choice(mesh), "placement": placement, "all": _described(mesh)}
            )
            found = {row: round(figures["accuracy"], 1) for row, figures in runs[name][-1]["rows"].items()}
            say(f"{name}, seed {seed}: {found}, {time.perf_counter() - began_s:.0f} s")
    document = _document(runs, options, began_s)
    if options.write:
        draw(document, write_document(document, NAME).with_suffix(".png"))
    print(json.dumps(document, indent=2) if options.json else _table(document))
    return ExitCode.OK if all(target["met"] for target in document["targets"].values()) else ExitCode.CHECK_FAILED


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the whole document instead of the table")
    parser.add_argument("--quick", action="store_true", help=f"one run on {QUICK.train} images a task; a minute")
    parser.add_argument("--write", action="store_true", help=f"also put it into {RESULTS.name}/, with a plot")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="orders and seeds, from 0 (3)")
    options = parser.parse_args(arguments)
    if options.write and options.quick:
        parser.error("--write is for all figures: leave out --quick")
    if options.quick:
        options.runs = 1
    return options


def _rows(mesh: BenchMesh) -> dict[str, dict[str, Any]]:
    """Ways of tidying, each on the same mesh."""
    ways: dict[str, Callable[[BenchMesh], Mapping[str, Any]]] = {
        "all kept": lambda _: {},
        "merged": lambda one: {"merged": one.merge_redundant(use_specialization=True)},
        "merged and retired": lambda one: _tidied(one, use_specialization=True, hands_on=True),
        "without S and I": lambda one: _tidied(one, use_specialization=False, hands_on=True),
        "without handing on": lambda one: _tidied(one, use_specialization=True, hands_on=False),
    }
    found = {}
    for name, way in ways.items():
        one = mesh.copy()
        done = dict(way(one))
        found[name] = {
            "accuracy": one.accuracy(),
            "experts": len(one.experts),
            "parameters": one.num_parameters,
            "kept_kb": 4 * one.num_parameters / 1000,
            **done,
        }
    return found


def _tidied(mesh: BenchMesh, *, use_specialization: bool, hands_on: bool) -> Mapping[str, Any]:
    merged = mesh.merge_redundant(use_specialization=use_specialization, hands_on=hands_on)
    return {
        "merged": merged,
        "retired": mesh.retire_unused(use_specialization=use_specialization, hands_on=hands_on),
    }


def _choice(mesh: BenchMesh) -> dict[str, list[float]]:
    """Accuracy after each expert that goes, by whom it falls on; at random the mean of some draws."""

    def least(values: Callable[[BenchMesh], Mapping[str, float]]) -> Callable[[BenchMesh, list[str]], str]:
        def chosen(one: BenchMesh, able: list[str]) -> str:
            by_uid = values(one)
            return min(able, key=lambda uid: (by_uid[uid], uid))

        return chosen

    def by_information(one: BenchMesh) -> Mapping[str, float]:
        found = one.specialization()
        return dict(zip(found.uids, found.information_shares.tolist(), strict=True))

    def by_usage(one: BenchMesh) -> Mapping[str, float]:
        found = one.specialization()
        return dict(zip(found.uids, found.usage.tolist(), strict=True))

    draws = []
    for draw_ in range(RANDOM_DRAWS):
        rng = random.Random(f"{mesh.seed} retire {draw_}")
        draws.append(_one_after_another(mesh, lambda _, able, rng=rng: rng.choice(able)))
    return {
        "information": _one_after_another(mesh, least(by_information)),
        "usage": _one_after_another(mesh, least(by_usage)),
        "random": [sum(values) / len(values) for values in zip(*draws, strict=True)],
    }


def _one_after_another(mesh: BenchMesh, choose: Callable[[BenchMesh, list[str]], str]) -> list[float]:
    """Without handing on, so that the choice alone shows. Where none may go any more nothing changes."""
    one = mesh.copy()
    accuracies = [one.accuracy()]
    for _ in range(RETIRED):
        if able := one.may_go():
            one.retire(choose(one, able), hands_on=False)
        accuracies.append(one.accuracy())
    return accuracies


def _placement(mesh: BenchMesh) -> dict[str, dict[str, float]]:
    """Accuracy of what is left when peers die, after few of the experts could have a further replica."""
    found = mesh.specialization()
    rules: dict[str, Mapping[str, float] | None] = {
        "by I(E;C)": dict(zip(found.uids, found.information_shares.tolist(), strict=True)),
        "by usage": dict(zip(found.uids, found.usage.tolist(), strict=True)),
        "by the hash alone": {},
        "none placed": None,
    }
    return {rule: _after_deaths(mesh, worth) for rule, worth in rules.items()}


def _after_deaths(mesh: BenchMesh, worth: Mapping[str, float] | None) -> dict[str, float]:
    """Means over draws of who holds what and who dies, the same for every rule."""
    often, alike, as_they_come = Counter(mesh.measured_on.labels), [], []
    for draw_ in range(DEATHS):
        rng = random.Random(f"{mesh.seed} death {draw_}")
        peers = [PeerId(f"Qm{digest_of(b'%d %d %d' % (mesh.seed, draw_, number))[:44]}") for number in range(PEERS)]
        holders = {uid: {rng.choice(peers)} for uid in sorted(mesh.experts)}
        if worth is not None:
            _adopt(peers[: len(holders) // 2], holders, worth)
        dead = set(rng.sample(peers, DYING))
        shares = mesh.by_class(without=[uid for uid, held in holders.items() if held <= dead])
        alike.append(sum(shares.values()) / len(shares))
        as_they_come.append(sum(share * often[name] for name, share in shares.items()) / often.total())
    return {"accuracy": 100 * sum(alike) / DEATHS, "as_classes_come": 100 * sum(as_they_come) / DEATHS}


def _adopt(roomy: Sequence[PeerId], holders: dict[str, set[PeerId]], worth: Mapping[str, float]) -> None:
    """Each peer with room for one takes what it is to take, as all work it out from the same records."""
    rooms = dict.fromkeys(roomy, 1)
    while rooms:
        experts = [
            KeptExpert(
                uid=ExpertUid(digest_of(uid.encode())), num_bytes=1, holders=frozenset(held), worth=worth.get(uid, 0.0)
            )
            for uid, held in holders.items()
        ]
        uids = {ExpertUid(digest_of(uid.encode())): uid for uid in holders}
        due = {peer: adoptions(peer, experts, rooms, replicas=2) for peer in rooms}
        now = {peer: [one.uid for one in found if one.turn == 0] for peer, found in due.items()}
        took = {peer: uids[found[0]] for peer, found in now.items() if found}
        if not took:
            return
        for peer, uid in took.items():
            holders[uid].add(peer)
            del rooms[peer]


def _described(mesh: BenchMesh) -> dict[str, Any]:
    """What there was to begin with."""
    found = mesh.specialization()
    shares, usage = found.information_shares.tolist(), found.usage.tolist()
    return {
        mesh.names[uid]: {"classes": mesh.experts[uid].classes, "usage": usage[at], "information_nats": shares[at]}
        for at, uid in enumerate(found.uids)
    }


def _document(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], options: argparse.Namespace, began_s: float
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, of in runs.items():
        figures[name] = {
            "tidied": {row: _means([run["rows"][row] for run in of]) for row in of[0]["rows"]},
            "retired_one_by_one": {
                rule: [spread([run["choice"][rule][at] for run in of]).mean for at in range(RETIRED + 1)]
                for rule in of[0]["choice"]
            },
            "after_deaths": {
                kept: {
                    rule: {
                        key: spread([run["placement"][kept][rule][key] for run in of]).mean
                        for key in ("accuracy", "as_classes_come")
                    }
                    for rule in rules
                }
                for kept, rules in of[0]["placement"].items()
            },
        }
    words = [f"python scripts/{NAME}.py", *(["--quick"] if options.quick else [])]
    words += [f"--runs {options.runs}"] if not options.quick and options.runs != 3 else []
    measured = {
        "groups": GROUPS,
        "twins": TWINS,
        "tail": TAIL,
        "few": FEW,
        "peers": {"all": PEERS, "dying": DYING, "draws": DEATHS},
        "runs": runs,
        "seconds": time.perf_counter() - began_s,
    }
    return bench_document(
        " ".join(words), range(options.runs), figures, targets=_targets(figures), measured=measured, digits=4
    )


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    accuracy = spread([row["accuracy"] for row in rows])
    others = {key: spread([float(row[key]) for row in rows]).mean for key in ("experts", "parameters", "kept_kb")}
    return {"accuracy": accuracy.mean, "std": accuracy.deviation, **others}


def _targets(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy that tidying may cost: as much as one of its steps may, all together."""
    targets = {}
    for name, of in figures.items():
        rows = of["tidied"]
        lost = rows["all kept"]["accuracy"] - rows["merged and retired"]["accuracy"]
        bound = 100 * MARGIN
        targets[f"lost by tidying, {name}"] = {"target": f"<= {bound} points", "value": lost, "met": lost <= bound}
    return targets


def _table(document: Mapping[str, Any]) -> str:
    lines = []
    for name, of in document["figures"].items():
        lines.append(f"{name:<22} accuracy         experts  parameters  kept kB")
        for row, found in of["tidied"].items():
            std = "" if found["std"] is None else f" +- {found['std']:.2f}"
            lines.append(
                f"  {row:<20} {found['accuracy']:6.2f}{std:<9} {found['experts']:7.1f} {found['parameters']:11,.0f} "
                f"{found['kept_kb']:8,.0f}"
            )
        lines.append("  retired one by one, accuracy after each:")
        for rule, accuracies in of["retired_one_by_one"].items():
            lines.append(f"  {rule:<20} {' '.join(f'{value:6.2f}' for value in accuracies)}")
        for kept, rules in of["after_deaths"].items():
            lines.append(f"  {kept}, half of the experts placed once more, {DYING} of {PEERS} peers dead:")
            for rule, found in rules.items():
                lines.append(f"  {rule:<20} {found['accuracy']:6.2f}, as classes come {found['as_classes_come']:6.2f}")
        lines.append("")
    for name, target in document["targets"].items():
        lines.append(f"{name}: {target['target']}: {'met' if target['met'] else 'MISSED'} ({target['value']})")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
