"""The router's algebra: what a solve and an update cost, and how exact merging is.

Run as a program it measures one solve, in a process of its own since the peak of memory is the process's:
``python scripts/bench_experts_router.py D C REPEATS SEED`` prints one JSON object.

Legend: B batch, C class, D feature.
"""

import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from experts.generators import torch_generator
from experts.router.contributions import Contributions
from experts.router.ridge import RouterConfig, solve_ridge
from experts.router.statistics import ClassStatistics, merge, sum_contributions

__all__ = ["measure_budget", "measure_merge", "measure_solves", "measure_updates"]

RANK = 256
"""Of the part of a synthetic scatter that is not diagonal; neither time nor memory of a solve depends on it."""

ROWS_A_CLASS = 100

TASK = "task"


def measure_solves(
    tell: Callable[[str], None], *, dims: Sequence[int], classes: Sequence[int], repeats: int, seed: int
) -> dict[str, dict[str, float]]:
    """Seconds and megabytes of `solve_ridge` by ``DxC``, each measured in a process of its own."""
    measured = {}
    for num_features, num_classes in itertools.product(dims, classes):
        tell(f"solve: D = {num_features}, C = {num_classes}")
        command = [sys.executable, __file__, *map(str, (num_features, num_classes, repeats, seed))]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        measured[f"{num_features}x{num_classes}"] = json.loads(done.stdout)
    return measured


def solve_once(num_features: int, num_classes: int, repeats: int, seed: int) -> dict[str, float]:
    """Of this process: median seconds, and what the first solve needs at most beyond the statistics it is given."""
    # Once on something small, so that what the libraries take for themselves does not count.
    solve_ridge(synthetic_statistics(8, 2, seed), RouterConfig())
    stats = synthetic_statistics(num_features, num_classes, seed)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is now what is held
    before_mb = _memory_mb("VmRSS")
    began_s = time.perf_counter()
    solve_ridge(stats, RouterConfig())
    seconds = [time.perf_counter() - began_s]
    peak_mb = _memory_mb("VmHWM")
    for _ in range(repeats - 1):
        began_s = time.perf_counter()
        solve_ridge(stats, RouterConfig())
        seconds.append(time.perf_counter() - began_s)
    return {"solve_s": median(seconds), "solve_peak_mb": peak_mb - before_mb, "process_peak_mb": peak_mb}


def synthetic_statistics(num_features: int, num_classes: int, seed: int) -> ClassStatistics:
    """Random means, and a scatter that is positive definite: A^T A + diag(u), u > 0."""
    generator = torch_generator(seed, "statistics")
    names = [f"class-{column:04d}" for column in range(num_classes)]
    means_CD = torch.randn(num_classes, num_features, generator=generator, dtype=torch.float64)
    factor = torch.randn(RANK, num_features, generator=generator, dtype=torch.float64)
    scatter = factor.T @ factor
    scatter = torch.triu(scatter) + torch.triu(scatter, diagonal=1).T
    scatter.diagonal().add_(torch.rand(num_features, generator=generator, dtype=torch.float64) + 0.1)
    counts = dict.fromkeys(names, ROWS_A_CLASS)
    return ClassStatistics(counts, dict(zip(names, means_CD, strict=True)), scatter * ROWS_A_CLASS)


def measure_updates(
    tell: Callable[[str], None], *, dims: Sequence[int], held: int, added: Sequence[int], repeats: int, seed: int
) -> dict[str, Any]:
    """Seconds of adding n rows to statistics of ``held`` rows, against recomputing them from all rows."""
    measured = {}
    for num_features in dims:
        generator = torch_generator(seed, "rows")
        features_BD = torch.randn(held + max(added), num_features, generator=generator)
        labels = [f"class-{row % 10}" for row in range(len(features_BD))]
        tell(f"update: D = {num_features}, from {held} rows")
        stats = ClassStatistics.from_features(features_BD[:held], labels[:held])
        for num_rows in added:
            rows = slice(held, held + num_rows)
            updates_s, all_s, error = [], [], 0.0
            for number in range(repeats):
                tell(f"update: D = {num_features}, {num_rows} rows more, {number + 1} of {repeats}")
                began_s = time.perf_counter()
                updated = stats.updated(features_BD[rows], labels[rows])
                updates_s.append(time.perf_counter() - began_s)
                began_s = time.perf_counter()
                again = ClassStatistics.from_features(features_BD[: rows.stop], labels[: rows.stop])
                all_s.append(time.perf_counter() - began_s)
                error = max(error, relative_error(updated.scatter, again.scatter))
            measured[f"{num_features}x{num_rows}"] = {
                "update_s": median(updates_s),
                "recompute_s": median(all_s),
                "speedup": median(whole / part for whole, part in zip(all_s, updates_s, strict=True)),
                "scatter_error": error,
            }
    return measured


def measure_merge(features_BD: Tensor, labels: Sequence[str], *, chunk: int, seed: int) -> dict[str, Any]:
    """Sequential and merged routers against the central one: relative Frobenius error of B in float64.

    Sequential: chunks of rows in class order, one task after another. Merged: four peers of which each holds most of
    its share from few classes, in all 24 orders.
    """
    central = ClassStatistics.from_features(features_BD, labels)
    weights = _weights(central)
    order = sorted(range(len(labels)), key=lambda row: labels[row])
    parts = [order[start : start + chunk] for start in range(0, len(order), chunk)]
    sequential = ClassStatistics.from_features(features_BD[parts[0]], [labels[row] for row in parts[0]])
    for rows in parts[1:]:
        sequential = sequential.updated(features_BD[rows], [labels[row] for row in rows])
    peers = {
        f"peer-{number}": ClassStatistics.from_features(features_BD[rows], [labels[row] for row in rows])
        for number, rows in enumerate(skewed_shares(labels, 4, seed))
    }
    errors, sums = [], []
    for names in itertools.permutations(peers):
        merged = peers[names[0]]
        for name in names[1:]:
            merged = merge(merged, peers[name])
        errors.append(relative_error(_weights(merged), weights))
        sums.append(sum_contributions({name: peers[name] for name in names}))
    without = {name: stats for name, stats in peers.items() if name != "peer-2"}
    dropped = dict(peers)
    del dropped["peer-2"]
    return {
        "sequential": relative_error(_weights(sequential), weights),
        "four_peers_any_order": max(errors),
        "sum_bit_equal_in_all_orders": all(same_statistics(sums[0], other) for other in sums[1:]),
        "drop_bit_equal": same_statistics(sum_contributions(dropped), sum_contributions(without)),
        "chunks": len(parts),
        "rows": len(labels),
        "features": features_BD.shape[1],
    }


def measure_budget(
    tell: Callable[[str], None],
    features_BD: Tensor,
    labels: Sequence[str],
    *,
    peers: Sequence[int],
    max_bytes: int,
    seed: int,
) -> dict[str, Any]:
    """What holding the contributions of many peers in a bounded number of bytes costs, by the number of peers."""
    central = _weights(ClassStatistics.from_features(features_BD, labels))
    measured = {}
    for num_peers in peers:
        tell(f"merge: {num_peers} peers in {max_bytes / 1e6:g} MB")
        blobs = {
            f"peer-{number:04d}": ClassStatistics.from_features(
                features_BD[rows], [labels[row] for row in rows]
            ).to_bytes()
            for number, rows in enumerate(skewed_shares(labels, num_peers, seed))
        }
        measured[str(num_peers)] = _budget_of(blobs, features_BD.shape[1], max_bytes, central)
    return measured


def _budget_of(blobs: Mapping[str, bytes], num_features: int, max_bytes: int, central: Tensor) -> dict[str, Any]:
    names = list(blobs)
    held = Contributions(num_features, max_bytes=max_bytes)
    began_s = time.perf_counter()
    for number, (peer, data) in enumerate(blobs.items()):
        held.add((peer, TASK), 1, data, issued_at=float(number))
    add_s = (time.perf_counter() - began_s) / len(blobs)
    unbounded = _unbounded({peer: blobs[peer] for peer in reversed(names)}, num_features)
    facts = {
        "held_mb": held.num_bytes / 1e6,
        "unbounded_mb": unbounded.num_bytes / 1e6,
        "one_mb": median(map(len, blobs.values())) / 1e6,
        "folded": len(held.folded),
        "add_ms": 1e3 * add_s,
        "error": relative_error(_weights(held.sum()), central),
        "bit_equal_to_unbounded": same_statistics(held.sum(), unbounded.sum()),
    }
    # The oldest is folded once there are more peers than fit; then it goes only with its bytes in hand.
    oldest, latest = names[0], names[-1]
    is_folded = (oldest, TASK) in held.folded
    if is_folded:
        held.reissue((oldest, TASK), blobs[oldest])
    held.drop_peer(oldest)
    held.drop_peer(latest)
    never = _unbounded({peer: data for peer, data in blobs.items() if peer not in (oldest, latest)}, num_features)
    return facts | {
        "oldest_had_to_be_reissued": is_folded,
        "drop_bit_equal": same_statistics(held.sum(), never.sum()),
    }


def _unbounded(blobs: Mapping[str, bytes], num_features: int) -> Contributions:
    contributions = Contributions(num_features)
    for peer, data in blobs.items():
        contributions.add((peer, TASK), 1, data)
    return contributions


def skewed_shares(labels: Sequence[str], num_shares: int, seed: int) -> list[list[int]]:
    """Rows dealt into shares of equal size, each from about three neighbouring classes."""
    column_of = {name: column for column, name in enumerate(sorted(set(labels)))}
    columns_N = torch.tensor([column_of[label] for label in labels], dtype=torch.float64)
    noise_N = torch.rand(len(labels), generator=torch_generator(seed, "shares"), dtype=torch.float64)
    order = torch.argsort(columns_N + 2.0 * noise_N, stable=True)
    return [share.tolist() for share in torch.tensor_split(order, num_shares)]


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Frobenius norm of the difference over that of what is wanted."""
    return float((got - wanted).norm() / wanted.norm())


def same_statistics(first: ClassStatistics, second: ClassStatistics) -> bool:
    """Whether two statistics are equal to the last bit."""
    return (
        dict(first.counts) == dict(second.counts)
        and torch.equal(first.stacked_means(), second.stacked_means())
        and torch.equal(first.scatter, second.scatter)
    )


def _weights(stats: ClassStatistics) -> Tensor:
    return solve_ridge(stats, RouterConfig()).weights


def _memory_mb(name: str) -> float:
    """A line of the kernel's account of this process, in 10^6 bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(solve_once(*map(int, sys.argv[1:5]))))
